"""Checking what is asked, so that the API, the command line and a program get the same refusals."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from features.config import Config
from features.errors import TwotowerError
from features.text import normalise
from serving.bundle import Bundle
from serving.filters import FilterError, Selection
from serving.hybrid import depth_of
from serving.search import Query, Search

_FEW = 64  # so many ids to leave out are cheaper to find and drop than to search around


class QueryError(TwotowerError, ValueError):
    """A query cannot be answered as asked; `code` names the reason for programs."""

    status = 422
    """What HTTP calls it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class UnknownDocumentError(QueryError):
    """A document was asked for that this bundle does not have."""

    status = 404

    def __init__(self, doc_id: str) -> None:
        super().__init__("unknown_document", f"no document {shown_id(doc_id)} in this bundle")


class QueryLimits(Config):
    """The largest query that is answered."""

    max_k: int = Field(1_000, ge=1, le=100_000, description="most results asked for at once")
    max_results: int = Field(
        10_000,
        ge=1,
        description="most results that all queries of a batch ask for; one alone may ask for `max_k`",
    )
    max_text: int = Field(2_000, ge=1, description="characters of a query text")
    max_history: int = Field(1_000, ge=1, description="documents in a history; the latest should come last")
    max_exclude: int = Field(10_000, ge=0, description="documents that may be excluded from a result")
    max_filters: int = Field(1_000, ge=0, description="values in all filters of a query together")
    max_document: int = Field(20_000, ge=1, description="characters of a document that is to be encoded")
    max_batch: int = Field(100, ge=1, le=10_000, description="queries or documents in one request")
    max_id: int = Field(512, ge=1, description="characters of a document id")


@dataclass(frozen=True)
class Checked:
    """A search that can be answered.

    Attributes:
        search: As it was asked.
        query: What the query tower reads.
        words: What BM25 reads: the text, or the titles of the history.
        unknown: Ids of the history that the catalogue does not have.
        left_out: Catalogue rows that must not be returned; empty where `selection` leaves them out.
        selection: The only documents that may be returned; None where few or none are left out.
    """

    search: Search
    query: Query
    words: str
    unknown: list[str]
    left_out: frozenset[int]
    selection: Selection | None = None

    @property
    def asks_towers(self) -> bool:
        """Whether the towers' ranking is needed."""
        return self.search.mode != "bm25" or self.search.explain

    @property
    def asks_words(self) -> bool:
        """Whether the ranking of BM25 is needed."""
        return self.search.mode != "dense" or self.search.explain

    @property
    def dense_depth(self) -> int:
        """How deep the towers' ranking is read; an explained answer is the same as one that is not."""
        return self.search.k if self.search.mode == "dense" else depth_of(self.search.k)

    @property
    def bm25_depth(self) -> int:
        """How deep the ranking of BM25 is read."""
        return self.search.k if self.search.mode == "bm25" else depth_of(self.search.k)


class Selections:
    """The documents that searches of one batch keep to; equal conditions share one selection.

    Args:
        bundle: Whose catalogue is searched.
        limits: What is refused as too large.
    """

    def __init__(self, bundle: Bundle, limits: QueryLimits) -> None:
        self._bundle = bundle
        self._limits = limits
        self._made: dict[Hashable, Selection] = {}

    def of(self, search: Search, excluded: frozenset[str]) -> Selection:
        """Return what a search may find.

        Args:
            search: As it was asked.
            excluded: Known ids that it must not find.

        Raises:
            QueryError: If its filters do not fit the catalogue.
        """
        count, most = _values_in(search.filters), self._limits.max_filters
        if count > most:
            raise QueryError("too_many_filters", f"{count} values in filters; at most {most} are allowed")
        try:
            key = _exactly(search.filters), excluded
            if key not in self._made:
                self._made[key] = self._bundle.catalogue.select(search.filters, excluded)
            return self._made[key]
        except FilterError as error:
            raise QueryError(error.code, str(error)) from None


def check(search: Search, bundle: Bundle, limits: QueryLimits, selections: Selections) -> Checked:
    """Return a search as the bundle answers it.

    Args:
        search: As it was asked.
        bundle: What answers.
        limits: What is refused as too large.
        selections: Of the batch that it is part of.

    Raises:
        QueryError: If it is empty, too large or of a kind that the bundle cannot answer.
    """
    check_size(search.k, search.exclude, limits)
    _check_inputs(search, bundle)
    text = None if search.text is None else _normalised(search.text, limits)
    known, unknown = ([], []) if search.history is None else _history(search.history, bundle, limits)
    latest = known if bundle.history_length is None else known[-bundle.history_length :]
    rows = bundle.rows
    excluded = {doc_id for doc_id in search.exclude if doc_id in rows}
    if bundle.excludes_history:
        excluded.update(known)
    selection = None
    if search.filters or len(excluded) > _FEW:
        selection, excluded = selections.of(search, frozenset(excluded)), set()
    words = [] if text is None else [text]
    if known and (search.mode != "dense" or search.explain):
        titles = bundle.documents["title"]
        words += [str(titles.iat[rows[doc_id]]) for doc_id in known]
    query = Query(text, tuple(latest), search.user_id)
    left_out = frozenset(rows[doc_id] for doc_id in excluded)
    return Checked(search, query, "\n".join(words), unknown, left_out, selection)


def _exactly(value: Any) -> Hashable:
    """Return what is equal for equal JSON only: 1, 1.0 and true are not; anything else equals itself."""
    if isinstance(value, Mapping):
        return "object", *((name, _exactly(part)) for name, part in value.items())
    if isinstance(value, list):
        return "array", *map(_exactly, value)
    return (type(value), value) if value is None or isinstance(value, str | int | float) else id(value)


def _values_in(filters: Mapping[str, Any] | None) -> int:
    """Return how many values conditions hold, however deep they are."""
    count = 0
    left: list[Any] = [filters or {}]
    while left:
        value = left.pop()
        if isinstance(value, Mapping):
            left.extend(value.values())
        elif isinstance(value, list):
            left.extend(value)
        else:
            count += 1
    return count


def check_size(k: int, exclude: Sequence[str], limits: QueryLimits) -> None:
    """Refuse a k or a list of excluded ids that is out of range.

    Raises:
        QueryError: If one is.
    """
    if not 1 <= k <= limits.max_k:
        raise QueryError("invalid_k", f"k = {k}; it must be from 1 to {limits.max_k}")
    if len(exclude) > limits.max_exclude:
        raise QueryError(
            "too_many_excluded", f"{len(exclude)} excluded ids; at most {limits.max_exclude} are allowed"
        )


def check_results(ks: Sequence[int], limits: QueryLimits) -> None:
    """Refuse queries of one request that ask for too many results together; a k out of range counts not.

    Raises:
        QueryError: If they do.
    """
    wanted, most = sum(k for k in ks if 1 <= k <= limits.max_k), max(limits.max_results, limits.max_k)
    if wanted > most:
        raise QueryError(
            "too_many_results",
            f"the queries ask for {wanted} results; at most {most} are allowed in one request, so send fewer "
            "queries at once or a smaller k",
        )


def row_of(doc_id: str, bundle: Bundle) -> int:
    """Return the catalogue row of a document.

    Raises:
        UnknownDocumentError: If there is none.
    """
    row = bundle.rows.get(doc_id)
    if row is None:
        raise UnknownDocumentError(doc_id)
    return row


def _check_inputs(search: Search, bundle: Bundle) -> None:
    inputs = bundle.query_inputs
    if search.text is None and search.history is None:
        raise QueryError("empty_query", f"the query is empty; give a {' or a '.join(inputs)}")
    if search.mode == "bm25" and not search.explain:  # any bundle has words of texts and of titles
        return
    for given, name in ((search.text, "text"), (search.history, "history")):
        if given is not None and name not in inputs:
            raise QueryError(
                "wrong_input",
                f"this bundle answers a {' and a '.join(inputs)}, not a {name}; leave {name} out",
            )


def _normalised(text: str, limits: QueryLimits) -> str:
    """Return the text as training had it."""
    if len(text) > limits.max_text:
        raise QueryError(
            "query_too_long",
            f"the query has {len(text)} characters; at most {limits.max_text} are allowed",
        )
    normalised = normalise(text)
    if not normalised:
        raise QueryError("empty_query", "the query has no visible character; type a word")
    return normalised


def _history(history: Sequence[str], bundle: Bundle, limits: QueryLimits) -> tuple[list[str], list[str]]:
    if not 1 <= len(history) <= limits.max_history:
        raise QueryError(
            "invalid_history",
            f"the history has {len(history)} documents; it must have 1 to {limits.max_history}",
        )
    known = [doc_id for doc_id in history if doc_id in bundle.rows]
    unknown = [doc_id for doc_id in history if doc_id not in bundle.rows]
    if not known:
        raise QueryError(
            "unknown_history",
            f"none of the history's documents is in this bundle, {shown_id(unknown[0])} first",
        )
    return known, unknown


def shown_id(doc_id: str) -> str:
    """Return an id as a message has it: quoted, and cut where it is long."""
    return repr(doc_id if len(doc_id) <= 60 else doc_id[:60] + "…")
