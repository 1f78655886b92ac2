"""The routes that search. Every request takes one bundle and uses it to the end."""

import time
from collections.abc import Mapping
from typing import Annotated, Any

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
from serving.queries import row_of
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
_OF_THE_WHOLE = frozenset({"queries", "bundle_id"})

router = APIRouter(responses=REFUSALS)


@router.post("/v1/search", response_model=SearchReply | BatchReply)
async def search(request: Request, body: SearchRequest, current: Current) -> Response:
    """Find the documents nearest to a text or to a history; or to each of many, with `queries`."""
    started = time.perf_counter()
    retriever = await retriever_of(request, current, body.bundle_id)
    if body.queries is None:
        reply = (await _replies(request, retriever, [body], started))[0]
        if isinstance(reply, QueryError):
            raise reply
        return _json(reply)
    asked = _parts(body, retriever)
    replies = await _replies(request, retriever, asked, started)
    results = [_refused(reply) if isinstance(reply, QueryError) else reply for reply in replies]
    done = [reply.timings_ms for reply in replies if isinstance(reply, SearchReply)]
    spent = timings(started, max((t.encode for t in done), default=0.0), sum(t.search for t in done))
    return _json(BatchReply(bundle_id=retriever.bundle.bundle_id, results=results, timings_ms=spent))


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
    hits = await _hits(retriever, answer, "" if with_documents else None)
    return _json(
        NeighborsReply(
            bundle_id=retriever.bundle.bundle_id,
            query_id=new_query_id(),
            doc_id=doc_id,
            k=answer.k,
            hits=hits,
            notes=answer.notes,
            timings_ms=timings(started, answer.encode_ms, answer.search_ms),
        )
    )


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
    return parts


async def _replies(
    request: Request, retriever: Retriever, asked: list[Any], started: float
) -> list[SearchReply | QueryError]:
    """Answer queries together; a refusal stands where its query stood."""
    checked = [_search(one) if isinstance(one, QueryBody) else one for one in asked]
    searches = [one for one in checked if isinstance(one, Search)]
    answered = iter(await answers(request, retriever, searches) if searches else ())
    replies: list[SearchReply | QueryError] = []
    for body, one in zip(asked, checked, strict=True):
        answer = next(answered) if isinstance(one, Search) else one
        if isinstance(answer, QueryError):
            replies.append(answer)
            continue
        words = _words(retriever, body) if body.with_documents else None
        query_id = body.query_id or new_query_id()
        request.app.state.query_log.served(query_id, retriever.bundle.bundle_id, one, answer)
        replies.append(
            SearchReply(
                bundle_id=retriever.bundle.bundle_id,
                query_id=query_id,
                mode=body.mode,
                k=answer.k,
                hits=await _hits(retriever, answer, words),
                notes=answer.notes,
                unknown_history=answer.unknown,
                explanation=answer.explanation,
                timings_ms=timings(started, answer.encode_ms, answer.search_ms),
            )
        )
    return replies


def _search(body: QueryBody) -> Search | QueryError:
    if body.image is not None:
        return QueryError(
            "unsupported_input", "a query by image is not supported yet by this bundle; leave image out"
        )
    return body.search()


def _words(retriever: Retriever, body: QueryBody) -> str:
    bundle = retriever.bundle
    titles = [retriever.title(doc_id) for doc_id in body.history or [] if doc_id in bundle.rows]
    return " ".join([*([body.text] if body.text else []), *titles])


async def _hits(retriever: Retriever, answer: Answer, words: str | None) -> list[HitReply]:
    """Return the hits, with their documents where `words` (the query's, for matched terms) is given."""
    if words is None:
        return [HitReply(rank, doc_id, score) for doc_id, score, rank in answer.hits]
    return await anyio.to_thread.run_sync(_shown, retriever, answer, words)


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


def _json(reply: SearchReply | BatchReply | NeighborsReply) -> Response:
    """Return a reply as it is; FastAPI would check it against its own model once more."""
    return Response(reply.model_dump_json(exclude_none=True), media_type="application/json")


for _part in (bundles, embedding, inference, site):
    router.include_router(_part)
