"""The JSON of the HTTP API: what is asked, what is answered, and the one shape of an error."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

DocId = Annotated[StrictStr, Field(min_length=1, max_length=512)]
QueryId = Annotated[StrictStr, Field(min_length=1, max_length=128)]
Mode = Literal["dense", "bm25"]


class SearchRequest(BaseModel):
    """A query: a text, or the documents somebody clicked before."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"text": "red running shoes", "k": 10}]}
    )

    text: StrictStr | None = Field(None, description="the query's text")
    history: list[DocId] | None = Field(None, description="earlier clicked doc_ids, oldest first")
    k: StrictInt = Field(10, description="how many documents to return")
    exclude: list[DocId] = Field(default_factory=list, description="doc_ids that must not be returned")
    user_id: StrictStr | None = Field(None, max_length=512, description="who asks, for towers that read it")
    mode: Mode = Field("dense", description="dense: the towers and their index; bm25: words in common")
    with_documents: StrictBool = Field(False, description="whether hits carry title, text and matched terms")
    query_id: QueryId | None = Field(None, description="the caller's id of this query; made here if left out")


class HitReply(BaseModel):
    """One found document."""

    rank: int = Field(description="from 1")
    doc_id: str
    score: float = Field(description="the bundle's similarity, or the BM25 score")
    title: str | None = Field(None, description="only with_documents")
    text: str | None = Field(None, description="its beginning; only with_documents")
    matched_terms: list[str] | None = Field(
        None, description="words of the query that the document has; only with_documents"
    )


class Timings(BaseModel):
    """Where the time went, in milliseconds."""

    encode: float
    search: float
    total: float


class HitsReply(BaseModel):
    """Found documents, best first. Every part of a reply comes from the one bundle it names."""

    bundle_id: str
    query_id: str = Field(description="names this query in the log of queries and clicks")
    k: int = Field(description="how many could be returned: the k asked for, clipped to the corpus")
    hits: list[HitReply]
    notes: list[str] = Field(description="anything that differs from what was asked for")
    timings_ms: Timings


class SearchReply(HitsReply):
    """The answer to a search."""

    mode: Mode
    unknown_history: list[str] = Field(description="ids of the history that the catalogue does not have")


class NeighborsReply(HitsReply):
    """The documents nearest to a document."""

    doc_id: str


class RefusalReply(BaseModel):
    """The champion that is not served, and why."""

    bundle_id: str | None
    message: str


class BundleReply(BaseModel):
    """The served bundle."""

    bundle_id: str
    loaded_at: str
    index: str = Field(description="which faiss searches, and where")
    documents: int
    query_inputs: list[Literal["text", "history"]]
    refused: RefusalReply | None = Field(description="set while the store's champion could not be loaded")
    manifest: dict[str, Any] = Field(description="what the bundle says of itself; canaries left out")


class LiveReply(BaseModel):
    """The process answers."""

    live: Literal[True] = True


class ReadyReply(BaseModel):
    """A checked bundle answers searches."""

    ready: Literal[True] = True
    bundle_id: str


class ErrorBody(BaseModel):
    """What was wrong."""

    code: str = Field(description="stable, for programs")
    message: str = Field(description="one line, for people")


class ErrorReply(BaseModel):
    """The shape of every reply that is not 2xx."""

    error: ErrorBody
