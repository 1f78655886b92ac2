"""Routes about bundles."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field

from features.errors import ArtifactError
from serving.bundle import Bundle
from serving.bundle_list import listed, page_of, runs_of
from serving.current import Current
from serving.follow import Follower
from serving.judgment_routes import judging
from serving.wire import REFUSALS

_UNSHOWN = ("canaries",)
_LISTED = 100
_EXAMPLES, _EXAMPLE_HISTORY = 6, 5

bundles = APIRouter(responses=REFUSALS)
bundles.include_router(judging)


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


class UpdateReply(BaseModel):
    """How an updated bundle came about; its evaluation is that of the bundle that was exported."""

    parent: str = Field(description="the bundle that was updated")
    exported: str = Field(description="the bundle of the training, which the evaluation was measured on")
    added: int = Field(description="documents since the parent")
    updated: int = Field(description="documents since the parent")
    deleted: int = Field(description="documents since the parent")
    changes: int | None = Field(None, description="documents changed since the evaluation, where it is known")
    note: str = Field(description="what the evaluation is of, in words")


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
        None,
        description="its evaluation over all test queries: system, metric, value, low, high, n; of a bundle "
        "with an `update`, that of the bundle it was made from",
    )
    update: UpdateReply | None = Field(
        None, description="set where documents were changed after the training"
    )
    index: IndexReply | None = None
    run: RunReply | None = None


class BundlesReply(BaseModel):
    """The store's bundles, newest first."""

    champion: str | None = Field(description="the bundle that the store's pointer names")
    served: str | None = Field(
        None, description="the bundle that this server answers with; none yet if absent"
    )
    bundles: list[ListedBundle]


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
    limit: Annotated[int, Query(ge=1, le=_LISTED, description="most bundles, newest first")] = _LISTED,
) -> BundlesReply:
    """List the store's bundles with their metrics, their indexes and the runs that made them."""
    follower: Follower = request.app.state.follower
    store, served = follower.store, follower.served
    try:
        champion = store.champion()
    except ArtifactError:  # /v1/bundle says what is wrong with the pointer
        champion = None
    champion_id = champion.bundle_id if champion else None
    serving = served.retriever.bundle.bundle_id if served else None
    runs = runs_of(store)
    entries = []
    for facts in listed(store, limit):
        bundle_id = facts["bundle_id"]
        run = runs.get(bundle_id)
        made = RunReply(run_id=run["run_id"], name=run["name"], url=_page(request, run)) if run else None
        marks = {"champion": bundle_id == champion_id, "served": bundle_id == serving, "run": made}
        entries.append(ListedBundle.model_validate({**facts, **marks}))
    return BundlesReply(champion=champion_id, served=serving, bundles=entries)


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


def _page(request: Request, run: dict[str, str]) -> str | None:
    return page_of(run, getattr(request.app.state, "mlflow", None))
