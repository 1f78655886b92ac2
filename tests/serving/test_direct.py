import json
from typing import Any

import httpx
import pytest

from serving.store import Store

BODIES: list[Any] = [
    {"text": "red shoes", "k": 3},
    {"text": "red shoes", "mode": "hybrid", "explain": True, "with_documents": True},
    {"text": "red shoes", "filters": {"clicks": {"gte": 3}}, "exclude": ["d01"]},
    {"queries": [{"text": "tea"}, {"k": 2}, 7], "k": 1},
    {"queries": []},
    {"text": ""},
    {"history": ["d01"]},
    {"text": "a", "k": 0},
    {"text": "a", "k": 10.0},
    {"text": "a", "k": True},
    {"text": "a", "filters": {"nowhere": 1}},
    {"text": "a", "filters": {"clicks": float("nan")}},
    {"text": "a", "filters": {"clicks": 10**400}},
    {"text": "a", "bundle_id": "f" * 16},
    {"text": "a", "bundle_id": "no"},
    {"text": "a", "unknown": 1},
    {"text": "a", "image": "x"},
    {"text": 7},
    [],
    None,
    b"",
    b"{",
    b'{"text": "a", "text": "b"}',
    b'{"text": "\\ud800"}',
    b"\xff\xfe{}",
    "[" * 100_000,
]


def ask(client: httpx.Client, body: Any, kind: str) -> tuple[int, dict[str, Any]]:
    """Status and body, without what differs from one request to the next."""
    content = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else None
    content = json.dumps(body).encode() if content is None else content
    reply = client.post("/v1/search", content=content, headers={"Content-Type": kind})
    told = reply.json()
    for part in (told, *(told.get("results") or [])):
        part.pop("query_id", None), part.pop("timings_ms", None)
    return reply.status_code, told


@pytest.mark.parametrize("body", BODIES, ids=lambda body: str(body)[:40])
def test_the_short_way_answers_and_refuses_as_the_long_one_does(client: httpx.Client, body: Any) -> None:
    assert ask(client, body, "application/json") == ask(client, body, "application/json; charset=utf-8")


@pytest.mark.parametrize("first", ["text/plain", "application/json"])
@pytest.mark.parametrize("second", ["application/json", "application/json; charset=utf-8", "text/plain"])
def test_of_two_content_types_both_ways_go_by_the_first(
    client: httpx.Client, first: str, second: str
) -> None:
    headers = [("Content-Type", first), ("Content-Type", second)]
    reply = client.post("/v1/search", content=b'{"text": "tea"}', headers=headers)
    assert reply.status_code == (200 if first == "application/json" else 422)


def test_both_ways_count_as_the_same_route_and_only_a_post_is_a_search(client: httpx.Client) -> None:
    def counted() -> float:
        lines = client.get("/metrics").text.splitlines()
        name = 'twotower_request_seconds_count{route="/v1/search",status="200"}'
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    before = counted()
    for kind in ("application/json", "application/json; charset=utf-8"):
        assert ask(client, {"text": "tea"}, kind)[0] == 200
    assert counted() == before + 2
    assert client.get("/v1/search", headers={"Content-Type": "application/json"}).status_code == 405


def test_without_a_bundle_the_short_way_is_a_503_too(make: Any, tmp_path: Any) -> None:
    with make.server(Store(tmp_path).root) as client:
        assert ask(client, {"text": "tea"}, "application/json")[0] == 503
        assert ask(client, {"text": "tea"}, "application/json; charset=utf-8")[0] == 503
