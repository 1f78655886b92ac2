import json

import httpx
import pytest

from serving.api import ServeConfig
from serving.retriever import QueryLimits, Retriever
from serving.search import Search

TRAVERSALS = [
    "..",
    "../",
    "../../../../etc/passwd",
    "..%2f..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/etc/passwd",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "%252e%252e%252fetc%252fpasswd",
    "..%252f..%252fetc%252fpasswd",
    "..%5c..%5cwindows%5cwin.ini",
    "..\\..\\windows\\win.ini",
    "....//....//etc/passwd",
    "....\\\\....\\\\etc/passwd",
    "..;/..;/etc/passwd",
    "..%00/etc/passwd",
    "..%00",
    "%00",
    "/etc/passwd",
    "//etc/passwd",
    "///etc/passwd",
    "file:///etc/passwd",
    "file%3a%2f%2f%2fetc%2fpasswd",
    "%c0%ae%c0%ae/etc/passwd",
    "%c0%ae%c0%ae%c0%afetc%c0%afpasswd",
    "..%c0%afetc",
    "..%ef%bc%8fetc%ef%bc%8fpasswd",
    "%uff0e%uff0e%u2215etc",
    "~/.ssh/id_rsa",
    "~root",
    "./champion.json",
    "../champion.json",
    "../../champion.json",
    "bundles/../champion.json",
    "0000000000000000/../../champion.json",
    "0000000000000000%2f..%2f..%2fchampion.json",
    "manifest.json",
    "ids.json",
    "C:/windows/win.ini",
    "C%3a%5cwindows",
    "\\\\server\\share",
    "$(cat /etc/passwd)",
    "%ED%A0%80",
    "%FF%FE",
]


def search(client: httpx.Client, **body) -> dict:
    response = client.post("/v1/search", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def refusal(response: httpx.Response, status: int = 422) -> dict:
    assert response.status_code == status, response.text
    return response.json()["error"]


def test_every_reply_has_an_id_of_its_query_which_the_caller_may_choose(client):
    first, second = (search(client, text="red")["query_id"] for _ in range(2))
    assert first != second
    assert len(first) == 32
    assert search(client, text="red", query_id="mine-7")["query_id"] == "mine-7"
    assert len(client.get("/v1/documents/d01/neighbors").json()["query_id"]) == 32


def test_a_batch_answers_in_order_and_a_bad_query_touches_no_other(client, bundle):
    queries = [
        {"text": "red shoes"},
        {"text": ""},
        {"text": "tea", "k": 2},
        7,
        {"txt": "a"},
        {"text": "a", "k": "3"},
    ]
    reply = search(client, queries=queries, k=4, with_documents=True)
    assert reply["bundle_id"] == bundle.bundle_id
    assert [result["error"]["code"] if "error" in result else None for result in reply["results"]] == [
        None,
        "empty_query",
        None,
        "invalid_request",
        "invalid_request",
        "invalid_request",
    ]
    first, _, third, *bad = reply["results"]
    alone = search(client, text="red shoes", k=4, with_documents=True)
    assert [hit["doc_id"] for hit in first["hits"]] == [hit["doc_id"] for hit in alone["hits"]]
    assert first["hits"][0].keys() == alone["hits"][0].keys()
    assert len(third["hits"]) == 2
    assert third["bundle_id"] == bundle.bundle_id
    assert third["query_id"] != first["query_id"]
    assert "txt: unknown field; allowed: text, history" in bad[1]["error"]["message"]
    assert bad[2]["error"]["message"].startswith("k: ")


def test_a_batch_as_large_as_allowed_is_answered_and_one_larger_is_not(client):
    assert len(search(client, queries=[{"text": "red"}] * 100, k=1)["results"]) == 100
    error = refusal(client.post("/v1/search", json={"queries": [{"text": "red"}] * 101}))
    assert (error["code"], "101 queries; a batch must have 1 to 100" in error["message"]) == (
        "invalid_batch",
        True,
    )
    assert refusal(client.post("/v1/search", json={"queries": []}))["code"] == "invalid_batch"
    both = client.post("/v1/search", json={"queries": [{"text": "red"}], "text": "blue"})
    assert "inside of each" in refusal(both)["message"]


def test_limits_hold_at_their_value_and_one_past_it(shop, make):
    limits = QueryLimits(max_k=5, max_text=10, max_exclude=3, max_filters=2, max_batch=2, max_document=6)
    with make.server(shop, ServeConfig(poll_seconds=0.05, limits=limits)) as client:
        make.wait_until(lambda: client.get("/readyz").status_code == 200)
        for fits, beyond, code in (
            ({"k": 5}, {"k": 6}, "invalid_k"),
            ({"text": "a" * 10}, {"text": "a" * 11}, "query_too_long"),
            ({"exclude": ["d01"] * 3}, {"exclude": ["d01"] * 4}, "too_many_excluded"),
            ({"exclude": ["x" * 512]}, {"exclude": ["x" * 513]}, "invalid_request"),
            ({"query_id": "x" * 128}, {"query_id": "x" * 129}, "invalid_request"),
            ({"user_id": "x" * 512}, {"user_id": "x" * 513}, "invalid_request"),
            (
                {"filters": {"doc_id": {"in": ["a", "b"]}}},
                {"filters": {"doc_id": {"in": ["a", "b", "c"]}}},
                "too_many_filters",
            ),
        ):
            search(client, **{"text": "red", "k": 1, **fits})
            answer = client.post("/v1/search", json={"text": "red", "k": 1, **beyond})
            assert refusal(answer)["code"] == code
        search(client, queries=[{"text": "a", "k": 1}] * 2)
        three = client.post("/v1/search", json={"queries": [{"text": "a", "k": 1}] * 3})
        assert refusal(three)["code"] == "invalid_batch"
        embed = [{"title": "a" * 3, "text": "b" * 3}]
        assert client.post("/v1/embed", json={"documents": embed}).status_code == 200
        longer = [{"title": "a" * 4, "text": "b" * 3}]
        assert refusal(client.post("/v1/embed", json={"documents": longer}))["code"] == "document_too_long"
        assert client.get("/v1/judgments", params={"query": "a" * 10}).status_code == 200
        assert refusal(client.get("/v1/judgments", params={"query": "a" * 11}))["code"] == "query_too_long"


def test_a_history_as_long_as_allowed_is_answered_and_one_longer_is_not(cinema, make):
    config = ServeConfig(poll_seconds=0.05, limits=QueryLimits(max_history=3))
    with make.server(cinema, config) as client:
        make.wait_until(lambda: client.get("/readyz").status_code == 200)
        search(client, history=["d00", "d01", "d02"])
        longer = client.post("/v1/search", json={"history": ["d00", "d01", "d02", "d03"]})
        assert refusal(longer)["code"] == "invalid_history"


def test_filters_and_their_mistakes(client):
    reply = search(client, text="red", k=50, filters={"title": {"in": ["red desk lamp", "red tea kettle"]}})
    assert len(reply["hits"]) == 2
    for filters, code in (
        ({"nothing": 1}, "unknown_field"),
        ({"clicks": "many"}, "invalid_filter"),
        ({"clicks": {"gte": [1]}}, "invalid_filter"),
        ({"clicks": {"gte": 10**400}}, "invalid_filter"),
        ({"title": {"gte": "a"}}, "invalid_filter"),
        ({"\ud800": 1}, None),
        ({"title": "\ud800"}, None),
        ([], "invalid_request"),
    ):
        response = client.post(
            "/v1/search",
            content=json.dumps({"text": "a", "filters": filters}),
            headers={"content-type": "application/json"},
        )
        if code is None:
            assert response.status_code < 500
        else:
            assert refusal(response)["code"] == code
    for number in ("NaN", "Infinity", "-Infinity", "1e999"):
        body = f'{{"text": "a", "filters": {{"clicks": {{"gte": {number}}}}}}}'
        response = client.post("/v1/search", content=body, headers={"content-type": "application/json"})
        assert refusal(response)["code"] == "invalid_filter"


def test_hybrid_and_an_explanation_over_http(client, bundle):
    reply = search(client, text="Red SHOES", k=3, mode="hybrid", explain=True)
    answer = Retriever(bundle).answer(Search(text="red shoes", k=3, mode="hybrid"))
    assert [hit["doc_id"] for hit in reply["hits"]] == [hit.doc_id for hit in answer.hits]
    why = reply["explanation"]
    assert (why["text"], why["words"], why["tokens"]) == ("red shoes", ["red", "shoes"], 2)
    assert "faiss" in why["index"]
    first = why["hits"][0]
    assert reply["hits"][0]["score"] == pytest.approx(first["dense_share"] + first["bm25_share"])


def test_a_query_by_picture_is_refused_clearly(client):
    error = refusal(client.post("/v1/search", json={"image": "https://example.org/a.png"}))
    assert error["code"] == "unsupported_input"
    assert "not supported yet by this bundle" in error["message"]


def test_a_document_is_shown_with_its_columns(client):
    reply = client.get("/v1/documents/shelf%2F9%20%C3%BC").json()
    assert (reply["doc_id"], reply["title"], reply["text"], reply["fields"]) == (
        "shelf/9 ü",
        "",
        "no title",
        {},
    )
    assert refusal(client.get("/v1/documents/nope"), 404)["code"] == "unknown_document"


def test_vectors_of_queries_and_documents_score_as_the_search_does(client, bundle):
    query = client.post("/v1/embed", json={"queries": [{"text": "red shoes"}]}).json()
    assert (query["tower"], query["dimension"], query["similarity"]) == ("query", 16, "cosine")
    assert len(query["vectors"][0]) == 16
    known = {"title": "red running shoes", "text": "a running shoes in red"}
    document = client.post("/v1/embed", json={"documents": [known, {"title": "tea"}]}).json()
    assert document["tower"] == "document"
    hits = search(client, text="red shoes", k=100)["hits"]
    score = next(hit["score"] for hit in hits if hit["doc_id"] == "d00")  # it has no clicks either
    product = sum(a * b for a, b in zip(query["vectors"][0], document["vectors"][0], strict=True))
    assert product == pytest.approx(score, abs=1e-5)
    for body, code in (
        ({}, "invalid_batch"),
        ({"queries": []}, "invalid_batch"),
        ({"queries": [{"text": "a"}], "documents": [known]}, "invalid_batch"),
        ({"queries": [{"text": "a"}] * 101}, "invalid_batch"),
        ({"queries": [{"text": "a"}, {"text": " "}]}, "empty_query"),
        ({"queries": [{"history": ["d01"]}]}, "wrong_input"),
        ({"documents": [{}]}, "empty_document"),
        ({"documents": [{"title": 5}]}, "invalid_request"),
        ({"documents": [{"name": "a"}]}, "invalid_request"),
    ):
        assert refusal(client.post("/v1/embed", json=body))["code"] == code


def test_the_timings_of_a_batch_count_the_calls_that_its_queries_share_once(client):
    queries = [
        {"text": f"red shoes {n}", "mode": mode} for n in range(25) for mode in ("dense", "bm25", "hybrid")
    ]
    reply = client.post("/v1/search", json={"queries": queries}).json()  # answered in two calls
    spent = reply["timings_ms"]
    parts = [result["timings_ms"] for result in reply["results"]]
    assert spent["encode"] + spent["search"] <= spent["total"]
    assert max(part["search"] for part in parts) <= spent["search"] < sum(part["search"] for part in parts)
    assert spent["encode"] == pytest.approx(sum({part["encode"] for part in parts}), abs=0.01)


def test_half_a_character_of_a_document_or_query_is_as_if_it_were_not_there(client):
    def embedded(**what):
        response = client.post(
            "/v1/embed", content=json.dumps(what), headers={"content-type": "application/json"}
        )
        assert response.status_code == 200, response.text
        return response.json()["vectors"][0]

    cut = embedded(documents=[{"title": "red \ud800shoes", "text": "\udc00light"}])
    assert cut == embedded(documents=[{"title": "red shoes", "text": "light"}])
    assert embedded(queries=[{"text": "tea\ud800"}]) == embedded(queries=[{"text": "tea"}])
    nothing = client.post(
        "/v1/embed",
        content=b'{"documents": [{"title": "\\ud800", "text": " \\udc00"}]}',
        headers={"content-type": "application/json"},
    )
    assert refusal(nothing)["code"] == "empty_document"


@pytest.mark.parametrize("bad", TRAVERSALS)
def test_no_id_leads_to_a_file_or_fails(client, bad):
    replies = [
        client.get(f"/v1/documents/{bad}"),
        client.get(f"/v1/documents/{bad}/neighbors"),
        client.get(f"/v2/models/{bad}"),
        client.get(f"/v2/models/twotower/versions/{bad}"),
        client.get(f"/page/{bad}"),
        client.get("/v1/documents/d01/neighbors", params={"bundle_id": bad}),
        client.post("/v1/search", json={"text": "a", "bundle_id": bad}),
        client.post("/v1/search", json={"text": "a", "exclude": [bad], "query_id": bad, "user_id": bad}),
        client.post("/v1/search", json={"text": "a", "filters": {bad: bad}}),
        client.post("/v1/embed", json={"queries": [{"text": "a"}], "bundle_id": bad}),
        client.post("/v1/judgments", json={"query": "a", "doc_id": bad, "grade": 1}),
        client.get("/v1/judgments", params={"query": bad}),
        client.post(f"/v2/models/twotower/versions/{bad}/infer", json={"inputs": []}),
    ]
    for reply in replies:
        assert reply.status_code < 500, (str(reply.url), reply.text)
        assert "root:" not in reply.text
        assert "promoted_at" not in reply.text
        assert '"sha256"' not in reply.text
