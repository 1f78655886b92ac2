"""What one search asks and what it gets: plain values that every layer of serving shares."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

Mode = Literal["dense", "bm25", "hybrid"]


@dataclass(frozen=True, kw_only=True)
class Search:
    """Everything that one search asks.

    Attributes:
        text: The query's text, for a bundle that was trained on texts.
        history: Earlier clicked doc_ids, oldest first, for a bundle that was trained on histories, which
            reads as many of the latest as in training.
        k: At most this many hits.
        exclude: Ids that must not be returned; unknown ones are ignored. A bundle whose evaluation left out
            what was seen leaves out the history too.
        user_id: Who asks, for towers that read it.
        filters: Conditions on the catalogue's columns that every hit meets; see `serving.filters`.
        mode: dense: the towers and their index; bm25: words in common; hybrid: both, see `serving.hybrid`.
        explain: Whether the answer says how it came about.
    """

    text: str | None = None
    history: tuple[str, ...] | None = None
    k: int = 10
    exclude: tuple[str, ...] = ()
    user_id: str | None = None
    filters: Mapping[str, Any] | None = None
    mode: Mode = "dense"
    explain: bool = False


@dataclass(frozen=True)
class Query:
    """What a query tower reads of a search: the text as training had it, the history's latest known ids."""

    text: str | None
    history: tuple[str, ...] = ()
    user_id: str | None = None


class Hit(NamedTuple):
    """A document that was found; `rank` counts from 1."""

    doc_id: str
    score: float
    rank: int


@dataclass(frozen=True)
class Place:
    """Where a document stands in one ranking."""

    rank: Annotated[int, Field(description="from 1")]
    score: float


@dataclass(frozen=True, kw_only=True)
class HitExplanation:
    """Why a document was found; a place is absent where the ranking, as deep as it was read, lacks it."""

    dense: Place | None = None
    bm25: Place | None = None
    matched_terms: Annotated[list[str], Field(description="words of the query that the document has")]
    dense_share: Annotated[
        float | None, Field(description="what the towers' rank adds to the fused score; hybrid only")
    ] = None
    bm25_share: Annotated[
        float | None, Field(description="what the rank of BM25 adds to the fused score; hybrid only")
    ] = None


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """How an answer came about."""

    text: Annotated[str | None, Field(description="the query as the query tower read it")] = None
    history: Annotated[list[str], Field(description="the doc_ids that the query tower read, oldest first")]
    words: Annotated[list[str], Field(description="the words that BM25 looked for")]
    unknown_words: Annotated[list[str], Field(description="those of them that no document has")]
    tokens: Annotated[int, Field(description="how many words that are, repeated ones included")]
    dense_depth: Annotated[int, Field(description="how deep the towers' ranking was read")]
    bm25_depth: Annotated[int, Field(description="how deep the ranking of BM25 was read")]
    index: Annotated[str, Field(description="which index was searched, and where")]
    allowed: Annotated[
        int | None, Field(description="documents that the filters and exclusions leave; with these only")
    ] = None
    strategy: Annotated[
        str | None,
        Field(
            description="how the index kept to them: exhaustive (every allowed document scored), adaptive "
            "(deeper where allowed documents are rare near the query), overfetched (the others dropped), "
            "selective (tombstones left out), whole (none to leave out); "
            "of Milvus: rows (it is told which) or filters (it reads them itself)"
        ),
    ] = None
    hits: Annotated[list[HitExplanation], Field(description="one for each hit, in their order")]


@dataclass(frozen=True)
class Answer:
    """What a search found and what it took.

    Attributes:
        hits: Best first; ties by catalogue order (ascending doc_id). Of documents that share the last score
            the first ones come where FAISS scored all (`serving.ties`); an approximate index, and Milvus,
            return those that they met.
        k: How many could be returned at most: the k asked for, clipped to the corpus.
        unknown: Ids of the history that the catalogue does not have; they do not influence the result.
        encode_ms: Milliseconds in which the query's vector was made, with those of its batch; 0 for BM25.
        search_ms: Milliseconds of the search, with those that were searched in the same call.
        notes: One line for each thing that differs from what was asked for.
        explanation: Only where the search asked for it.
        shared_ms: The part of `search_ms` that all searches of the same call took together.
    """

    hits: list[Hit]
    k: int
    unknown: list[str]
    encode_ms: float
    search_ms: float
    notes: list[str] = field(default_factory=list)
    explanation: Explanation | None = None
    shared_ms: float = 0.0
