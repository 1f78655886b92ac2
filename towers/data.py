"""The examples artifact as arrays: strings become codes once, so that no training step touches one.

Shapes: E examples, P distinct impressions, D documents of the catalogue, K query keys.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from features.errors import SchemaError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

QUERY_COLUMNS = ("query_text", "history", "user_id")
"""What an encoder may read of a query."""


@dataclass(frozen=True)
class Lists:
    """Integer lists laid end to end: list i is `values[offsets[i]:offsets[i + 1]]`."""

    values: Ints
    offsets: Ints

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, rows: Ints) -> tuple[Ints, Ints]:
        """Return the values of the lists at `rows`, end to end, and the position in `rows` of each value."""
        starts, lengths = self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows]
        owner = np.repeat(np.arange(len(rows)), lengths)
        before = np.cumsum(lengths) - lengths
        return self.values[np.arange(len(owner)) + (starts - before)[owner]], owner


@dataclass(frozen=True)
class Catalogue:
    """What masks and log Q need to know about the documents and the known clicks.

    Attributes:
        content: (D,) code of each document's content; equal content, equal code.
        known: For each query key the distinct contents clicked for it before the cut, ascending.
        positive_share: (D,) share of the training positives; at least half an example for every document.
        unclicked_share: (D,) share of the unclicked entries; 0 where there is none.
    """

    content: Ints
    known: Lists
    positive_share: Floats
    unclicked_share: Floats


@dataclass(frozen=True)
class TrainingData:
    """The training rows of an examples artifact.

    Attributes:
        queries: One row per distinct impression: `query_text, history, user_id`.
        documents: The catalogue, sorted by doc_id.
        query: (E,) row in `queries` of each example.
        query_key: (E,) code of its query key.
        document: (E,) row in `documents` of its positive.
        weight: (E,) its weight, > 0.
        unclicked: Rows in `documents` that were examined and skipped, for each example.
        catalogue: Identities and frequencies for masks and log Q.
    """

    queries: pd.DataFrame
    documents: pd.DataFrame
    query: Ints
    query_key: Ints
    document: Ints
    weight: NDArray[np.float32]
    unclicked: Lists
    catalogue: Catalogue

    def __len__(self) -> int:
        return len(self.query)


def read_training_data(examples: Path) -> TrainingData:
    """Read `train`, `documents` and `known_positives` of an examples artifact.

    Raises:
        SchemaError: If there is no training row, a weight is not positive, a row names a document that is
            not in the catalogue, or all documents have one content.
    """
    table = pq.read_table(examples / "train.parquet")
    if table.num_rows == 0:
        raise SchemaError(f"{examples}/train.parquet has no rows: no click lies before the cut; move the cut")
    documents = pd.read_parquet(examples / "documents.parquet")
    if documents["content_key"].fillna(documents["doc_id"]).nunique() < 2:
        raise SchemaError(
            f"{examples}/documents.parquet: every document has the same content, so there is nothing to tell "
            "apart; check which columns make title and text"
        )
    index = document_index(documents)
    positive = locate(index, table["positive_doc_id"], f"{examples}/train.parquet: positive_doc_id")
    unclicked = locate_lists(
        index, table["unclicked_doc_ids"], f"{examples}/train.parquet: unclicked_doc_ids"
    )
    weight = table["weight"].to_numpy().astype(np.float32)
    if not (np.isfinite(weight) & (weight > 0)).all():
        raise SchemaError(f"{examples}/train.parquet: every weight must be a positive number")
    impression, first = _factorize(table["impression_id"])
    keys = pd.Index(pc.unique(table["query_key"]).to_pandas())
    key = keys.get_indexer(table["query_key"].to_pandas()).astype(np.int64)
    known = pq.read_table(examples / "known_positives.parquet")
    return TrainingData(
        queries=query_frame(table.take(pa.array(first))),
        documents=documents,
        query=impression,
        query_key=key,
        document=positive,
        weight=weight,
        unclicked=unclicked,
        catalogue=_catalogue(documents, positive, unclicked, _known_pairs(known, keys, index, examples)),
    )


def query_frame(table: pa.Table) -> pd.DataFrame:
    """Return the query columns as the frame that encoders prepare; a missing history is an empty list."""
    frame: pd.DataFrame = table.select(list(QUERY_COLUMNS)).to_pandas()
    frame["history"] = [[] if history is None else list(history) for history in frame["history"]]
    return frame


def document_index(documents: pd.DataFrame) -> pd.Index:
    """Return the index that finds a document's row by its id."""
    index: pd.Index[Any] = pd.Index(documents["doc_id"])
    if not index.is_unique:
        raise SchemaError(f"documents.parquet holds doc_id {index[index.duplicated()][0]!r} more than once")
    return index


def locate(index: pd.Index, ids: Any, where: str) -> Ints:
    """Return the rows of document ids (a pyarrow column).

    Raises:
        SchemaError: If one is not in the catalogue; names the first.
    """
    names = ids.to_pandas()
    rows = index.get_indexer(names).astype(np.int64)
    if (rows < 0).any():
        raise SchemaError(
            f"{where} {names[rows < 0].iloc[0]!r} is not in documents.parquet; build examples again"
        )
    return rows


def locate_lists(index: pd.Index, ids: Any, where: str) -> Lists:
    """Return the rows of lists of document ids (a pyarrow list column); a null list is empty."""
    lengths = pc.fill_null(pc.list_value_length(ids), 0).to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Lists(locate(index, pc.list_flatten(ids), where), offsets)


def _factorize(column: Any) -> tuple[Ints, Ints]:
    """Return the code of each value and, for each code, the row where it comes first."""
    codes, _ = pd.factorize(column.to_pandas())
    _, first = np.unique(codes, return_index=True)
    return codes.astype(np.int64), first.astype(np.int64)


def _known_pairs(known: pa.Table, keys: pd.Index, index: pd.Index, examples: Path) -> tuple[Ints, Ints, int]:
    key = keys.get_indexer(known["query_key"].to_pandas()).astype(np.int64)
    document = locate(index, known["doc_id"], f"{examples}/known_positives.parquet: doc_id")
    return key[key >= 0], document[key >= 0], len(keys)


def _catalogue(
    documents: pd.DataFrame, positive: Ints, unclicked: Lists, known: tuple[Ints, Ints, int]
) -> Catalogue:
    content, _ = pd.factorize(documents["content_key"].fillna(documents["doc_id"]))
    content = content.astype(np.int64)
    key, document, keys = known
    contents = int(content.max()) + 1
    pairs = np.unique(key * contents + content[document])
    offsets = np.searchsorted(pairs, np.arange(keys + 1) * contents).astype(np.int64)
    shown = np.bincount(unclicked.values, minlength=len(documents)).astype(np.float64)
    share = documents["sampling_probability"].to_numpy(dtype=np.float64)
    return Catalogue(
        content=content,
        known=Lists(pairs % contents, offsets),
        positive_share=np.maximum(share, 0.5 / len(positive)),
        unclicked_share=shown / max(shown.sum(), 1.0),
    )
