import pytest

from serving.retriever import Retriever
from serving.search import Search


def asked(*texts: str, **more) -> dict:
    return {
        "inputs": [{"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": list(texts)}],
        **more,
    }


def test_the_server_and_its_model_describe_themselves(client, bundle):
    assert client.get("/v2").json()["name"] == "twotower"
    assert client.get("/v2/health/live").json()["live"] is True
    assert client.get("/v2/health/ready").json()["ready"] is True
    described = client.get("/v2/models/twotower").json()
    assert described["versions"] == [bundle.bundle_id]
    assert described["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    names = [output["name"] for output in described["outputs"]]
    assert names == ["doc_ids", "scores", "found", "query_ids", "embedding"]
    version = f"/v2/models/twotower/versions/{bundle.bundle_id}"
    assert client.get(version).json() == described
    for path in ("/v2/models/twotower/ready", f"{version}/ready"):
        assert client.get(path).json() == {"name": "twotower", "ready": True}


def test_inference_gives_what_the_search_gives(client, bundle):
    retriever = Retriever(bundle)
    wanted = [{"name": name} for name in ("doc_ids", "scores", "embedding")]
    body = asked("red shoes", "茶壶", id="42", parameters={"k": 3}, outputs=wanted)
    for path in ("twotower", f"twotower/versions/{bundle.bundle_id}"):
        reply = client.post(f"/v2/models/{path}/infer", json=body).json()
        assert (reply["model_name"], reply["model_version"], reply["id"]) == (
            "twotower",
            bundle.bundle_id,
            "42",
        )
        ids, scores, vectors = reply["outputs"]
        expected = [hit for text in ("red shoes", "茶壶") for hit in retriever.search(text, k=3)]
        assert (ids["datatype"], ids["shape"], ids["data"]) == (
            "BYTES",
            [2, 3],
            [hit.doc_id for hit in expected],
        )
        assert scores["data"] == pytest.approx([hit.score for hit in expected], abs=1e-6)
        assert (scores["datatype"], vectors["shape"], len(vectors["data"])) == ("FP32", [2, 16], 32)


def test_rows_that_found_less_are_padded_and_say_how_much_they_found(client, bundle):
    body = asked("scarf", "zzzz", parameters={"k": 6, "mode": "bm25"})
    ids, scores, found, _ = client.post("/v2/models/twotower/infer", json=body).json()["outputs"]
    scarves = Retriever(bundle).answer(Search(text="scarf", k=6, mode="bm25")).hits
    assert found["data"] == [len(scarves), 0] == [4, 0]
    assert ids["data"] == [hit.doc_id for hit in scarves] + [""] * 8
    assert scores["data"][4:] == [0.0] * 8


def test_rows_of_one_are_read_as_a_flat_list(client):
    flat = client.post("/v2/models/twotower/infer", json=asked("red", "tea")).json()
    nested = asked("red", "tea")
    nested["inputs"][0] |= {"shape": [2, 1], "data": [["red"], ["tea"]]}
    again = client.post("/v2/models/twotower/infer", json=nested).json()
    assert again["outputs"][:3] == flat["outputs"][:3]
    assert not {*again["outputs"][3]["data"]} & {
        *flat["outputs"][3]["data"]
    }  # each query has an id of its own


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"inputs": []}, "give one input"),
        ({"inputs": asked("a")["inputs"] * 2}, "give one input"),
        ({"inputs": [{**asked("a")["inputs"][0], "name": "txt"}]}, "named 'text'"),
        ({"inputs": [{**asked("a")["inputs"][0], "datatype": "FP32"}]}, "datatype BYTES"),
        ({"inputs": [{**asked("a")["inputs"][0], "shape": [2]}]}, "shape [2] does not fit 1 texts"),
        ({"inputs": [{**asked("a")["inputs"][0], "shape": [-1]}]}, "must be at least 0"),
        ({"inputs": [{**asked("a")["inputs"][0], "data": [1]}]}, "must be strings"),
        (asked("a", "  "), "text 1: the query has no visible character"),
        (asked(), "must have 1 to 100"),
        (asked(*["a"] * 101), "must have 1 to 100"),
        (asked("a", parameters={"k": 0}), "from 1 to 1000"),
        (asked("a", parameters={"k": 1_001}), "from 1 to 1000"),
        (asked("a", outputs=[{"name": "labels"}]), "no output 'labels'"),
        (asked("a" * 2_001), "at most 2000"),
        ({"inputs": "text"}, "must be an array"),
    ],
)
def test_mistakes_have_the_protocols_shape(client, change, hint):
    response = client.post("/v2/models/twotower/infer", json=change)
    assert response.status_code == 400, response.text
    assert response.json().keys() == {"error"}
    assert hint in response.json()["error"]


def test_a_body_that_cannot_be_read_has_the_protocols_shape(client):
    for body in (b"\xff\xfe", b"[" * 100_000, b"{", b""):
        response = client.post(
            "/v2/models/twotower/infer", content=body, headers={"content-type": "application/json"}
        )
        assert response.status_code == 400
        assert isinstance(response.json()["error"], str)


def test_other_models_and_versions_are_unknown(client):
    for path in ("other", "twotower/versions/" + "0" * 16, "twotower/versions/1", "other/ready"):
        response = client.get(f"/v2/models/{path}")
        assert response.status_code == 404
        assert isinstance(response.json()["error"], str)


def test_no_model_is_ready_before_a_champion_is(tmp_path, make):
    with make.server(tmp_path) as client:
        assert client.get("/v2/health/live").status_code == 200
        for path in ("/v2/health/ready", "/v2/models/twotower/ready", "/v2/models/twotower"):
            response = client.get(path)
            assert response.status_code == 503
            assert isinstance(response.json()["error"], str)
