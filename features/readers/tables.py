"""The two tables themselves, as Parquet: what other programs, Spark among them, hand over ready-made."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir
import pyarrow as pa
from ibis.backends import BaseBackend
from pydantic import Field

from features.engine import read_parquet
from features.errors import SchemaError
from features.readers.catalogue import check_feature_names
from features.readers.files import Paths, find_files
from features.readers.raw import RESERVED_CONTEXT, RawTables, check_names
from features.readers.source import Source
from features.tables import DOCUMENTS, IMPRESSIONS, Refusal


class TablesSource(Source):
    """Impressions and documents that already have the columns of the lake."""

    format: Literal["tables"] = Field(description="Parquet that already has the columns of the two tables.")
    impressions: Paths = Field(description="Parquet files of impressions; further columns are context.")
    documents: Paths = Field(description="Parquet files of documents; further columns are features.")

    def files(self) -> list[Path]:
        """Return every file that is read, impressions first."""
        return [*find_files(self.impressions), *find_files(self.documents)]

    def described(self) -> dict[str, Any]:
        """Return the configuration without paths."""
        return {"format": self.format}


def read_tables(connection: BaseBackend, source: TablesSource) -> RawTables:
    """Read the two tables, on any engine.

    Raises:
        SchemaError: If a required column is missing or has the wrong type.
    """
    impressions, context = _read(
        connection, source.impressions, IMPRESSIONS, "impressions", optional=("query_id",)
    )
    documents, features = _read(
        connection, source.documents, DOCUMENTS, "documents", optional=("title", "text")
    )
    impressions = impressions.mutate(query_id=impressions.query_id.fill_null(impressions.impression_id))
    no_id = impressions.impression_id.isnull() | impressions.doc_id.isnull()
    impressions = impressions.mutate(
        clicked=impressions.clicked.fill_null(False),
        reason=ibis.cases(
            (no_id, str(Refusal.MISSING_ID)),
            (impressions.timestamp.isnull(), str(Refusal.MISSING_TIMESTAMP)),
            (impressions.position < 1, str(Refusal.INVALID_POSITION)),
            else_=ibis.null(str),
        ),
    )
    empty = (documents.title == "") & (documents.text == "") & documents.image.isnull()
    for name in features:
        empty &= documents[name].isnull()
    documents = documents.mutate(
        reason=ibis.cases(
            (documents.doc_id.isnull(), str(Refusal.MISSING_ID)),
            (empty, str(Refusal.EMPTY_DOCUMENT)),
            else_=ibis.null(str),
        )
    )
    columns = ("source", "row", "reason", "detail", "raw")
    refused = documents.filter(ibis.literal(False)).select(*columns, table=ibis.literal("documents"))
    return RawTables(impressions, documents, refused, context=context, features=features)


def _read(
    connection: BaseBackend, patterns: Sequence[Path], schema: pa.Schema, name: str, optional: Sequence[str]
) -> tuple[ir.Table, tuple[str, ...]]:
    files = find_files(patterns)
    try:
        table = read_parquet(connection, files)
    except Exception as error:
        reason = str(error).split("\n", maxsplit=1)[0]
        raise SchemaError(f"{files[0].name} is no readable Parquet file: {reason}") from error
    columns: dict[str, ir.Value] = {}
    for field in schema:
        kind = ibis.Schema.from_pyarrow(pa.schema([field]))[field.name].copy(nullable=True)
        if field.name in table.columns:
            columns[field.name] = _cast(table[field.name], kind, f"{name}: column {field.name!r}")
        elif field.nullable or field.name in optional:
            columns[field.name] = ibis.null(kind if not kind.is_timestamp() else dt.Timestamp(scale=6))
        else:
            raise SchemaError(
                f"{files[0].name} has no column {field.name!r} of {name}; it has: {', '.join(table.columns)}"
            )
    extra = tuple(column for column in table.columns if column not in schema.names and column != "date")
    if name == "documents":
        check_feature_names(extra)
    else:
        check_names(extra, RESERVED_CONTEXT, "context column", "rename it in the table, or leave it out")
    for column in extra:
        kind = dt.string
        if name == "documents":
            kind = dt.float64 if table[column].type().is_numeric() else dt.string
            kind = dt.Array(dt.string) if table[column].type().is_array() else kind
        columns[column] = table[column].cast(kind)
    nothing = ibis.null(str)
    kept = table.select(
        part=ibis.literal(0),
        source=ibis.literal(name),
        row=ibis.null("int64"),
        **columns,
        detail=nothing,
        raw=nothing,
    )
    texts = {text: kept[text].fill_null("") for text in ("title", "text") if text in schema.names}
    return kept.mutate(**texts), extra


def _cast(column: ir.Value, kind: dt.DataType, what: str) -> ir.Value:
    found = column.type()
    if kind.is_timestamp():
        if not found.is_timestamp():
            raise SchemaError(
                f"{what} is {found}, not a timestamp; convert it, or read it with format: columnar"
            )
        return column.cast(dt.Timestamp(scale=6))
    if kind.is_string() and found.is_floating():
        whole = column.cast("int64")
        return (whole.cast("float64") == column).ifelse(whole.cast("string"), column.cast("string"))
    if not (kind.is_string() or found.is_numeric() or found.is_boolean()):
        raise SchemaError(f"{what} is {found}, not {kind}; convert it, or read it with format: columnar")
    return column.cast(kind)
