import gc
import json
import socket
import threading
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from features.errors import ConfigError
from serving.api import ServeConfig, serve
from serving.follow import Follower
from serving.gate import CapsConfig
from serving.retriever import QueryLimits, Retriever
from serving.server import spare_collector
from serving.site import PAGE
from serving.store import Store


def refusal(response: httpx.Response) -> dict:
    """The one shape of every refusal."""
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"code", "message"}
    assert "\n" not in body["error"]["message"]
    return body["error"]


def test_a_search_answers_with_the_bundles_ids_scores_and_timings(client, bundle):
    reply = client.post("/v1/search", json={"text": "red shoes", "k": 5}).json()
    expected = Retriever(bundle).search("red shoes", k=5)
    assert reply["bundle_id"] == bundle.bundle_id
    assert [hit["doc_id"] for hit in reply["hits"]] == [hit.doc_id for hit in expected]
    assert [hit["score"] for hit in reply["hits"]] == pytest.approx([hit.score for hit in expected], abs=1e-6)
    assert reply["timings_ms"].keys() == {"encode", "search", "total"}
    assert reply["notes"] == []
    assert reply["hits"][0].keys() == {"rank", "doc_id", "score"}


def test_bm25_and_documents_come_on_request(client):
    body = {"text": "blue scarf", "k": 2, "mode": "bm25", "with_documents": True}
    hit = client.post("/v1/search", json=body).json()["hits"][0]
    assert hit["title"] == "blue wool scarf"
    assert hit["text"] == "a wool scarf in blue"
    assert hit["matched_terms"] == ["blue", "scarf"]


def test_k_beyond_the_corpus_is_clipped_and_declared(client, bundle):
    reply = client.post("/v1/search", json={"text": "red shoes", "k": 900}).json()
    size = len(bundle.doc_ids)
    assert reply["k"] == len(reply["hits"]) == size
    assert reply["notes"] == [f"k was clipped from 900 to the corpus of {size} documents"]


def test_excluded_documents_stay_out(client):
    first = client.post("/v1/search", json={"text": "red shoes", "k": 1}).json()["hits"][0]["doc_id"]
    reply = client.post("/v1/search", json={"text": "red shoes", "k": 900, "exclude": [first]}).json()
    assert first not in [hit["doc_id"] for hit in reply["hits"]]
    assert "22 documents were found, of those that are not excluded" in reply["notes"]


@pytest.mark.parametrize(
    "text", ["茶壶", "🍵", "ＲＥＤ", "a" * 2_000, "' OR 1=1 --", "%00", "\u202ered", "null"]
)
def test_any_script_and_any_oddity_is_answered(client, text):
    response = client.post("/v1/search", json={"text": text})
    assert response.status_code == 200
    assert len(response.json()["hits"]) == 10


def test_neighbours_of_any_id_are_found_and_unknown_ids_are_404(client, bundle):
    reply = client.get("/v1/documents/shelf%2F9%20%C3%BC/neighbors", params={"k": 3}).json()
    assert reply["doc_id"] == "shelf/9 ü"
    assert [hit["doc_id"] for hit in reply["hits"]] == [
        hit.doc_id for hit in Retriever(bundle).neighbors("shelf/9 ü", 3).hits
    ]
    for doc_id in ("nope", "..%2F..%2Fetc%2Fpasswd", "%00", "%ED%A0%80", "d01%20"):
        response = client.get(f"/v1/documents/{doc_id}/neighbors")
        assert response.status_code == 404
        assert refusal(response)["code"] == "unknown_document"


BAD_BODIES = {
    "empty query": (b'{"text": ""}', 422, "empty_query"),
    "blank query": (b'{"text": " \\u200b "}', 422, "empty_query"),
    "no query": (b"{}", 422, "empty_query"),
    "one character too long": (json.dumps({"text": "a" * 2_001}).encode(), 422, "query_too_long"),
    "1 MB": (json.dumps({"text": "a" * 1_000_000}).encode(), 413, "body_too_large"),
    "just below 1 MB": (json.dumps({"text": "a" * 999_000}).encode(), 422, "query_too_long"),
    "k of zero": (b'{"text": "a", "k": 0}', 422, "invalid_k"),
    "k too large": (b'{"text": "a", "k": 1001}', 422, "invalid_k"),
    "k absurd": (b'{"text": "a", "k": 1' + b"0" * 300 + b"}", 422, "invalid_k"),
    "k unreadable": (b'{"text": "a", "k": 1' + b"0" * 6_000 + b"}", 400, "bad_request"),
    "k a text": (b'{"text": "a", "k": "10"}', 422, "invalid_request"),
    "k a fraction": (b'{"text": "a", "k": 1.5}', 422, "invalid_request"),
    "k not a number": (b'{"text": "a", "k": NaN}', 422, "invalid_request"),
    "k infinite": (b'{"text": "a", "k": Infinity}', 422, "invalid_request"),
    "k true": (b'{"text": "a", "k": true}', 422, "invalid_request"),
    "a number as text": (b'{"text": 5}', 422, "invalid_request"),
    "a history for a text bundle": (b'{"history": ["d01"]}', 422, "wrong_input"),
    "numbers as history": (b'{"history": [1]}', 422, "invalid_request"),
    "an endless id": (json.dumps({"text": "a", "exclude": ["x" * 513]}).encode(), 422, "invalid_request"),
    "too many excluded": (
        json.dumps({"text": "a", "exclude": ["x"] * 10_001}).encode(),
        422,
        "too_many_excluded",
    ),
    "unknown mode": (b'{"text": "a", "mode": "magic"}', 422, "invalid_request"),
    "unknown field": (b'{"text": "a", "colour": "red"}', 422, "invalid_request"),
    "a field that is no text": (b'{"text": "a", "\\ud800": 1}', 422, "invalid_request"),
    "half a character": (b'{"text": "\\ud800"}', 422, None),
    "a list": (b"[]", 422, "invalid_request"),
    "null": (b"null", 422, "invalid_request"),
    "no JSON": (b"{text: a}", 422, "invalid_request"),
    "nothing": (b"", 422, "invalid_request"),
    "not UTF-8": (b'{"text": "\xff\xfe"}', 400, "bad_request"),
    "brackets without end": (b"[" * 100_000, 400, "bad_request"),
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_bad_input_gets_a_4xx_in_the_one_shape(client, name):
    body, status, code = BAD_BODIES[name]
    response = client.post("/v1/search", content=body, headers={"content-type": "application/json"})
    assert response.status_code == status, response.text
    error = refusal(response)
    assert code is None or error["code"] == code
    assert len(error["message"]) <= 500


def test_an_unknown_route_method_and_content_type_are_refused_in_the_one_shape(client):
    assert refusal(client.get("/v1/nothing"))["code"] == "not_found"
    assert refusal(client.get("/v1/search"))["code"] == "method_not_allowed"
    response = client.post("/v1/search", content="text=a", headers={"content-type": "text/plain"})
    assert response.status_code == 422
    refusal(response)
    for path in ("/page/../api.py", "/page/%2e%2e/api.py", "/page/..%2fapi.py"):
        response = client.get(path)
        assert response.status_code == 404
        refusal(response)


@pytest.mark.parametrize(
    ("body", "kind", "hint"),
    [
        ('{"query": "a"}', "application/json", "query: unknown field; allowed: text, history, k"),
        ("{text: a}", "application/json", 'the body is not JSON; send an object such as {"text"'),
        ('{"text": "a"}', "application/x-www-form-urlencoded", "with 'content-type: application/json'"),
        ("[]", "application/json", "the body is no JSON object"),
    ],
)
def test_a_wrong_body_is_told_what_to_send(client, body, kind, hint):
    assert hint in refusal(client.post("/v1/search", content=body, headers={"content-type": kind}))["message"]


def test_a_body_without_a_declared_length_is_capped_too(client):
    def chunks():
        for _ in range(200):
            yield b" " * 10_000

    response = client.post("/v1/search", content=chunks(), headers={"content-type": "application/json"})
    assert response.status_code == 413
    assert refusal(response)["code"] == "body_too_large"


def test_k_of_neighbours_is_checked(client):
    assert refusal(client.get("/v1/documents/d01/neighbors?k=0"))["code"] == "invalid_k"
    assert refusal(client.get("/v1/documents/d01/neighbors?k=x"))["code"] == "invalid_request"
    assert client.get("/v1/documents/d01/neighbors?k=900").json()["k"] == 23


def test_the_bundle_is_described_without_its_canaries(client, bundle):
    reply = client.get("/v1/bundle").json()
    assert reply["bundle_id"] == bundle.bundle_id
    assert reply["query_inputs"] == ["text"]
    assert reply["documents"] == 23
    assert "faiss" in reply["index"]
    assert "canaries" not in reply["manifest"]
    assert reply["manifest"]["index"]["ann_recall"]["value"] == 1.0
    assert reply["refused"] is None


def test_openapi_describes_every_route_and_the_pages_load_nothing_from_elsewhere(client):
    paths = client.get("/openapi.json").json()["paths"]
    model = "/v2/models/{name}"
    assert paths.keys() == {
        "/v1/search",
        "/v1/documents/{doc_id}/neighbors",
        "/v1/documents/{doc_id}",
        "/v1/embed",
        "/v1/bundle",
        "/v1/bundles",
        "/v1/judgments",
        "/v1/events",
        "/v1/admin/rollback",
        "/livez",
        "/readyz",
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
        *(
            f"{model}{version}{what}"
            for version in ("", "/versions/{version}")
            for what in ("", "/ready", "/infer")
        ),
    }
    assert "503" in paths["/v1/search"]["post"]["responses"]
    for path in (
        "/",
        "/docs",
        *(f"/page/{path.name}" for path in PAGE.iterdir() if path.suffix in (".js", ".css")),
    ):
        response = client.get(path)
        assert response.status_code == 200
        assert "default-src 'self'" in response.headers["content-security-policy"]
        assert "https://" not in response.text


def test_a_recommender_answers_a_history_and_names_what_it_does_not_know(cinema, make):
    with make.server(cinema) as client:
        make.wait_until(lambda: client.get("/readyz").status_code == 200)
        reply = client.post("/v1/search", json={"history": ["d00", "gone"], "k": 100}).json()
        assert reply["unknown_history"] == ["gone"]
        assert "d00" not in [hit["doc_id"] for hit in reply["hits"]]
        assert any("not in the catalogue" in note for note in reply["notes"])
        assert refusal(client.post("/v1/search", json={"text": "red"}))["code"] == "wrong_input"
        assert refusal(client.post("/v1/search", json={"history": ["gone"]}))["code"] == "unknown_history"
        assert refusal(client.post("/v1/search", json={"history": []}))["code"] == "invalid_history"


def test_the_server_is_alive_but_not_ready_until_a_champion_is_checked(tmp_path, make):
    with make.server(tmp_path) as client:
        assert client.get("/livez").json() == {"live": True}
        make.wait_until(lambda: "no champion yet" in client.get("/readyz").text)
        for response in (
            client.get("/readyz"),
            client.post("/v1/search", json={"text": "a"}),
            client.get("/v1/bundle"),
        ):
            assert response.status_code == 503
            assert response.headers["retry-after"] == "1"
            assert refusal(response)["code"] == "not_ready"
        assert client.get("/v1/bundles").json() == {"bundles": []}  # of use just then
        bundle_id = make.shop(tmp_path).path.name
        Store(tmp_path).set_champion(bundle_id, "first")
        make.wait_until(lambda: client.get("/readyz").status_code == 200)
        assert client.get("/readyz").json() == {"ready": True, "bundle_id": bundle_id}


def test_a_promotion_swaps_the_bundle_without_a_failed_or_mixed_reply(tmp_path, make):
    first, second = make.shop(tmp_path).path.name, make.shop(tmp_path, seed=9).path.name
    store = Store(tmp_path)
    store.set_champion(first, "first")
    answers: dict[str, set[str]] = {}
    stop, failures = threading.Event(), []

    def ask(client: httpx.Client) -> None:
        while not stop.is_set():
            response = client.post("/v1/search", json={"text": "red shoes", "k": 5})
            if response.status_code != 200:
                failures.append(response.text)
                return
            reply = response.json()
            hits = [(hit["doc_id"], f"{hit['score']:.4f}") for hit in reply["hits"]]  # batches round apart
            answers.setdefault(reply["bundle_id"], set()).add(json.dumps(hits))

    with make.server(tmp_path) as client:
        make.wait_until(lambda: client.get("/readyz").status_code == 200)
        threads = [threading.Thread(target=ask, args=(client,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for bundle_id in (second, first, second):
                store.set_champion(bundle_id, "swap")
                make.wait_until(lambda wanted=bundle_id: client.get("/readyz").json()["bundle_id"] == wanted)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert failures == []
    assert answers.keys() == {first, second}
    assert all(len(replies) == 1 for replies in answers.values())
    assert answers[first] != answers[second]


def test_a_broken_champion_is_refused_and_the_old_bundle_keeps_serving(tmp_path, make, caplog):
    first, second = make.shop(tmp_path).path.name, make.shop(tmp_path, seed=9).path.name
    store = Store(tmp_path)
    store.set_champion(first, "first")
    weights = next((store.bundles / second / "query").glob("*.safetensors"))
    sound = weights.read_bytes()
    with make.server(tmp_path) as client:
        make.wait_until(lambda: client.get("/readyz").status_code == 200)
        store.set_champion(second, "broken soon")
        pointer = store.pointer.read_bytes()
        make.wait_until(lambda: client.get("/readyz").json()["bundle_id"] == second)
        store.set_champion(first, "back")
        make.wait_until(lambda: client.get("/readyz").json()["bundle_id"] == first)

        weights.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
        store.pointer.write_bytes(pointer)
        make.wait_until(lambda: client.get("/v1/bundle").json()["refused"] is not None)
        reply = client.get("/v1/bundle").json()
        assert reply["bundle_id"] == first
        assert reply["refused"]["bundle_id"] == second
        assert "SHA-256" in reply["refused"]["message"]
        assert client.post("/v1/search", json={"text": "red"}).json()["bundle_id"] == first
        assert any("SHA-256" in record.message and first in record.message for record in caplog.records)

        store.pointer.write_bytes(b"{")
        make.wait_until(lambda: "damaged" in client.get("/v1/bundle").json()["refused"]["message"])
        assert client.post("/v1/search", json={"text": "red"}).status_code == 200

        weights.write_bytes(sound)
        store.pointer.write_bytes(pointer)
        make.wait_until(lambda: client.get("/readyz").json()["bundle_id"] == second)
        assert client.get("/v1/bundle").json()["refused"] is None


@pytest.mark.parametrize(("retry_seconds", "recovers"), [(60.0, False), (0.0, True)])
def test_a_refused_bundle_is_tried_again_after_a_while(tmp_path, make, monkeypatch, retry_seconds, recovers):
    monkeypatch.setattr("serving.follow.RETRY_SECONDS", retry_seconds)
    bundle_id = make.shop(tmp_path).path.name
    store = Store(tmp_path)
    store.set_champion(bundle_id, "first")
    ids = store.bundles / bundle_id / "ids.json"
    sound = ids.read_bytes()
    ids.write_bytes(sound[:-2])
    follower = Follower(store)
    follower.check()
    assert "ids.json" in follower.refusal.message
    ids.write_bytes(sound)  # neither pointer nor manifest changes
    follower.check()
    assert (follower.served is not None) is recovers
    assert (follower.refusal is None) is recovers


def test_limits_of_the_configuration_are_those_of_the_server(shop, make):
    caps = CapsConfig(max_body_bytes=1_000)
    config = ServeConfig(poll_seconds=0.05, caps=caps, limits=QueryLimits(max_k=3))
    with make.server(shop, config) as client:
        make.wait_until(lambda: client.get("/readyz").status_code == 200)
        assert refusal(client.post("/v1/search", json={"text": "a", "k": 4}))["code"] == "invalid_k"
        assert client.post("/v1/search", json={"text": "a", "k": 3}).status_code == 200
        assert client.post("/v1/search", json={"text": "a" * 1_000, "k": 3}).status_code == 413


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_a_public_address_is_refused_while_there_are_no_keys(tmp_path: Path, host, monkeypatch):
    monkeypatch.delenv("TWOTOWER_READ_KEY", raising=False)
    monkeypatch.delenv("TWOTOWER_ADMIN_KEY", raising=False)
    with pytest.raises(ConfigError, match="not loopback"):
        serve(tmp_path, ServeConfig(host=host))


def test_an_address_that_is_taken_is_one_line(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}.*another port"):
            serve(tmp_path, ServeConfig(port=port))


def test_unknown_settings_are_refused():
    with pytest.raises(ValidationError, match="workers"):
        ServeConfig(workers=3)


def test_what_a_swap_loaded_is_kept_out_of_garbage_collections(shop):
    follower = Follower(Store(shop), device="cpu")
    follower.after_swap = spare_collector
    try:
        follower.check()
        assert follower.swaps == 1
        assert gc.get_freeze_count() > 100_000
        before = gc.get_freeze_count()
        spare_collector()
        assert gc.get_freeze_count() < 1.1 * before
    finally:
        gc.unfreeze()
