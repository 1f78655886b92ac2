"""The files of a lake: sorted Parquet, written in a stream, whose bytes depend on the rows alone."""

from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import ibis.expr.types as ir
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from ibis.backends import BaseBackend

from features.engine import batches
from features.mojibake import SUSPICIOUS, repair_mojibake
from features.tables import DOCUMENTS, IMPRESSIONS, QUARANTINE

_ROW_GROUP: Final = 131_072
_FILE: Final = "part-0.parquet"


def write_impressions(
    connection: BaseBackend, table: ir.Table, context: Sequence[str], directory: Path, *, repair: bool
) -> int:
    """Write impressions into a file for each UTC date.

    Args:
        connection: The engine that computes `table`.
        table: Accepted impressions.
        context: Names of the context columns, which are text.
        directory: The folder `impressions` to create.
        repair: Whether to repair the texts of queries.

    Returns:
        How many rows had their text repaired.
    """
    schema = pa.schema([*IMPRESSIONS, *(pa.field(name, pa.string()) for name in context)])
    rows = table.select(*schema.names).order_by("timestamp", "impression_id", "position", "doc_id")
    repaired = 0
    writer: _ParquetFile | None = None
    day: date | None = None
    try:
        for batch in batches(connection, rows):
            batch, changed = repair_texts(batch, ["query_text"] if repair else [])
            repaired += changed
            for this, part in _days(batch):
                if this != day:
                    if writer is not None:
                        writer.close()
                    day, writer = this, _ParquetFile(directory / f"date={this.isoformat()}" / _FILE, schema)
                if writer is not None:
                    writer.write(part)
    finally:
        if writer is not None:
            writer.close()
    return repaired


def write_documents(
    connection: BaseBackend, table: ir.Table, features: Sequence[str], directory: Path, *, repair: bool
) -> int:
    """Write documents, sorted by id, and return how many had a text repaired."""
    kinds = {name: _arrow_type(table, name) for name in features}
    schema = pa.schema([*DOCUMENTS, *(pa.field(name, kind) for name, kind in kinds.items())])
    texts = ["title", "text", *(name for name, kind in kinds.items() if not pa.types.is_floating(kind))]
    repaired = 0
    with _ParquetFile(directory / _FILE, schema) as writer:
        for batch in batches(connection, table.select(*schema.names).order_by("doc_id")):
            batch, changed = repair_texts(batch, texts if repair else [])
            repaired += changed
            writer.write(batch)
    return repaired


def write_quarantine(connection: BaseBackend, table: ir.Table, directory: Path) -> dict[str, dict[str, int]]:
    """Write the quarantine and return what was written: rows by table and reason."""
    counts: dict[str, dict[str, int]] = {"impressions": {}, "documents": {}}
    rows = table.select(*QUARANTINE.names).order_by(*QUARANTINE.names)
    with _ParquetFile(directory / _FILE, QUARANTINE) as writer:
        for batch in batches(connection, rows):
            writer.write(batch)
            for group in (
                pa.table(batch).group_by(["table", "reason"]).aggregate([([], "count_all")]).to_pylist()
            ):
                reasons = counts[group["table"]]
                reasons[group["reason"]] = reasons.get(group["reason"], 0) + group["count_all"]
    return {name: dict(sorted(reasons.items())) for name, reasons in counts.items()}


def _arrow_type(table: ir.Table, name: str) -> pa.DataType:
    kind = table[name].type()
    if kind.is_array():
        return pa.list_(pa.string())
    return pa.float64() if kind.is_floating() else pa.string()


def _days(batch: pa.RecordBatch) -> Iterator[tuple[date, pa.RecordBatch]]:
    """Split a batch that is sorted by time at midnight UTC."""
    start = 0
    for group in pc.value_counts(batch.column("timestamp").cast(pa.date32(), safe=False)).to_pylist():
        yield group["values"], batch.slice(start, group["counts"])
        start += group["counts"]


class _ParquetFile:
    """A Parquet file with row groups of one size, however the rows arrive."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows = 0
        self._schema = schema
        self._pending: list[pa.Table] = []
        self._waiting = 0
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")

    def write(self, batch: pa.RecordBatch) -> None:
        """Add rows; those that do not fill a row group wait."""
        self._pending.append(pa.table(batch).cast(self._schema))
        self._waiting += len(batch)
        self.rows += len(batch)
        if self._waiting >= _ROW_GROUP:
            table = pa.concat_tables(self._pending)
            whole = len(table) - len(table) % _ROW_GROUP
            self._writer.write_table(table.slice(0, whole).combine_chunks(), row_group_size=_ROW_GROUP)
            self._pending = [table.slice(whole)]
            self._waiting = len(table) - whole

    def close(self) -> None:
        """Write what waits, and the footer."""
        if self._waiting or not self.rows:
            table = pa.concat_tables(self._pending) if self._pending else self._schema.empty_table()
            self._writer.write_table(table.combine_chunks(), row_group_size=_ROW_GROUP)
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def repair_texts(batch: pa.RecordBatch, columns: Sequence[str]) -> tuple[pa.RecordBatch, int]:
    """Repair misread text; return the batch and how many of its rows changed."""
    changed = np.zeros(len(batch), dtype=bool)
    for name in columns:
        index = batch.schema.get_field_index(name)
        column = batch.column(index)
        is_list = pa.types.is_list(column.type)
        texts = column.flatten() if is_list else column
        rows = pc.list_parent_indices(column).to_numpy() if is_list else np.arange(len(column))
        texts, found = _repaired_texts(texts)
        if found.size:
            changed[rows[found]] = True
            batch = batch.set_column(index, name, _lists_like(column, texts) if is_list else texts)
    return batch, int(changed.sum())


def _repaired_texts(texts: pa.Array) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    """Return the texts repaired, and the indices of those that changed."""
    # Only suspicious texts meet Python.
    suspicious = pc.fill_null(pc.match_substring_regex(texts, SUSPICIOUS), False)
    before = texts.filter(suspicious).to_pylist()
    after = [repair_mojibake(text) for text in before]
    if before == after:
        return texts, np.empty(0, dtype=np.int64)
    differs = np.array([new != old for new, old in zip(after, before, strict=True)])
    indices = np.flatnonzero(suspicious.to_numpy(zero_copy_only=False))[differs]
    return pc.replace_with_mask(texts, suspicious, pa.array(after, texts.type)), indices


def _lists_like(column: pa.ListArray, values: pa.Array) -> pa.ListArray:
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values, mask=column.is_null())
