"""The files of an `examples` artifact: their columns, and how they are written the same way every time."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq
from ibis.backends import BaseBackend

from features.engine import batches
from features.tables import DOCUMENTS

_ROWS_PER_GROUP = 65_536

_STRINGS = pa.list_(pa.string())
_MOMENT = pa.timestamp("us", tz="UTC")


def _schema(**columns: tuple[pa.DataType, bool]) -> pa.Schema:
    return pa.schema([pa.field(name, kind, nullable=nullable) for name, (kind, nullable) in columns.items()])


TRAIN = _schema(
    impression_id=(pa.string(), False),
    query_key=(pa.string(), False),
    query_text=(pa.string(), True),
    history=(_STRINGS, False),
    user_id=(pa.string(), True),
    positive_doc_id=(pa.string(), False),
    unclicked_doc_ids=(_STRINGS, False),
    weight=(pa.float64(), False),
    timestamp=(_MOMENT, False),
)
"""`train.parquet`: one row per click that counts."""

QUERIES = _schema(
    query_id=(pa.string(), False),
    query_key=(pa.string(), False),
    query_text=(pa.string(), True),
    history=(_STRINGS, False),
    user_id=(pa.string(), True),
    relevant_doc_ids=(_STRINGS, False),
    relevance=(pa.list_(pa.float64()), False),
    excluded_doc_ids=(_STRINGS, False),
    seen_query=(pa.bool_(), False),
    frequency=(pa.int64(), False),
    timestamp=(_MOMENT, False),
)
"""`validation.parquet` and `test.parquet`: one row per evaluation query."""

LISTS = _schema(
    impression_id=(pa.string(), False),
    query_id=(pa.string(), False),
    doc_ids=(_STRINGS, False),
    clicked=(pa.list_(pa.bool_()), False),
)
"""`validation_lists.parquet` and `test_lists.parquet`: one row per shown list."""

KNOWN_POSITIVES = _schema(query_key=(pa.string(), False), doc_id=(pa.string(), False))
"""`known_positives.parquet`: every click before the cut, distinct."""

STATISTICS = _schema(
    content_key=(pa.string(), False),
    impressions=(pa.int64(), False),
    clicks=(pa.int64(), False),
    ctr=(pa.float64(), False),
    sampling_probability=(pa.float64(), False),
    cold=(pa.bool_(), False),
)
"""What `documents.parquet` has beyond the catalogue's own columns."""


def documents_schema(catalogue: pa.Schema) -> pa.Schema:
    """Return the columns of `documents.parquet`: DOCUMENTS, the catalogue's features, then STATISTICS."""
    features = [field for field in catalogue if field.name not in DOCUMENTS.names]
    return pa.schema([*DOCUMENTS, *features, *STATISTICS])


def write_parquet(
    connection: BaseBackend, table: ir.Table, path: Path, schema: pa.Schema, order: list[str]
) -> None:
    """Write a table so that equal rows give equal bytes: one order, row groups of one size.

    The engine cuts its files as its threads happen to finish, so they are cut anew. Memory does not grow with
    the table.

    Args:
        connection: The engine that holds the table.
        table: Has the schema's columns.
        path: The Parquet file to create.
        schema: Columns in their order; values are cast to it.
        order: Columns that order the rows completely.
    """
    rows = table.order_by(order).select(schema.names)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for group in _groups(batches(connection, rows, _ROWS_PER_GROUP), schema):
            writer.write_table(group)


def _groups(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    """Cut a stream of batches of any size into tables of `_ROWS_PER_GROUP` rows; the last may be shorter."""
    waiting = schema.empty_table()
    for batch in batches:
        waiting = pa.concat_tables([waiting, pa.Table.from_batches([batch]).cast(schema)])
        while len(waiting) >= _ROWS_PER_GROUP:
            yield waiting.slice(0, _ROWS_PER_GROUP).combine_chunks()
            waiting = waiting.slice(_ROWS_PER_GROUP)
    if len(waiting):
        yield waiting.combine_chunks()
