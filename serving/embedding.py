"""Vectors of queries and of documents that the catalogue does not have, made as those in the index were."""

import time
from typing import Literal

import pandas as pd
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, StrictStr

from features.errors import TwotowerError
from serving.bundle import Bundle
from serving.current import Current, encoded, retriever_of, timings
from serving.encode import encode_documents
from serving.queries import QueryError, QueryLimits
from serving.retriever import Retriever
from serving.search import Search
from serving.vectors import Vectors
from serving.wire import REFUSALS, BundleId, DocId, Timings

_COUNTS = ("impressions", "clicks")

embedding = APIRouter(responses=REFUSALS)


class EmbedQuery(BaseModel):
    """A query: a text or a history, as the bundle reads it."""

    model_config = ConfigDict(extra="forbid")

    text: StrictStr | None = Field(None, description="the query's text")
    history: list[DocId] | None = Field(None, description="earlier clicked doc_ids, oldest first")
    user_id: StrictStr | None = Field(None, max_length=512, description="who asks, for towers that read it")


class EmbedDocument(BaseModel):
    """A document, in the catalogue or not; its other columns count as missing, its clicks as none."""

    model_config = ConfigDict(extra="forbid")

    title: StrictStr = Field("", description="its title")
    text: StrictStr = Field("", description="its text")


class EmbedRequest(BaseModel):
    """Queries or documents to encode."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"queries": [{"text": "red running shoes"}]},
                {"documents": [{"title": "Red running shoes", "text": "Light, for roads."}]},
            ]
        },
    )

    queries: list[EmbedQuery] | None = Field(None, description="queries; give these or documents")
    documents: list[EmbedDocument] | None = Field(None, description="documents; give these or queries")
    bundle_id: BundleId | None = Field(None, description="another bundle of the store than the champion")


class EmbedReply(BaseModel):
    """Vectors, in the order of what was encoded."""

    bundle_id: str
    tower: Literal["query", "document"]
    dimension: int
    similarity: str = Field(description="cosine: vectors of unit length; dot: of any length")
    vectors: list[list[float]] = Field(description="float32; scores are inner products of the two towers'")
    timings_ms: Timings


@embedding.post("/v1/embed")
async def embed(request: Request, body: EmbedRequest, current: Current) -> EmbedReply:
    """Encode queries by the query tower, or documents by the document tower."""
    started = time.perf_counter()
    retriever = await retriever_of(request, current, body.bundle_id)
    vectors = await encoded(request, _vectors, retriever, body)
    spent = (time.perf_counter() - started) * 1e3
    return EmbedReply(
        bundle_id=retriever.bundle.bundle_id,
        tower="query" if body.queries is not None else "document",
        dimension=vectors.shape[1],
        similarity=str(retriever.bundle.artifact.content["similarity"]),
        vectors=vectors.tolist(),
        timings_ms=timings(started, spent),
    )


def _vectors(retriever: Retriever, body: EmbedRequest) -> Vectors:
    if (body.queries is None) == (body.documents is None):
        raise QueryError("invalid_batch", "give either queries or documents")
    count, most = len(body.queries or body.documents or ()), retriever.limits.max_batch
    if not 1 <= count <= most:
        raise QueryError("invalid_batch", f"{count} to encode; a request must have 1 to {most}")
    if body.documents is not None:
        return _of_documents(body.documents, retriever.bundle, retriever.limits)
    searches = [
        Search(
            text=query.text,
            history=None if query.history is None else tuple(query.history),
            user_id=query.user_id,
        )
        for query in body.queries or ()
    ]
    return retriever.embed(searches)


def _of_documents(given: list[EmbedDocument], bundle: Bundle, limits: QueryLimits) -> Vectors:
    titles = [_whole_characters(document.title) for document in given]
    texts = [_whole_characters(document.text) for document in given]
    for place, document in enumerate(given):
        length = len(document.title) + len(document.text)
        if length > limits.max_document:
            raise QueryError(
                "document_too_long",
                f"documents.{place} has {length} characters; at most {limits.max_document} are allowed",
            )
        if not f"{titles[place]}{texts[place]}".strip():
            raise QueryError("empty_document", f"documents.{place} has neither title nor text")
    frame = bundle.documents.iloc[:0].reindex(range(len(given)))
    frame["doc_id"] = [f"new {place}" for place in range(len(given))]
    frame["title"] = titles
    frame["text"] = texts
    _fill_counts(frame, bundle.documents)
    try:
        return encode_documents(bundle.towers, frame)
    except TwotowerError as error:
        raise QueryError("invalid_document", str(error)) from None


def _whole_characters(text: str) -> str:
    """Return a text without halves of characters, which `features.text.normalise` takes off queries too."""
    return text.encode("utf-8", "ignore").decode()


def _fill_counts(frame: pd.DataFrame, catalogue: pd.DataFrame) -> None:
    """Give new documents what a document without a history has: no clicks, and the mean of all rates."""
    for name in _COUNTS:
        if name in frame.columns:
            frame[name] = 0
    if "ctr" in frame.columns:
        frame["ctr"] = float(catalogue["ctr"].mean()) if len(catalogue) else 0.0
