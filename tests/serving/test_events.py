"""What is served and clicked comes back as what training reads: a real server, its file, the real ingest."""

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
