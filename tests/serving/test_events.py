"""What is served and clicked comes back as what training reads: a real server, its file, the real ingest."""

import json

import pandas as pd
import pytest

from features.lake import IngestConfig, ingest
from features.readers.ubi import UbiSource
from serving.store import Store


@pytest.fixture
def store(tmp_path, make):
    """A store with a champion and no log yet."""
    Store(tmp_path).set_champion(make.shop(tmp_path).path.name, "first")
    return tmp_path


def lake_of(store, tmp_path):
    catalogue = tmp_path / "catalogue.jsonl"
    shop = pd.read_parquet(store / "examples" / "documents.parquet")[["doc_id", "title", "text"]]
    catalogue.write_text(shop.to_json(orient="records", lines=True))
    source = UbiSource(format="ubi", path=[store / "ubi" / "*.jsonl"], documents={"path": catalogue})
    lake = ingest(source, tmp_path / "lake", IngestConfig())
    return lake, pd.read_parquet(tmp_path / "lake" / "impressions")


def test_a_search_and_a_click_are_in_the_lake_of_the_next_ingest(store, tmp_path, make):
    with make.server(store) as client:
        make.wait_until(lambda: client.get("/readyz").status_code == 200)
        asked = {"text": "Red  shoes", "k": 5, "user_id": "anna"}
        first = client.post("/v1/search", json=asked).json()
        hits = [hit["doc_id"] for hit in first["hits"]]
        other = client.post(
            "/v1/search", json={"text": "tea", "k": 3, "mode": "bm25", "query_id": "mine"}
        ).json()
        client.post("/v1/search", json={"text": "unseen"}, headers={"X-Query-Log": "off"})
        client.post("/v1/search", json={"text": ""})
        clicks = [
            {"query_id": first["query_id"], "doc_id": hits[2], "position": 3, "client_id": "anna"},
            {"query_id": first["query_id"], "doc_id": hits[0], "action": "add_to_cart"},
            {"query_id": "of yesterday", "doc_id": "d01"},
        ]
        reply = client.post("/v1/events", json={"events": clicks})
        assert reply.json() == {"accepted": 3, "unknown_queries": 1}

    lake, shown = lake_of(store, tmp_path)
    mine = shown[shown["impression_id"] == first["query_id"]].sort_values("position")
    assert mine["doc_id"].tolist() == hits
    assert mine["position"].tolist() == [1, 2, 3, 4, 5]
    assert mine["clicked"].tolist() == [False, False, True, False, False]
    assert set(mine["query_text"]) == {"Red  shoes"}
    assert set(mine["user_id"]) == {"anna"}
    assert shown[shown["impression_id"] == "mine"]["doc_id"].nunique() == len(other["hits"])
    assert set(shown["impression_id"]) == {first["query_id"], "mine"}
    counts = lake.content["impressions"]
    assert counts["quarantined"] == {"click_not_shown": 1}
    assert lake.content["ignored"] == {"event: add_to_cart": 1, "query": 2}


def test_every_query_of_a_batch_is_logged_under_the_id_its_result_has(store, tmp_path, make):
    with make.server(store) as client:
        make.wait_until(lambda: client.get("/readyz").status_code == 200)
        body = {"k": 2, "queries": [{"text": "red"}, {"text": "🍵 \u0000 cup"}, {"text": ""}]}
        results = client.post("/v1/search", json=body).json()["results"]
    _, shown = lake_of(store, tmp_path)
    assert shown["impression_id"].nunique() == 2
    for result in results[:2]:
        ids = shown[shown["impression_id"] == result["query_id"]].sort_values("position")["doc_id"].tolist()
        assert ids == [hit["doc_id"] for hit in result["hits"]]


def test_the_answers_to_histories_are_logged_with_who_asked(tmp_path, make):
    Store(tmp_path).set_champion(make.shop(tmp_path, "history").path.name, "first")
    with make.server(tmp_path) as client:
        make.wait_until(lambda: client.get("/readyz").status_code == 200)
        client.post("/v1/search", json={"history": ["d00"], "k": 4, "user_id": "bert"})
    lake, shown = lake_of(tmp_path, tmp_path)
    assert len(shown) == 4
    assert set(shown["user_id"]) == {"bert"}
    assert shown["query_text"].isna().all()
    assert lake.content["impressions"]["accepted"] == 4


def test_neighbours_and_inferences_are_logged_under_the_ids_they_have(store, tmp_path, make):
    with make.server(store) as client:
        make.wait_until(lambda: client.get("/readyz").status_code == 200)
        near = client.get("/v1/documents/d03/neighbors", params={"k": 4}).json()
        clicked = near["hits"][1]["doc_id"]
        click = {"query_id": near["query_id"], "doc_id": clicked, "position": 2}
        tensor = {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["red shoes", "tea"]}
        body = {"inputs": [tensor], "parameters": {"k": 3}}
        outputs = client.post("/v2/models/twotower/infer", json=body).json()["outputs"]
        ids, _, _, query_ids = [output["data"] for output in outputs]
        events = {"events": [click, {"query_id": query_ids[1], "doc_id": ids[4]}]}
        assert client.post("/v1/events", json=events).json() == {"accepted": 2, "unknown_queries": 0}
        vectors = client.post("/v2/models/twotower/infer", json={**body, "outputs": [{"name": "embedding"}]})
        assert vectors.status_code == 200  # of which nothing was shown
    lines = [json.loads(line) for file in (store / "ubi").iterdir() for line in file.read_text().splitlines()]
    asked = {line["query_id"]: line for line in lines if "user_query" in line}
    assert asked.keys() == {near["query_id"], *query_ids}
    assert asked[near["query_id"]]["user_query"] is None
    assert asked[near["query_id"]]["query_attributes"] == {
        "bundle_id": near["bundle_id"],
        "mode": "neighbors",
        "k": 4,
        "doc_id": "d03",
    }

    lake, shown = lake_of(store, tmp_path)
    assert lake.content["impressions"]["accepted"] == len(shown) == 4 + 2 * 3
    carousel = shown[shown["impression_id"] == near["query_id"]].sort_values("position")
    assert carousel["doc_id"].tolist() == [hit["doc_id"] for hit in near["hits"]]
    assert carousel["clicked"].tolist() == [False, True, False, False]
    assert carousel["query_text"].isna().all()  # so that it is no query to learn from
    assert carousel["user_id"].isna().all()
    for place, text in enumerate(("red shoes", "tea")):
        inferred = shown[shown["impression_id"] == query_ids[place]].sort_values("position")
        assert inferred["doc_id"].tolist() == ids[3 * place : 3 * place + 3]
        assert set(inferred["query_text"]) == {text}
        assert inferred["clicked"].tolist() == [False, place == 1, False]
