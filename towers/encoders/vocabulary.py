"""Strings with a row of their own, and one row for all others."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from towers.encoders.encoder import is_missing

UNKNOWN = 0
"""The row of every string outside the vocabulary; trained by dropping known ids to it."""


class Vocabulary:
    """Rows 1 to n for n known strings; row 0 for the rest."""

    def __init__(self, entries: Sequence[str]) -> None:
        self.entries = tuple(entries)
        self._index = pd.Index(list(self.entries), dtype=object)

    def __len__(self) -> int:
        """How many rows a table needs, the unknown one included."""
        return len(self.entries) + 1

    def rows(self, values: Sequence[str | None]) -> np.ndarray:
        """Return (V,) int64 rows; unknown and missing values give `UNKNOWN`."""
        wanted = np.asarray(values, dtype=object)
        return np.asarray(self._index.get_indexer(pd.Index(wanted, dtype=object)) + 1, dtype=np.int64)


def count_entries(lists: Sequence[Sequence[str]], weights: Sequence[float] | None = None) -> dict[str, float]:
    """Return how often each string occurs, each occurrence counting its row's weight (1 by default)."""
    counts: dict[str, float] = {}
    for row, values in enumerate(lists):
        weight = 1.0 if weights is None else weights[row]
        for value in values:
            counts[value] = counts.get(value, 0.0) + weight
    return counts


def build_vocabulary(counts: dict[str, float], *, min_count: float, max_size: int) -> Vocabulary:
    """Return the most frequent strings that occur at least `min_count` times; ties by the string's order."""
    kept = sorted((-count, value) for value, count in counts.items() if count >= min_count)
    return Vocabulary([value for _, value in kept[:max_size]])


def lists_of(column: Iterable[Any]) -> list[list[str]]:
    """Return each row of a string or list column as a list of strings; a missing value is an empty list."""
    return [_strings(value) for value in column]


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list | tuple | set | np.ndarray):
        return [_string(item) for item in value if not is_missing(item)]
    return [] if is_missing(value) else [_string(value)]


def _string(value: object) -> str:
    # A column of whole numbers becomes floats where one is missing; 3.0 must stay the category 3.
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
