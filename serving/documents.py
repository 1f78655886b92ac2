"""A catalogue's documents as people read them: title, text, picture and the catalogue's own columns."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd

from features.tables import DOCUMENTS

_COUNTED = frozenset(
    {"content_key", "impressions", "clicks", "ctr", "sampling_probability", "cold"}
)  # what the log says of a document, not the catalogue


@dataclass(frozen=True)
class Document:
    """One document; `fields` are the catalogue's further columns that are not empty."""

    doc_id: str
    title: str
    text: str
    image: str | None
    updated_at: str | None
    fields: dict[str, Any]


def field_names(frame: pd.DataFrame) -> list[str]:
    """Return the columns that a catalogue has beyond those that every catalogue has."""
    return [name for name in frame.columns if name not in _COUNTED and name not in DOCUMENTS.names]


def documents_at(frame: pd.DataFrame, rows: Sequence[int]) -> list[Document]:
    """Return the documents at some rows of a catalogue, in that order."""
    names = field_names(frame)
    # column by column, and one by one: taking rows of the frame costs ten times as much for a page of hits,
    # and `take` of a column that Arrow holds in several chunks copies the whole column
    arrays = {name: frame[name].array for name in [*DOCUMENTS.names, *names]}
    columns = {name: [_plain(array[int(row)]) for row in rows] for name, array in arrays.items()}
    return [
        Document(
            doc_id=columns["doc_id"][place],
            title=columns["title"][place] or "",
            text=columns["text"][place] or "",
            image=columns["image"][place],
            updated_at=columns["updated_at"][place],
            fields={name: columns[name][place] for name in names if columns[name][place] is not None},
        )
        for place in range(len(rows))
    ]


def _plain(value: Any) -> Any:
    """Return a cell as JSON has it; what is missing or not finite is null."""
    if isinstance(value, str):
        return value
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, int | bool) else str(value)
