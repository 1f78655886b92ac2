"""Routes about what people say of results."""

from typing import Annotated, Literal

import anyio.to_thread
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr

from features.errors import ArtifactError
from features.text import normalise
from serving.current import Current, retriever_of
from serving.judgments import GRADES, Judgments, query_id_of
from serving.queries import QueryError, row_of
from serving.store import Store
from serving.wire import REFUSALS, BundleId, DocId

_THUMBS = {"up": 2, "down": 0}

judging = APIRouter(responses=REFUSALS)


class JudgmentRequest(BaseModel):
    """What somebody thinks of a document for a query: a grade, or a thumb."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"query": "red running shoes", "doc_id": "B07XYZ", "grade": 3},
                {"query": "red running shoes", "doc_id": "B07XYZ", "thumb": "down"},
            ]
        },
    )

    query: StrictStr = Field(description="the query's text")
    doc_id: DocId = Field(description="the document; one of the bundle")
    bundle_id: BundleId | None = Field(None, description="another bundle of the store than the champion")
    grade: StrictInt | None = Field(None, description="from 0, not relevant, to 3, perfect")
    thumb: Literal["up", "down"] | None = Field(None, description="up is grade 2, down is grade 0")


class JudgmentReply(BaseModel):
    """A judgment that is on disk."""

    query_id: str = Field(description="the query's id in the file of judgments")
    query: str = Field(description="the query's text, normalised")
    doc_id: str
    grade: int
    judged: int = Field(description="pairs of query and document that are judged now")


class GradeReply(BaseModel):
    """A document's grade."""

    doc_id: str
    grade: int


class JudgmentsReply(BaseModel):
    """The judgments of one query, the latest last."""

    query_id: str
    query: str
    judgments: list[GradeReply]


@judging.post("/v1/judgments")
async def judge(request: Request, body: JudgmentRequest, current: Current) -> JudgmentReply:
    """Keep a judgment in the store, as TREC qrels that `twotower evaluate --qrels` reads."""
    retriever = await retriever_of(request, current, body.bundle_id)
    text = _judged_text(body.query, retriever.limits.max_text)
    row_of(body.doc_id, retriever.bundle)
    if (body.grade is None) == (body.thumb is None):
        raise QueryError("invalid_grade", "give either a grade or a thumb")
    grade = _THUMBS[body.thumb] if body.thumb is not None else body.grade
    if grade is None or not GRADES[0] <= grade <= GRADES[1]:
        raise QueryError("invalid_grade", f"grade = {grade}; it must be from {GRADES[0]} to {GRADES[1]}")
    try:
        judged = await anyio.to_thread.run_sync(_judgments(request).judge, text, body.doc_id, grade)
    except ValueError as error:
        raise QueryError("invalid_judgment", str(error)) from None
    except ArtifactError as error:
        raise UnwritableError(str(error)) from None
    return JudgmentReply(
        query_id=query_id_of(text), query=text, doc_id=body.doc_id, grade=grade, judged=judged
    )


@judging.get("/v1/judgments")
def judgments(
    request: Request,
    current: Current,
    query: Annotated[str, Query(description="the query's text")],
) -> JudgmentsReply:
    """Return the judgments of a query."""
    text = _judged_text(query, current.retriever.limits.max_text)
    try:
        kept = _judgments(request).of_query(text)
    except ArtifactError as error:
        raise UnwritableError(str(error)) from None
    grades = [GradeReply(doc_id=one.doc_id, grade=one.grade) for one in kept]
    return JudgmentsReply(query_id=query_id_of(text), query=text, judgments=grades)


@judging.options("/v1/judgments", status_code=204, include_in_schema=False)
async def may_judge() -> Response:
    """Say that whoever asks may judge; `serving.gate` refuses here whom it would refuse a judgment."""
    return Response(status_code=204, headers={"Allow": "GET, OPTIONS, POST"})


class UnwritableError(QueryError):
    """The store's judgments cannot be read or written."""

    status = 503

    def __init__(self, message: str) -> None:
        super().__init__("judgments_unavailable", message)


def _judged_text(query: str, most: int) -> str:
    if len(query) > most:
        raise QueryError(
            "query_too_long", f"the query has {len(query)} characters; at most {most} are allowed"
        )
    text = normalise(query)
    if not text:
        raise QueryError("empty_query", "the query has no visible character; type a word")
    return text


def _judgments(request: Request) -> Judgments:
    store: Store = request.app.state.follower.store
    return Judgments(store.root)
