"""Routes about bundles, and about what people say of their results."""

from typing import Annotated, Any, Literal

import anyio.to_thread
from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr

from features.errors import ArtifactError
from features.text import normalise
from serving.bundle import Bundle
from serving.bundle_list import listed, page_of, runs_of
from serving.current import Current, retriever_of
from serving.judgments import GRADES, Judgments, query_id_of
from serving.queries import QueryError, row_of
from serving.store import Store
from serving.wire import REFUSALS, BundleId, DocId

_UNSHOWN = ("canaries",)
_LISTED = 100
_EXAMPLES, _EXAMPLE_HISTORY = 6, 5
_THUMBS = {"up": 2, "down": 0}

bundles = APIRouter(responses=REFUSALS)


class RefusalReply(BaseModel):
    """The champion that is not served, and why."""

    bundle_id: str | None
    message: str


class ExampleTitle(BaseModel):
    """A document by its title."""

    doc_id: str
    title: str


class ExampleReply(BaseModel):
    """A query to try, out of those that the bundle was checked with."""

    text: str | None = Field(None, description="for a bundle that answers texts")
    history: list[ExampleTitle] | None = Field(None, description="for a bundle that answers histories")


class BundleReply(BaseModel):
    """The served bundle."""

    bundle_id: str
    loaded_at: str
    index: str = Field(description="which index is searched, and where")
    documents: int
    query_inputs: list[Literal["text", "history"]]
    refused: RefusalReply | None = Field(description="set while the store's champion could not be loaded")
    examples: list[ExampleReply] = Field(description="queries to try")
    manifest: dict[str, Any] = Field(description="what the bundle says of itself; canaries left out")


class RunReply(BaseModel):
    """The run of the pipeline that made a bundle."""

    run_id: str = Field(description="MLflow's id of the run")
    name: str = Field(description="the configuration's name")
    url: str | None = Field(None, description="its page in MLflow, where MLflow has pages")


class SettingReply(BaseModel):
    """One measured setting of one index."""

    factory: str = Field(description="faiss factory string")
    parameters: dict[str, Any] = Field(description="search parameters")
    ann_recall: float = Field(description="share of the exact neighbours that it finds")
    queries_per_second: float | None = Field(None, description="in batches, on one thread")
    p50_us: float | None = Field(None, description="microseconds of one query alone, the median")
    megabytes: float | None = Field(None, description="size of the index file")
    build_seconds: float | None = Field(None, description="training and adding")


class CurveReply(BaseModel):
    """What the index was chosen from."""

    target: float = Field(description="the ANN recall that was asked for")
    k: int = Field(description="how many neighbours it is measured on")
    queries: int = Field(description="how many held-out queries it was measured on")
    chosen: int = Field(description="place of the chosen setting")
    settings: list[SettingReply]


class IndexReply(BaseModel):
    """A bundle's index and what was measured of it."""

    factory: str = Field(description="faiss factory string")
    search: dict[str, Any] = Field(description="the search parameters that are served")
    ann_recall: float | None = Field(None, description="share of the exact neighbours that it finds")
    k: int | None = Field(None, description="how many neighbours that is measured on")
    target: float | None = Field(None, description="the ANN recall that was asked for")
    target_met: bool | None = Field(None, description="whether tuning reached it")
    note: str | None = Field(None, description="why this index, in words")
    curve: CurveReply | None = Field(None, description="what it was chosen from, where it was measured")


class ListedBundle(BaseModel):
    """One bundle of the store; a damaged one has only its id and its damage."""

    bundle_id: str
    champion: bool = Field(description="whether the store's pointer names it")
    served: bool = Field(description="whether this server answers with it")
    damage: str | None = Field(None, description="what is wrong with it")
    created_at: str | None = None
    documents: int | None = None
    dimension: int | None = None
    similarity: str | None = None
    query_inputs: list[str] | None = None
    data_window: dict[str, str | None] | None = None
    evaluation: list[dict[str, Any]] | None = Field(
        None, description="its evaluation over all test queries: system, metric, value, low, high, n"
    )
    index: IndexReply | None = None
    run: RunReply | None = None


class BundlesReply(BaseModel):
    """The store's bundles, newest first."""

    champion: str | None = Field(description="the bundle that the store's pointer names")
    served: str = Field(description="the bundle that this server answers with")
    bundles: list[ListedBundle]


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


@bundles.get("/v1/bundle")
async def bundle(request: Request, current: Current) -> BundleReply:
    """Say which bundle answers, what it is made from, and whether the champion was refused."""
    opened = current.retriever.bundle
    refusal = request.app.state.follower.refusal
    return BundleReply(
        bundle_id=opened.bundle_id,
        loaded_at=current.loaded_at,
        index=opened.index.note,
        documents=len(opened.doc_ids),
        query_inputs=opened.query_inputs,
        refused=RefusalReply(bundle_id=refusal.bundle_id, message=refusal.message) if refusal else None,
        examples=_examples(opened),
        manifest={key: value for key, value in opened.artifact.content.items() if key not in _UNSHOWN},
    )


@bundles.get("/v1/bundles", response_model_exclude_none=True)
def bundle_list(
    request: Request,
    current: Current,
    limit: Annotated[int, Query(ge=1, le=_LISTED, description="most bundles, newest first")] = _LISTED,
) -> BundlesReply:
    """List the store's bundles with their metrics, their indexes and the runs that made them."""
    store: Store = request.app.state.follower.store
    try:
        champion = store.champion()
    except ArtifactError:  # /v1/bundle says what is wrong with the pointer
        champion = None
    champion_id = champion.bundle_id if champion else None
    serving = current.retriever.bundle.bundle_id
    runs = runs_of(store)
    entries = []
    for facts in listed(store, limit):
        bundle_id = facts["bundle_id"]
        run = runs.get(bundle_id)
        made = RunReply(run_id=run["run_id"], name=run["name"], url=_page(request, run)) if run else None
        marks = {"champion": bundle_id == champion_id, "served": bundle_id == serving, "run": made}
        entries.append(ListedBundle.model_validate({**facts, **marks}))
    return BundlesReply(champion=champion_id, served=serving, bundles=entries)


@bundles.post("/v1/judgments")
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


@bundles.get("/v1/judgments")
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


def _examples(opened: Bundle) -> list[ExampleReply]:
    """Return the canaries' queries: real ones of the log, or titles where the log has few."""
    examples = []
    titles = opened.documents["title"]
    for canary in opened.artifact.content["canaries"]:
        text, history = canary["query"]["text"], canary["query"]["history"]
        known = [doc_id for doc_id in history if doc_id in opened.rows][-_EXAMPLE_HISTORY:]
        if text:
            examples.append(ExampleReply(text=text))
        elif known:
            named = [ExampleTitle(doc_id=one, title=str(titles.iat[opened.rows[one]])) for one in known]
            examples.append(ExampleReply(history=named))
    return examples[:_EXAMPLES]


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


def _page(request: Request, run: dict[str, str]) -> str | None:
    return page_of(run, getattr(request.app.state, "mlflow", None))
