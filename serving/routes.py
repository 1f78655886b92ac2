"""The routes that search. Every request takes one bundle and uses it to the end."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, NamedTuple, cast

import anyio.to_thread
import numpy as np
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from serving.bundle_routes import bundles
from serving.current import Current, answers, encoded, retriever_of, timings
from serving.documents import documents_at
from serving.embedding import embedding
from serving.mistakes import checked_part, printable
from serving.open_inference import inference
from serving.queries import check_results, row_of
from serving.query_log import new_query_id
from serving.retriever import Answer, QueryError, Retriever
from serving.search import Search
from serving.site import PAGE as PAGE
from serving.site import site
from serving.wire import (
    REFUSALS,
    BatchReply,
    BundleId,
    DocumentReply,
    ErrorBody,
    ErrorReply,
    HitReply,
    NeighborsReply,
    QueryBody,
    SearchReply,
    SearchRequest,
)

_TEXT_SHOWN = 280
_MANY_HITS = 1_000
_OF_THE_WHOLE = frozenset({"queries", "bundle_id"})

router = APIRouter(responses=REFUSALS)


class _Found(NamedTuple):
    """What was found for a query."""

    body: QueryBody
    query_id: str
    answer: Answer


@router.post("/v1/search", response_model=SearchReply | BatchReply)
async def search(request: Request, body: SearchRequest, current: Current) -> Response:
    """Find the documents nearest to a text or to a history; or to each of many, with `queries`."""
    started = time.perf_counter()
    retriever = await retriever_of(request, current, body.bundle_id)
    asked = [body] if body.queries is None else _parts(body, retriever)
    found = await _answered(request, retriever, asked)
    if body.queries is None and isinstance(found[0], QueryError):
        raise found[0]
    write = partial(_one if body.queries is None else _batch, retriever, found, started)
    return _json(await anyio.to_thread.run_sync(write) if _is_long(found) else write())


@router.get("/v1/documents/{doc_id:path}/neighbors", response_model=NeighborsReply)
async def neighbors(
    request: Request,
    doc_id: str,
    current: Current,
    k: Annotated[int, Query(description="how many documents to return")] = 10,
    with_documents: Annotated[bool, Query(description="whether hits carry their document")] = False,
    bundle_id: Annotated[BundleId | None, Query(description="another bundle than the champion")] = None,
) -> Response:
    """Find the documents nearest to a document by the bundle's similarity."""
    started = time.perf_counter()
    retriever = await retriever_of(request, current, bundle_id)
    answer = await encoded(request, retriever.neighbors, doc_id, k)
    query_id, bundle = new_query_id(), retriever.bundle.bundle_id
    request.app.state.query_log.served(query_id, bundle, Search(), answer, doc_id)

    def write() -> str:
        return NeighborsReply(
            bundle_id=bundle,
            query_id=query_id,
            doc_id=doc_id,
            k=answer.k,
            hits=_hits(retriever, answer, "" if with_documents else None),
            notes=answer.notes,
            timings_ms=timings(started, answer.encode_ms, answer.search_ms),
        ).model_dump_json(exclude_none=True)

    return _json(await anyio.to_thread.run_sync(write) if with_documents else write())


@router.get("/v1/documents/{doc_id:path}", response_model_exclude_none=True)
async def document(
    request: Request,
    doc_id: str,
    current: Current,
    bundle_id: Annotated[BundleId | None, Query(description="another bundle than the champion")] = None,
) -> DocumentReply:
    """Return a document of a bundle's catalogue with all its columns."""
    bundle = (await retriever_of(request, current, bundle_id)).bundle
    found = documents_at(bundle.documents, [row_of(doc_id, bundle)])[0]
    return DocumentReply(
        bundle_id=bundle.bundle_id,
        doc_id=found.doc_id,
        title=found.title,
        text=found.text,
        image=found.image,
        updated_at=found.updated_at,
        fields=found.fields,
    )


def _parts(body: SearchRequest, retriever: Retriever) -> list[QueryBody | QueryError]:
    """Return the queries of a batch, each with what the whole request says unless it says otherwise."""
    queries = body.queries or []
    most = retriever.limits.max_batch
    if not 1 <= len(queries) <= most:
        raise QueryError("invalid_batch", f"{len(queries)} queries; a batch must have 1 to {most}")
    if body.text is not None or body.history is not None or body.query_id is not None:
        raise QueryError("invalid_batch", "give text, history and query_id inside of each of the queries")
    shared = {name: getattr(body, name) for name in body.model_fields_set - _OF_THE_WHOLE}
    parts: list[QueryBody | QueryError] = []
    for query in queries:
        try:
            merged = {**shared, **query} if isinstance(query, Mapping) else query
            parts.append(checked_part(QueryBody, merged))
        except QueryError as refusal:
            parts.append(refusal)
    check_results([part.k for part in parts if isinstance(part, QueryBody)], retriever.limits)
    return parts


async def _answered(
    request: Request, retriever: Retriever, asked: Sequence[QueryBody | QueryError]
) -> list[_Found | QueryError]:
    """Answer queries together; a refusal stands where its query stood."""
    checked = [one if isinstance(one, QueryError) else _checked(one) for one in asked]
    searches = [one[1] for one in checked if not isinstance(one, QueryError)]
    answered = iter(await answers(request, retriever, searches) if searches else ())
    found: list[_Found | QueryError] = []
    for one in checked:
        if isinstance(one, QueryError):
            found.append(one)
            continue
        (body, wanted), answer = one, next(answered)
        if isinstance(answer, QueryError):
            found.append(answer)
            continue
        query_id = body.query_id or new_query_id()
        request.app.state.query_log.served(query_id, retriever.bundle.bundle_id, wanted, answer)
        found.append(_Found(body, query_id, answer))
    return found


def _is_long(found: Sequence[_Found | QueryError]) -> bool:
    """Return whether writing the reply takes so long that other requests should not wait for it."""
    answered = [one for one in found if isinstance(one, _Found)]
    hits = sum(len(one.answer.hits) for one in answered)
    return hits > _MANY_HITS or any(one.body.with_documents for one in answered)


def _one(retriever: Retriever, found: Sequence[_Found | QueryError], started: float) -> str:
    """Write the reply to a query."""
    return _reply(retriever, cast(_Found, found[0]), started).model_dump_json(exclude_none=True)


def _batch(retriever: Retriever, found: Sequence[_Found | QueryError], started: float) -> str:
    """Write the reply to a batch: each part alone, since pydantic lets no other thread go on meanwhile."""
    parts: list[str] = []
    for one in found:
        reply = _refused(one) if isinstance(one, QueryError) else _reply(retriever, one, started)
        parts.append(reply.model_dump_json(exclude_none=True))
    spent = timings(started, *_spent([one.answer for one in found if isinstance(one, _Found)]))
    empty = BatchReply(bundle_id=retriever.bundle.bundle_id, results=[], timings_ms=spent)
    return empty.model_dump_json().replace('"results":[]', f'"results":[{",".join(parts)}]', 1)


def _spent(answered: Sequence[Answer]) -> tuple[float, float]:
    """Return milliseconds of encoding and of searching, those of a call that several share once."""
    calls = {(answer.encode_ms, answer.shared_ms) for answer in answered}  # each is what a clock said
    alone = sum(answer.search_ms - answer.shared_ms for answer in answered)
    return sum(encode for encode, _ in calls), sum(shared for _, shared in calls) + alone


def _reply(retriever: Retriever, found: _Found, started: float) -> SearchReply:
    body, query_id, answer = found
    return SearchReply(
        bundle_id=retriever.bundle.bundle_id,
        query_id=query_id,
        mode=body.mode,
        k=answer.k,
        hits=_hits(retriever, answer, _words(retriever, body) if body.with_documents else None),
        notes=answer.notes,
        unknown_history=answer.unknown,
        explanation=answer.explanation,
        timings_ms=timings(started, answer.encode_ms, answer.search_ms),
    )


def _checked(body: QueryBody) -> tuple[QueryBody, Search] | QueryError:
    if body.image is not None:
        return QueryError(
            "unsupported_input", "a query by image is not supported yet by this bundle; leave image out"
        )
    return body, body.search()


def _words(retriever: Retriever, body: QueryBody) -> str:
    bundle = retriever.bundle
    titles = [retriever.title(doc_id) for doc_id in body.history or [] if doc_id in bundle.rows]
    return " ".join([*([body.text] if body.text else []), *titles])


def _hits(retriever: Retriever, answer: Answer, words: str | None) -> list[HitReply]:
    """Return the hits, with their documents where `words` (the query's, for matched terms) is given."""
    if words is None:
        return [HitReply(rank, doc_id, score) for doc_id, score, rank in answer.hits]
    return _shown(retriever, answer, words)


def _shown(retriever: Retriever, answer: Answer, words: str) -> list[HitReply]:
    bundle = retriever.bundle
    rows = [bundle.rows[hit.doc_id] for hit in answer.hits]
    matched = bundle.lexical.matched_in(words, np.asarray(rows, dtype=np.int64))
    found = documents_at(bundle.documents, rows)
    return [
        HitReply(
            rank=hit.rank,
            doc_id=hit.doc_id,
            score=hit.score,
            title=shown.title,
            text=shown.text[:_TEXT_SHOWN],
            image=shown.image,
            fields=shown.fields,
            matched_terms=terms,
        )
        for hit, shown, terms in zip(answer.hits, found, matched, strict=True)
    ]


def _refused(refusal: QueryError) -> ErrorReply:
    return ErrorReply(error=ErrorBody(code=refusal.code, message=printable(str(refusal))))


def _json(reply: str) -> Response:
    """Return a written reply as it is; FastAPI would check it against its own model once more."""
    return Response(reply, media_type="application/json")


for _part in (bundles, embedding, inference, site):
    router.include_router(_part)
