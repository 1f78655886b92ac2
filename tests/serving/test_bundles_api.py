import json
import shutil
from pathlib import Path

import httpx
import pytest

from features.qrels import QrelsConfig, read_qrels
from serving.api import ServeConfig
from serving.bundle_list import listed, page_of
from serving.judgments import Judgments
from serving.store import Store
from serving.update import Changes, UpdateConfig, update


@pytest.fixture(scope="module")
def root(tmp_path_factory, make) -> Path:
    """A store of two bundles, one of them damaged later, with a run of the pipeline that made the first."""
    root = tmp_path_factory.mktemp("listed")
    first, second = make.shop(root).path.name, make.shop(root, seed=9).path.name
    Store(root).set_champion(first, "first")
    runs = root / "runs"
    runs.mkdir()
    stages = [{"stage": "export", "path": str(root / "bundles" / first)}]
    tracking = {"uri": "sqlite:///mlflow.db", "experiment_id": "7"}
    record = {"run": "abc123", "name": "shop", "stages": stages, "tracking": tracking}
    (runs / "abc123.json").write_text(json.dumps(record), encoding="utf-8")
    (runs / "torn.json").write_text("{", encoding="utf-8")
    assert second != first
    return root


@pytest.fixture(scope="module")
def http(root, make):
    config = ServeConfig(poll_seconds=0.05, mlflow="http://127.0.0.1:5000/")
    with make.server(root, config) as client:
        make.wait_until(lambda: client.get("/readyz").status_code == 200)
        yield client


def refusal(response: httpx.Response, status: int = 422) -> str:
    assert response.status_code == status, response.text
    return response.json()["error"]["code"]


def test_the_stores_bundles_are_listed_with_their_facts_and_runs(http, root):
    reply = http.get("/v1/bundles").json()
    champion = Store(root).champion().bundle_id
    assert (reply["champion"], reply["served"]) == (champion, champion)
    listed = {entry["bundle_id"]: entry for entry in reply["bundles"]}
    assert [entry["bundle_id"] for entry in reply["bundles"]] == Store(root).bundle_ids()[::-1]
    served = listed[champion]
    assert (served["champion"], served["served"], served["documents"]) == (True, True, 23)
    assert served["run"] == {
        "run_id": "abc123",
        "name": "shop",
        "url": "http://127.0.0.1:5000/#/experiments/7/runs/abc123",
    }
    assert served["index"]["factory"] == "Flat"
    assert served["index"]["ann_recall"] == 1.0
    other = next(entry for entry in reply["bundles"] if entry["bundle_id"] != champion)
    assert (other["champion"], "run" in other) == (False, False)
    assert len(http.get("/v1/bundles", params={"limit": 1}).json()["bundles"]) == 1
    assert refusal(http.get("/v1/bundles", params={"limit": 101})) == "invalid_request"
    assert refusal(http.get("/v1/bundles", params={"limit": 0})) == "invalid_request"


def test_a_damaged_bundle_is_listed_as_such(http, root):
    other = Store(root).bundle_ids()[-1]
    manifest = Store(root).bundles / other / "manifest.json"
    sound = manifest.read_bytes()
    for damage in (b"{", b"[]", sound.replace(b'"content"', b'"c0ntent"')):
        manifest.write_bytes(damage)
        entry = next(e for e in http.get("/v1/bundles").json()["bundles"] if e["bundle_id"] == other)
        assert "manifest" in entry["damage"]
    manifest.write_bytes(sound)


def test_what_is_no_bundle_and_no_run_spoils_no_list(http, root):
    before = http.get("/v1/bundles").json()
    stray, run = Store(root).bundles / ("a" * 16), root / "runs" / "nested.json"
    stray.write_text("stray")
    run.write_text("[" * 100_000)
    try:
        assert http.get("/v1/bundles").json() == before
        search = http.post("/v1/search", json={"text": "red", "bundle_id": stray.name})
        assert refusal(search, 404) == "unknown_bundle"
    finally:
        stray.unlink()
        run.unlink()


def test_the_evaluation_of_an_updated_bundle_is_said_to_be_of_the_trained_one(http, root):
    store = Store(root)
    trained = store.champion().bundle_id
    first = update(store.bundle_path(trained), store.bundles, Changes(deleted=["d02"]), UpdateConfig())
    second = update(first.path, store.bundles, Changes(deleted=["d03", "d04"]), UpdateConfig())
    entries = {entry["bundle_id"]: entry for entry in http.get("/v1/bundles").json()["bundles"]}
    assert "update" not in entries[trained]
    assert entries[first.path.name]["update"] == {
        "parent": trained,
        "exported": trained,
        "added": 0,
        "updated": 0,
        "deleted": 1,
        "changes": 1,
        "note": f"measured on bundle {trained}, before 1 change of documents",
    }
    told = entries[second.path.name]["update"]
    assert (told["parent"], told["exported"], told["changes"]) == (first.path.name, trained, 3)
    assert told["note"] == f"measured on bundle {trained}, before 3 changes of documents"
    for path in (first.path, second.path):
        shutil.move(path, root / path.name)


def test_changes_are_not_counted_past_a_bundle_that_is_gone(root, tmp_path):
    trained = Store(root).champion().bundle_id
    bundles = tmp_path / "bundles"
    shutil.copytree(root / "bundles" / trained, bundles / trained)
    first = update(bundles / trained, bundles, Changes(deleted=["d02"]), UpdateConfig())
    second = update(first.path, bundles, Changes(deleted=["d03"]), UpdateConfig())
    shutil.rmtree(first.path)
    told = next(one["update"] for one in listed(Store(tmp_path), 9) if one["bundle_id"] == second.path.name)
    assert told["changes"] is None
    assert told["note"] == f"measured on bundle {trained}, before changes of documents"


def test_whoever_may_judge_is_told_so(http):
    asked = http.options("/v1/judgments")
    assert (asked.status_code, asked.headers["allow"]) == (204, "GET, OPTIONS, POST")


def test_a_key_that_may_only_read_is_told_that_it_may_not_judge(root, make, monkeypatch):
    monkeypatch.setenv("TWOTOWER_READ_KEY", "read-key-of-the-test-0123456789abcdef")
    with make.server(root) as client:
        make.wait_until(lambda: client.get("/readyz").status_code == 200)
        shown = {"authorization": "Bearer read-key-of-the-test-0123456789abcdef"}
        assert refusal(client.options("/v1/judgments", headers=shown), 403) == "forbidden"
        assert refusal(client.options("/v1/judgments"), 401) == "unauthorized"


@pytest.mark.parametrize(
    ("uri", "mlflow", "page"),
    [
        ("sqlite:///a.db", None, None),
        ("https://ml.example.org/", None, "https://ml.example.org/#/experiments/7/runs/r"),
        ("sqlite:///a.db", "javascript:alert(1)", None),
    ],
)
def test_only_web_pages_are_linked(uri, mlflow, page):
    assert page_of({"run_id": "r", "uri": uri, "experiment_id": "7"}, mlflow) == page


def test_judgments_over_http_reach_the_file_that_evaluation_reads(http, root):
    shutil.rmtree(root / "judgments", ignore_errors=True)
    body = {"query": "Red Shoes", "doc_id": "d01", "grade": 3}
    first = http.post("/v1/judgments", json=body).json()
    assert (first["query"], first["grade"], first["judged"]) == ("red shoes", 3, 1)
    http.post("/v1/judgments", json={"query": "red shoes", "doc_id": "shelf/9 ü", "thumb": "down"})
    again = http.post("/v1/judgments", json={"query": "RED shoes", "doc_id": "d01", "thumb": "up"}).json()
    assert (again["grade"], again["judged"], again["query_id"]) == (2, 2, first["query_id"])
    reply = http.get("/v1/judgments", params={"query": "red  shoes"}).json()
    assert reply["judgments"] == [{"doc_id": "shelf/9 ü", "grade": 0}, {"doc_id": "d01", "grade": 2}]
    frame = read_qrels(QrelsConfig(path=Judgments(root).path))
    assert frame["relevance"].tolist() == [2.0, 0.0]
    assert http.get("/v1/judgments", params={"query": "unjudged"}).json()["judgments"] == []


def test_bad_judgments_are_refused(http):
    good = {"query": "a", "doc_id": "d01"}
    for body, code in (
        ({**good}, "invalid_grade"),
        ({**good, "grade": 4}, "invalid_grade"),
        ({**good, "grade": -1}, "invalid_grade"),
        ({**good, "grade": 1, "thumb": "up"}, "invalid_grade"),
        ({**good, "grade": True}, "invalid_request"),
        ({**good, "grade": 1.5}, "invalid_request"),
        ({**good, "thumb": "sideways"}, "invalid_request"),
        ({**good, "query": " ", "grade": 1}, "empty_query"),
        ({**good, "query": "a" * 2_001, "grade": 1}, "query_too_long"),
        ({"query": "a", "grade": 1}, "invalid_request"),
    ):
        assert refusal(http.post("/v1/judgments", json=body)) == code
    unknown = http.post("/v1/judgments", json={"query": "a", "doc_id": "nope", "grade": 1})
    assert refusal(unknown, 404) == "unknown_document"
    assert refusal(http.get("/v1/judgments")) == "invalid_request"
    assert refusal(http.get("/v1/judgments", params={"query": " "})) == "empty_query"


def test_judgments_that_cannot_be_kept_are_503(http, root):
    shutil.rmtree(root / "judgments", ignore_errors=True)
    (root / "judgments").write_text("in the way", encoding="utf-8")
    body = {"query": "a", "doc_id": "d01", "grade": 1}
    assert refusal(http.post("/v1/judgments", json=body), 503) == "judgments_unavailable"
    (root / "judgments").unlink()
