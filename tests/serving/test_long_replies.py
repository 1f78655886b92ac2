"""Replies with many hits: how many there may be, and that nobody waits for them to be written."""

import threading
from typing import Any

import httpx
import pytest

import serving.routes
from serving.api import ServeConfig
from serving.queries import QueryLimits


def code(reply: httpx.Response) -> str:
    return reply.json()["error"]["code"]


@pytest.fixture(scope="module")
def limited(shop, make):
    limits = QueryLimits(max_k=12, max_results=20)
    with make.server(shop, ServeConfig(poll_seconds=0.05, limits=limits)) as client:
        make.wait_until(lambda: client.get("/readyz").status_code == 200)
        yield client


@pytest.mark.parametrize(("ks", "status"), [((10, 10), 200), ((10, 11), 422), ((12,), 200), ((7, 7, 7), 422)])
def test_a_batch_may_ask_for_just_as_many_results_as_are_allowed(limited, ks, status):
    queries = [{"text": "red shoes", "k": k} for k in ks]
    reply = limited.post("/v1/search", json={"queries": queries})
    assert reply.status_code == status
    if status == 200:
        assert [len(part["hits"]) for part in reply.json()["results"]] == list(ks)
    else:
        assert code(reply) == "too_many_results"
        assert "at most 20" in reply.json()["error"]["message"]


@pytest.mark.parametrize(("count", "status"), [(4, 200), (5, 400)])
def test_the_open_inference_protocol_allows_as_many(limited, count, status):
    inputs = [{"name": "text", "shape": [count], "datatype": "BYTES", "data": ["red"] * count}]
    body = {"inputs": inputs, "parameters": {"k": 5}}
    assert limited.post("/v2/models/twotower/infer", json=body).status_code == status


def test_a_k_that_is_refused_in_its_place_does_not_refuse_the_batch(limited):
    queries = [{"text": "red", "k": 10}, {"text": "red", "k": 13}, {"text": "red", "k": -5}]
    parts = limited.post("/v1/search", json={"queries": queries}).json()["results"]
    assert len(parts[0]["hits"]) == 10
    assert [part["error"]["code"] for part in parts[1:]] == ["invalid_k", "invalid_k"]


@pytest.mark.parametrize("with_documents", [False, True])
@pytest.mark.parametrize("count", [1, 3, 100])
def test_a_long_reply_is_written_beside_the_event_loop_and_says_the_same(
    client, monkeypatch, with_documents, count
):
    threads: list[str] = []
    build = serving.routes._hits

    def watched(*given: Any) -> Any:
        threads.append(threading.current_thread().name)
        return build(*given)

    monkeypatch.setattr("serving.routes._hits", watched)
    query = {"text": "red shoes", "k": 20, "with_documents": with_documents}
    alone = client.post("/v1/search", json=query).json()
    threads.clear()
    parts = client.post("/v1/search", json={"queries": [query] * count}).json()["results"]
    assert len(threads) == len(parts) == count
    assert all(part["hits"] == alone["hits"] for part in parts)
    assert all(part.keys() == alone.keys() for part in parts)
    in_a_worker = ["AnyIO" in name for name in threads]
    assert in_a_worker == [with_documents or count == 100] * count
