"""What every encoder is: prepared inputs in, one vector a row out; saved as a directory that stands alone."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

import pandas as pd
from torch import Tensor, nn

from features.errors import ConfigError
from features.text import document_text
from towers.batch import Features

Table = pd.DataFrame | Mapping[str, Sequence[Any]]
"""Rows of a query or document frame, or its columns alone: a frame takes longer to make than to encode."""


class Side(StrEnum):
    """Which of the two kinds of frame an encoder reads."""

    QUERY = "query"
    DOCUMENT = "document"

    @property
    def id_column(self) -> str:
        """The column that names the row in messages and is the default of an id input."""
        return "user_id" if self is Side.QUERY else "doc_id"


class Encoder(nn.Module, ABC):
    """A module from prepared inputs to (N, D) vectors; not normalised, whatever the similarity."""

    dimension: int

    @abstractmethod
    def prepare(self, frame: Table) -> Features:
        """Turn N rows of a query or document frame into inputs on the CPU; row by row independent.

        Raises:
            ConfigError: If the frame lacks a column that the configuration names.
            SchemaError: If a value cannot be an input, such as an infinite number.
        """

    @abstractmethod
    def forward(self, features: Features) -> Tensor:
        """Return (N, D) float32 vectors."""

    @abstractmethod
    def save(self, directory: Path) -> None:
        """Write everything that `load` needs into a directory, which is created."""

    @classmethod
    @abstractmethod
    def load(cls, directory: Path) -> Self:
        """Read what `save` wrote, in evaluation mode, with bit-identical weights."""


def column_of(frame: Table, name: str) -> Iterable[Any]:
    """Return a column.

    Raises:
        ConfigError: If the frame has no such column; the message names those it has.
    """
    if name not in frame:
        available = ", ".join(sorted(map(str, frame)))
        raise ConfigError(f"the towers read a column {name!r} that is not there; there are: {available}")
    column: Iterable[Any] = frame[name]
    return column


def strings_of(frame: Table, name: str) -> list[str]:
    """Return a column as strings; a missing value is empty."""
    return ["" if is_missing(value) else str(value) for value in column_of(frame, name)]


def texts_of(frame: Table, side: Side) -> list[str]:
    """Return the one text of each row: the query's text, or the document's by the text template."""
    if side is Side.QUERY:
        return strings_of(frame, "query_text")
    pairs = zip(strings_of(frame, "title"), strings_of(frame, "text"), strict=True)
    return [document_text(title, text) for title, text in pairs]


def is_missing(value: object) -> bool:
    """Return whether a single value of a frame is absent: None, NaN, NaT or `pandas.NA`."""
    return value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and value != value)
