"""The routes of the HTTP API. Every request takes the served bundle once and uses it to the end."""

import time
import uuid
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import FileResponse

from serving.batching import Batcher
from serving.follow import Follower, Served
from serving.refusals import NotReadyError
from serving.retriever import Answer, QueryError, Retriever
from serving.search import Search
from serving.wire import (
    BundleReply,
    ErrorReply,
    HitReply,
    LiveReply,
    NeighborsReply,
    ReadyReply,
    RefusalReply,
    SearchReply,
    SearchRequest,
    Timings,
)

PAGE = Path(__file__).parent / "page"
_TEXT_SHOWN = 280
_UNSHOWN = ("canaries",)
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply, "description": text}
    for status, text in (
        (404, "no such document or route"),
        (413, "body too large"),
        (422, "the query cannot be answered as asked"),
        (503, "no bundle is loaded yet"),
    )
}


async def _served(request: Request) -> Served:
    follower: Follower = request.app.state.follower
    served = follower.served
    if served is None:
        refusal = follower.refusal
        raise NotReadyError(refusal.message if refusal else "the champion is being loaded and checked")
    return served


Current = Annotated[Served, Depends(_served)]
router = APIRouter(responses=_REFUSALS)


@router.post("/v1/search", response_model_exclude_none=True)
async def search(request: Request, body: SearchRequest, served: Current) -> SearchReply:
    """Find the documents nearest to a text or to a history."""
    started = time.perf_counter()
    retriever = served.retriever
    asked = Search(
        text=body.text,
        history=None if body.history is None else tuple(body.history),
        k=body.k,
        exclude=tuple(body.exclude),
        user_id=body.user_id,
        mode=body.mode,
    )
    answer = (await _answers(request, retriever, [asked]))[0]
    if isinstance(answer, QueryError):
        raise answer
    words = _words(retriever, body) if body.with_documents else None
    return SearchReply(
        bundle_id=retriever.bundle.bundle_id,
        query_id=body.query_id or uuid.uuid4().hex,
        mode=body.mode,
        k=answer.k,
        hits=_hits(retriever, answer, words),
        notes=answer.notes,
        unknown_history=answer.unknown,
        timings_ms=_timings(answer, started),
    )


@router.get("/v1/documents/{doc_id:path}/neighbors", response_model_exclude_none=True)
def neighbors(
    doc_id: str,
    served: Current,
    k: Annotated[int, Query(description="how many documents to return")] = 10,
    with_documents: Annotated[bool, Query(description="whether hits carry title and text")] = False,
) -> NeighborsReply:
    """Find the documents nearest to a document by the bundle's similarity."""
    started = time.perf_counter()
    answer = served.retriever.neighbors(doc_id, k)
    return NeighborsReply(
        bundle_id=served.retriever.bundle.bundle_id,
        query_id=uuid.uuid4().hex,
        doc_id=doc_id,
        k=answer.k,
        hits=_hits(served.retriever, answer, "" if with_documents else None),
        notes=answer.notes,
        timings_ms=_timings(answer, started),
    )


@router.get("/v1/bundle")
def bundle(request: Request, served: Current) -> BundleReply:
    """Say which bundle answers, what it is made from, and whether the champion was refused."""
    opened = served.retriever.bundle
    refusal = request.app.state.follower.refusal
    return BundleReply(
        bundle_id=opened.bundle_id,
        loaded_at=served.loaded_at,
        index=opened.index.note,
        documents=len(opened.doc_ids),
        query_inputs=opened.query_inputs,
        refused=RefusalReply(bundle_id=refusal.bundle_id, message=refusal.message) if refusal else None,
        manifest={key: value for key, value in opened.artifact.content.items() if key not in _UNSHOWN},
    )


@router.get("/livez")
async def livez() -> LiveReply:
    """Say that the process answers."""
    return LiveReply()


@router.get("/readyz")
async def readyz(request: Request) -> ReadyReply:
    """Say that a bundle whose digests and canaries were checked answers searches; 503 until then."""
    return ReadyReply(bundle_id=(await _served(request)).retriever.bundle.bundle_id)


@router.get("/", include_in_schema=False)
async def page() -> FileResponse:
    """Return the page."""
    return FileResponse(PAGE / "index.html")


@router.get("/docs", include_in_schema=False)
async def docs() -> FileResponse:
    """Return the documentation page, which reads /openapi.json and nothing from elsewhere."""
    return FileResponse(PAGE / "docs.html")


async def _answers(
    request: Request, retriever: Retriever, searches: list[Search]
) -> list[Answer | QueryError]:
    """Answer searches of one request; every route that searches comes through here."""
    batcher: Batcher = request.app.state.batcher
    return await batcher.answer(retriever, searches)


def _words(retriever: Retriever, body: SearchRequest) -> str:
    titles = [retriever.title(doc_id) for doc_id in body.history or [] if doc_id in retriever.bundle.rows]
    return " ".join([*([body.text] if body.text else []), *titles])


def _hits(retriever: Retriever, answer: Answer, words: str | None) -> list[HitReply]:
    """Return the hits, with their documents where `words` (the query's, for matched terms) is given."""
    if words is None:
        return [HitReply(rank=hit.rank, doc_id=hit.doc_id, score=hit.score) for hit in answer.hits]
    return [
        HitReply(
            rank=hit.rank,
            doc_id=hit.doc_id,
            score=hit.score,
            title=retriever.title(hit.doc_id),
            text=retriever.text(hit.doc_id)[:_TEXT_SHOWN],
            matched_terms=retriever.bundle.lexical.matched_terms(words, hit.doc_id),
        )
        for hit in answer.hits
    ]


def _timings(answer: Answer, started: float) -> Timings:
    total = (time.perf_counter() - started) * 1e3
    return Timings(
        encode=round(answer.encode_ms, 3), search=round(answer.search_ms, 3), total=round(total, 3)
    )
