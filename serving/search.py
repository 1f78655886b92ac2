"""What one search asks and what it gets: plain values that every layer of serving shares."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

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


@dataclass(frozen=True)
class Hit:
    """A document that was found; `rank` counts from 1."""

    doc_id: str
    score: float
    rank: int


@dataclass(frozen=True)
class Answer:
    """What a search found and what it took.

    Attributes:
        hits: Best first; ties by catalogue order (ascending doc_id).
        k: How many could be returned at most: the k asked for, clipped to the corpus.
        unknown: Ids of the history that the catalogue does not have; they do not influence the result.
        encode_ms: Milliseconds in which the query's vector was made, with those of its batch; 0 for BM25.
        search_ms: Milliseconds of the search, with those that were searched in the same call.
        notes: One line for each thing that differs from what was asked for.
    """

    hits: list[Hit]
    k: int
    unknown: list[str]
    encode_ms: float
    search_ms: float
    notes: list[str] = field(default_factory=list)
