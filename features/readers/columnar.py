"""Logs in columns: CSV, JSON lines or Parquet, a row for each shown document or for each list shown.

Three shapes, told apart by what is mapped: `shown` (a list a row, with the list `clicked`), else `doc_id`
with `clicked` or `position` (a shown document a row), else `doc_id` alone (a click a row).
"""

from pathlib import Path
from typing import Final, Literal

from ibis.backends import BaseBackend
from pydantic import Field

from features.config import Config
from features.errors import SchemaError
from features.readers.catalogue import CatalogueConfig, Names, read_catalogue
from features.readers.files import Kind, Paths, describe, find_files
from features.readers.raw import RESERVED_CONTEXT, RawTables, check_names, refused_of, type_impressions
from features.readers.relations import Relation, Wanted, other_delimiter
from features.readers.source import Source
from features.readers.values import Zone, identifier
from features.tables import IMPRESSIONS, Refusal

_IDS: Final = ("impression_id", "query_id", "user_id", "doc_id")


class LogColumns(Config):
    """Which columns of the log are what; a column of the same name is found without being named."""

    impression_id: str | None = Field(None, description="Column that is equal for the documents of one list.")
    query_id: str | None = Field(None, description="Column with the log's own id of the query.")
    query_text: str | None = Field(None, description="Column with what was typed.")
    user_id: str | None = Field(None, description="Column with the user.")
    timestamp: str = Field(
        "timestamp", description="Column with the time: ISO text, or epoch s, ms, µs or ns."
    )
    doc_id: str | None = Field(None, description="Column with the document shown or clicked.")
    position: str | None = Field(None, description="Column with the place in the list.")
    clicked: str | None = Field(
        None, description="Column with whether it was clicked; with `shown`, the list clicked."
    )
    dwell_ms: str | None = Field(None, description="Column with the milliseconds that the user stayed.")
    shown: str | None = Field(None, description="Column with the list of documents shown, best place first.")


class ColumnarSource(Source):
    """A log in columns beside a catalogue."""

    format: Literal["columnar"] = Field(description="Logs in columns: CSV, JSON lines, Parquet.")
    path: Paths = Field(description="CSV, JSON lines or Parquet, each also .gz; a file, a glob, or a list.")
    kind: Kind | None = Field(None, description="csv, jsonl or parquet; null tells it by the file's name.")
    columns: LogColumns = Field(LogColumns(), description="Which columns are what.")
    context: Names = Field(default_factory=list, description="Further columns to carry along, as text.")
    documents: CatalogueConfig = Field(description="The catalogue; every log needs one.")
    first_position: Literal[0, 1] = Field(1, description="What the log calls the first position.")
    timezone: Zone = Field("UTC", description="Time zone of timestamps that state none.")
    delimiter: str = Field(",", min_length=1, max_length=1, description="Between the columns of a CSV file.")
    list_separator: str = Field(
        "|", min_length=1, description="Between the elements of a list in a CSV file."
    )

    def files(self) -> list[Path]:
        """Return every file that is read, log first."""
        return [*find_files(self.path), *find_files(self.documents.path)]


def read_columnar(connection: BaseBackend, source: ColumnarSource) -> RawTables:
    """Read a log in columns.

    Raises:
        SchemaError: If a file or a column is missing.
    """
    documents, features = read_catalogue(connection, source.documents, "catalogue")
    files = describe(find_files(source.path), source.kind)
    relation = Relation(connection, "log", files, delimiter=source.delimiter, separator=source.list_separator)
    wanted = _wanted(source, relation.columns, files[0].name)
    relation.load(wanted)
    present = {
        name
        for name, column in wanted.items()
        if column.required or set(column.columns) & set(relation.columns)
    }
    clicks = None
    if "shown" in present:
        _explode(connection, source)
        clicks = connection.table("log_clicks")
    else:
        _number_lists(connection, source, present)
    impressions = type_impressions(
        connection, "log_texts", source.context, source.timezone, source.first_position
    )
    return RawTables(
        impressions=impressions,
        documents=documents,
        refused=refused_of(connection, {"log": "impressions", "catalogue": "documents"}),
        clicks=clicks,
        context=tuple(source.context),
        features=features,
    )


def _wanted(source: ColumnarSource, available: list[str], file: str) -> dict[str, Wanted]:
    columns = source.columns
    lists = columns.shown is not None or "shown" in available
    has = ", ".join(available) or "none"
    wanted = {}
    for name in (*IMPRESSIONS.names, "shown"):
        mapped = getattr(columns, name)
        as_list = lists and name in ("shown", "clicked")
        read_as: Literal["list", "id", "text"] = "list" if as_list else "id" if name in _IDS else "text"
        wanted[name] = Wanted((mapped or name,), read_as, required=mapped is not None)
    advice = "do not list it in source.context, or rename it in the log"
    check_names(source.context, RESERVED_CONTEXT, "context column", advice)
    for name in source.context:
        wanted[name] = Wanted((name,), "text")
    if lists:
        del wanted["doc_id"], wanted["position"]
        clicked = columns.clicked or "clicked"
        if clicked not in available:
            raise SchemaError(f"{file} has no list {clicked!r}; map source.columns.clicked to one of: {has}")
        wanted["clicked_text"] = Wanted((clicked,))
    else:
        del wanted["shown"]
        if columns.doc_id is None and "doc_id" not in available:
            raise SchemaError(
                f"{file} has no column 'doc_id'; map source.columns.doc_id or .shown to one of: {has}"
                f"{other_delimiter(available)}"
            )
    return wanted


def _number_lists(connection: BaseBackend, source: ColumnarSource, present: set[str]) -> None:
    """Give each row its impression: the log's own, its query's, or, where rows are clicks, one for each."""
    clicks_only = not {"clicked", "position"} & present
    if "impression_id" not in present and not clicks_only and "query_id" not in present:
        raise SchemaError(
            "the log says neither impression_id nor query_id, so which rows are one list is unknown; map "
            "source.columns.impression_id"
        )
    own_row = "source || ':' || row"
    chosen = "impression_id" if "impression_id" in present else own_row if clicks_only else "query_id"
    clicked = "'true'" if clicks_only else "clicked"
    _create_texts(
        connection, source, f"{chosen} AS impression_id, doc_id, position, {clicked} AS clicked", "log"
    )


def _explode(connection: BaseBackend, source: ColumnarSource) -> None:
    """Turn a row with a list into a row for each of its documents, and its clicks into events."""
    good = "len(shown) > 0 AND (clicked IS NOT NULL OR clicked_text IS NULL)"
    connection.raw_sql(f"""
        INSERT INTO log_refused SELECT source, row, '{Refusal.INVALID_VALUE}',
          CASE WHEN coalesce(len(shown), 0) = 0 THEN 'shown is empty or no list'
            ELSE 'clicked is no list' END,
          CAST(to_json(log) AS VARCHAR) FROM log WHERE NOT coalesce({good}, false)
    """)
    own = "coalesce(impression_id, source || ':' || row)"
    connection.raw_sql(f"""
        CREATE OR REPLACE TEMP VIEW log_clicks AS
        SELECT part, source, row, {own} AS impression_id, unnest(clicked) AS doc_id,
          CAST(NULL AS BIGINT) AS dwell_ms FROM log WHERE {good}
    """)
    shown = (
        f"(SELECT * EXCLUDE (impression_id), {own} AS impression_id, unnest(shown) AS doc_id, "
        f"generate_subscripts(shown, 1) - {1 - source.first_position} AS place FROM log WHERE {good})"
    )
    _create_texts(
        connection,
        source,
        "impression_id, doc_id, place::VARCHAR AS position, NULL::VARCHAR AS clicked",
        shown,
    )


def _create_texts(connection: BaseBackend, source: ColumnarSource, chosen: str, rows: str) -> None:
    context = "".join(f", {identifier(name)}" for name in source.context)
    connection.raw_sql(f"""
        CREATE OR REPLACE TEMP VIEW log_texts AS
        SELECT part, source, row, query_id, query_text, user_id, timestamp, dwell_ms, {chosen}{context}
        FROM {rows}
    """)
