"""Which documents of a catalogue a search may return: filters on their fields, and ids to leave out.

The filter language is JSON, all fields together (AND):

    {"brand": "acme", "price": {"gte": 10, "lt": 50}, "colour": {"in": ["red", "blue"]}, "cold": false}

a value (equality), a range (`gt`, `gte`, `lt`, `lte`; numbers and timestamps) or a set (`in`). A list column
matches if any of its elements does. A document without the value never matches.

Shapes: N documents, in catalogue order.
"""

import itertools
import json
import math
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.errors import TwotowerError

Mask = npt.NDArray[np.bool_]
Kind = Literal["string", "number", "boolean", "timestamp"]

MAX_SET = 1_000
"""Most values of one `in`."""

_COMPARE: dict[str, Callable[[Any, Any], Mask]] = {
    "gt": np.greater,
    "gte": np.greater_equal,
    "lt": np.less,
    "lte": np.less_equal,
}
_EXPECTED: dict[Kind, str] = {
    "string": "a string",
    "number": "a finite number",
    "boolean": "true or false",
    "timestamp": 'an ISO 8601 timestamp such as "2026-01-31T12:00:00Z"',
}
_NULL = -1  # the code of no string and of no boolean
_HOW = 'give a value, a range such as {"gte": 10, "lt": 50}, or a set {"in": [...]}'


class FilterError(TwotowerError, ValueError):
    """A filter cannot be applied as asked; `code` names the reason for programs.

    Attributes:
        code: `unknown_field` or `invalid_filter`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Selection:
    """The documents that a search may return.

    Attributes:
        mask: (N,) over catalogue rows; True where the document may be returned.
        count: How many may.
        filters: As they were given; empty where there were none.
        excluded: Ids that were left out, sorted; unknown ones are not among them.
    """

    mask: Mask
    count: int
    filters: Mapping[str, Any]
    excluded: tuple[str, ...] = ()

    @classmethod
    def of(cls, mask: Mask) -> "Selection":
        """Return the selection of a mask that no filter made."""
        return cls(mask, int(mask.sum()), {})


@dataclass(frozen=True, eq=False)
class _Column:
    """The values of one field; a null is one that equals nothing and is in no range."""

    kind: Kind
    values: npt.NDArray[Any]  # codes of strings, 0 and 1 of booleans (-1: null), numbers, datetime64 in UTC
    rows: npt.NDArray[np.int64] | None  # of lists: the catalogue row of each value; None: one value a row
    codes: Mapping[str, int]  # of strings

    @cached_property
    def order(self) -> npt.NDArray[np.int64]:
        """Places of the values in ascending order, so that one is found without a look at all."""
        return np.argsort(self.values)

    def held(self, wanted: Iterable[Any]) -> npt.NDArray[Any]:
        """Return those of some values that can stand here, as they stand here, distinct and ascending.

        Whole numbers are never compared as float64, which would round those beyond 2**53.
        """
        if self.kind == "string":
            found = [self.codes[value] for value in wanted if value in self.codes]
        elif self.kind == "number" and self.values.dtype == np.int64:
            whole = ((int(value), value) for value in wanted)
            found = [one for one, value in whole if one == value and -(2**63) <= one < 2**63]
        else:
            found = list(wanted)
        return np.unique(np.array(found, dtype=self.values.dtype))


class Catalogue:
    """The fields of a catalogue, ready to be filtered. Safe to use from many threads.

    A field is prepared at its first use, since most (titles, texts) are never asked for.

    Attributes:
        fields: The names that a filter may use.
    """

    def __init__(self, documents: pd.DataFrame, rows: Mapping[str, int]) -> None:
        self.fields = tuple(str(name) for name in documents.columns)
        self._documents = documents
        self._rows = rows
        self._columns: dict[str, _Column] = {}
        self._lock = threading.Lock()

    @classmethod
    def build(cls, documents: pd.DataFrame, rows: Mapping[str, int] | None = None) -> "Catalogue":
        """Return the catalogue of a document frame with unique `doc_id`; it is read, never changed.

        Args:
            documents: A document frame.
            rows: The row of each id, where they are at hand.
        """
        if rows is None:
            rows = {doc_id: row for row, doc_id in enumerate(documents["doc_id"].tolist())}
        return cls(documents, rows)

    def __len__(self) -> int:
        return len(self._documents)

    def select(self, filters: Mapping[str, Any] | None = None, exclude: Iterable[str] = ()) -> Selection:
        """Return the documents that match every filter and are not excluded.

        Args:
            filters: Field → condition, as described above; None or empty lets every document through.
            exclude: Ids to leave out; unknown ones change nothing.

        Raises:
            FilterError: If a field does not exist, or a condition does not fit its type.
        """
        mask = np.ones(len(self), dtype=bool)
        for name, condition in (filters or {}).items():
            mask &= self._matches(name, condition)
        excluded = sorted({doc_id for doc_id in exclude if doc_id in self._rows})
        mask[[self._rows[doc_id] for doc_id in excluded]] = False
        return Selection(mask, int(np.count_nonzero(mask)), dict(filters or {}), tuple(excluded))

    def _matches(self, name: str, condition: Any) -> Mask:
        column = self._column(name)
        hits = _hits(name, column, condition)
        if column.rows is None:
            return hits
        mask = np.zeros(len(self), dtype=bool)
        mask[column.rows[hits]] = True
        return mask

    def _column(self, name: str) -> _Column:
        if name not in self.fields:
            raise FilterError(
                "unknown_field", f"filters: no field {_json(name[:60])}; allowed: {', '.join(self.fields)}"
            )
        with self._lock:
            if name not in self._columns:
                self._columns[name] = self._ids() if name == "doc_id" else _column_of(self._documents[name])
            return self._columns[name]

    def _ids(self) -> _Column:
        """Return the column of ids, whose values are numbered already."""
        return _Column("string", np.arange(len(self)), None, self._rows)


def _hits(name: str, column: _Column, condition: Any) -> Mask:
    """Return which of a column's values satisfy a condition."""
    if not isinstance(condition, Mapping):
        return _equal(column, [_value(name, column.kind, condition)])
    if not condition or not condition.keys() <= {*_COMPARE, "in"}:
        unknown = sorted(map(str, condition.keys() - {*_COMPARE, "in"}))
        raise _invalid(name, f"{_json(unknown[0][:60])} is no condition; {_HOW}" if unknown else _HOW)
    if "in" in condition:
        return _in_set(name, column, condition)
    if column.kind not in ("number", "timestamp"):
        raise _invalid(
            name, f'holds {column.kind}s, which have no order; give a value or a set {{"in": [...]}}'
        )
    hits = np.ones(len(column.values), dtype=bool)
    for operator, bound in condition.items():
        hits &= _COMPARE[operator](column.values, _value(name, column.kind, bound))
    return hits


def _in_set(name: str, column: _Column, condition: Mapping[str, Any]) -> Mask:
    wanted = condition["in"]
    if len(condition) > 1:
        raise _invalid(name, "a set and a range cannot be combined; give one of them")
    if isinstance(wanted, str | bytes | Mapping) or not isinstance(wanted, Iterable):
        raise _invalid(name, '"in" needs an array of values')
    values = [_value(name, column.kind, value) for value in wanted]
    if len(values) > MAX_SET:
        raise _invalid(name, f'"in" has {len(values)} values; at most {MAX_SET} are allowed')
    return _equal(column, values)


def _equal(column: _Column, wanted: list[Any]) -> Mask:
    """Return which of a column's values are among some."""
    held = column.held(wanted)
    if len(held) == 1:
        return np.asarray(column.values == held[0])
    hits = np.zeros(len(column.values), dtype=bool)
    if len(held):
        first = np.searchsorted(column.values, held, "left", sorter=column.order)
        last = np.searchsorted(column.values, held, "right", sorter=column.order)
        for start, end in zip(first.tolist(), last.tolist(), strict=True):
            hits[column.order[start:end]] = True
    return hits


def _value(name: str, kind: Kind, value: Any) -> Any:
    """Return a condition's value as the column holds values, or refuse it."""
    if kind == "timestamp" and isinstance(value, str | datetime):
        try:
            moment = datetime.fromisoformat(value) if isinstance(value, str) else value
            moment = moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
            return np.datetime64(moment.replace(tzinfo=None), "us")
        except (ValueError, OverflowError):
            pass
    elif kind == "string" and isinstance(value, str):
        return value
    elif kind == "boolean" and isinstance(value, bool | np.bool_):
        return bool(value)
    elif kind == "number" and isinstance(value, int | float | np.number) and not isinstance(value, bool):
        try:
            if math.isfinite(value):
                return value
        except OverflowError:  # a whole number beyond float64
            pass
    raise _invalid(name, f"{_json(value)[:60]} is not {_EXPECTED[kind]}; its documents hold {kind}s")


def _json(value: Any) -> str:
    """Return a value as whoever asked wrote it."""
    return json.dumps(value, ensure_ascii=False, default=str)


def _invalid(name: str, what: str) -> FilterError:
    return FilterError("invalid_filter", f"filters.{name}: {what}")


def _column_of(series: "pd.Series[Any]") -> _Column:
    """Type a column; nulls become what no condition matches, elements of lists values of their row."""
    first = series.loc[series.first_valid_index()] if series.notna().any() else None
    if not isinstance(first, np.ndarray | list | tuple):
        return _typed(series, None)
    lists = [[] if value is None or value is pd.NA else value for value in series]
    lengths = np.fromiter(map(len, lists), dtype=np.int64, count=len(lists))
    flat = pd.Series(list(itertools.chain.from_iterable(lists)))
    return _typed(flat, np.repeat(np.arange(len(lists)), lengths))


def _typed(series: "pd.Series[Any]", rows: npt.NDArray[np.int64] | None) -> _Column:
    types = pd.api.types
    inferred = types.infer_dtype(series, skipna=True)
    if types.is_datetime64_any_dtype(series.dtype) or inferred.startswith("datetime"):
        moments = pd.to_datetime(series, utc=True).dt.tz_localize(None)
        return _Column("timestamp", moments.to_numpy(dtype="datetime64[us]"), rows, {})
    if inferred == "boolean":
        known = series.notna().to_numpy()
        values = np.where(known, series.eq(True).to_numpy(dtype=bool), _NULL).astype(np.int8)
        return _Column("boolean", values, rows, {})
    if inferred in ("integer", "floating", "mixed-integer-float", "decimal"):
        whole = types.is_integer_dtype(series.dtype) and not series.hasnans
        numbers = series.to_numpy(dtype=np.int64 if whole else np.float64, na_value=np.nan)
        return _Column("number", numbers, rows, {})
    codes, words = pd.factorize(series)  # nulls get -1
    return _Column("string", codes, rows, {str(word): code for code, word in enumerate(words)})
