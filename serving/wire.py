"""The JSON of searches: what is asked, what is answered, and the one shape of an error."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, SkipValidation, StrictBool, StrictInt, StrictStr

from serving.search import Explanation, Mode, Search

DocId = Annotated[StrictStr, Field(min_length=1, max_length=512)]
QueryId = Annotated[StrictStr, Field(min_length=1, max_length=128)]
BundleId = Annotated[StrictStr, Field(pattern=r"^[0-9a-f]{16}$")]

_EXAMPLES: list[JsonValue] = [
    {"text": "red running shoes", "k": 10},
    {
        "text": "red running shoes",
        "mode": "hybrid",
        "filters": {"price": {"gte": 10, "lt": 90}, "colour": {"in": ["red", "blue"]}, "brand": "acme"},
        "exclude": ["B07XYZ"],
        "explain": True,
    },
    {"queries": [{"text": "red running shoes"}, {"text": "tea kettle", "k": 3}], "k": 10},
]


class QueryBody(BaseModel):
    """A query: a text, or the documents somebody clicked before."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": _EXAMPLES[:2]})

    text: StrictStr | None = Field(None, description="the query's text")
    history: list[DocId] | None = Field(None, description="earlier clicked doc_ids, oldest first")
    k: StrictInt = Field(10, description="how many documents to return")
    exclude: list[DocId] = Field(default_factory=list, description="doc_ids that must not be returned")
    filters: dict[str, Any] | None = Field(
        None,
        description="conditions on the catalogue's columns that every hit meets: a value, a range by gt, "
        "gte, lt, lte, or a set by in; a list column matches by any element, an empty one never",
    )
    mode: Mode = Field(
        "dense",
        description="dense: the towers and their index; bm25: words in common; hybrid: both, by reciprocal "
        "rank fusion (1 / (60 + rank), each ranking read to the larger of k and 100)",
    )
    explain: StrictBool = Field(False, description="whether the reply says how it came about")
    with_documents: StrictBool = Field(
        False, description="whether hits carry their document and matched terms"
    )
    user_id: StrictStr | None = Field(None, max_length=512, description="who asks, for towers that read it")
    query_id: QueryId | None = Field(None, description="the caller's id of this query; made here if left out")
    image: StrictStr | None = Field(
        None, max_length=2_000, description="kept for queries by picture, which no bundle answers yet"
    )

    def search(self) -> Search:
        """Return what is asked of a retriever."""
        return Search(
            text=self.text,
            history=None if self.history is None else tuple(self.history),
            k=self.k,
            exclude=tuple(self.exclude),
            user_id=self.user_id,
            filters=self.filters or None,
            mode=self.mode,
            explain=self.explain,
        )


class SearchRequest(QueryBody):
    """One query, or many in `queries`; then the other fields hold for those that do not give their own."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": _EXAMPLES})

    bundle_id: BundleId | None = Field(
        None,
        description="another bundle of the store than the champion; opened and checked when it is first "
        "asked for, which takes a while; two are kept",
    )
    queries: list[SkipValidation[QueryBody | Any]] | None = Field(
        None, description="many queries; what is no query is refused in its place and touches no other"
    )


class DocumentReply(BaseModel):
    """A document of the catalogue."""

    bundle_id: str
    doc_id: str
    title: str
    text: str
    image: str | None = Field(None, description="address of its picture, as the catalogue has it")
    updated_at: str | None = Field(None, description="ISO 8601")
    fields: dict[str, Any] = Field(description="the catalogue's further columns that are not empty")


@dataclass(slots=True)
class HitReply:
    """One found document."""

    rank: Annotated[int, Field(description="from 1")]
    doc_id: str
    score: Annotated[float, Field(description="the bundle's similarity, the BM25 score, or the fused score")]
    title: Annotated[str | None, Field(description="only with_documents")] = None
    text: Annotated[str | None, Field(description="its beginning; only with_documents")] = None
    image: Annotated[str | None, Field(description="address of its picture; only with_documents")] = None
    fields: Annotated[
        dict[str, Any] | None, Field(description="its further columns; only with_documents")
    ] = None
    matched_terms: Annotated[
        list[str] | None,
        Field(description="words of the query that the document has; only with_documents"),
    ] = None


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
    explanation: Explanation | None = Field(None, description="how it came about; only with explain")


class NeighborsReply(HitsReply):
    """The documents nearest to a document."""

    doc_id: str


class ErrorBody(BaseModel):
    """What was wrong."""

    code: str = Field(description="stable, for programs")
    message: str = Field(description="one line, for people")


class ErrorReply(BaseModel):
    """The shape of every reply that is not 2xx."""

    error: ErrorBody


class BatchReply(BaseModel):
    """The answers to many queries, in their order; each is an answer or what was wrong with it."""

    bundle_id: str
    results: list[SearchReply | ErrorReply]
    timings_ms: Timings


class LiveReply(BaseModel):
    """The process answers."""

    live: Literal[True] = True


class ReadyReply(BaseModel):
    """A checked bundle answers searches."""

    ready: Literal[True] = True
    bundle_id: str


REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply, "description": text}
    for status, text in (
        (400, "the body is no text, or under /v2 no JSON"),
        (401, "an API key is needed"),
        (403, "the key may not do this"),
        (404, "no such document, bundle or route"),
        (408, "the body took too long"),
        (409, "the bundle that was asked for cannot be served"),
        (413, "the body is too large"),
        (421, "a server without keys does not answer to this host name"),
        (422, "the request cannot be answered as asked"),
        (429, "too many requests; Retry-After says when"),
        (431, "URL and headers are too large"),
        (503, "no bundle is loaded yet, or there is too much to do; Retry-After says when"),
    )
}
"""What a route can refuse with, for its documentation."""
