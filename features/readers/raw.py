"""What every reader hands to the lake: two tables, and the rows that no table could take."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import ibis
import ibis.expr.types as ir
from ibis.backends import BaseBackend

from features.errors import SchemaError
from features.readers.values import identifier, literal
from features.tables import DOCUMENTS, IMPRESSIONS, Refusal

_ADDED: Final = frozenset({"part", "source", "row", "reason", "detail", "raw", "outcome"})

RESERVED: Final = frozenset(
    {*DOCUMENTS.names, "content_key", "impressions", "clicks", "ctr", "sampling_probability", "cold"}
    | {*_ADDED, "untyped"}
)
"""Names that a feature column may not have: those of the documents table, of what ingestion adds to it on the
way, and of what examples add."""

RESERVED_CONTEXT: Final = frozenset(
    {*IMPRESSIONS.names, *_ADDED, "date", "shown", "place", "clicked_text", "typed_timestamp"}
    | {"typed_position", "known_id", "click_impression", "click_doc", "click_dwell"}
)
"""Names that a context column may not have: those of the impressions, their partition, and of what ingestion
adds to them on the way."""


def check_names(names: Iterable[str], reserved: frozenset[str], what: str, advice: str) -> None:
    """Refuse a column that would hide another one; upper and lower case are one name to the engines.

    Args:
        names: Of the user's columns.
        reserved: Names that they may not have, in lower case.
        what: What the columns are, for the message.
        advice: What to do, for the message; `{name}` is put in.

    Raises:
        SchemaError: If a name is reserved, or there twice.
    """
    seen: set[str] = set()
    for name in names:
        if name.lower() in reserved | seen:
            raise SchemaError(f"{what} {name!r} has the name of another column; {advice.format(name=name)}")
        seen.add(name.lower())


@dataclass(frozen=True)
class RawTables:
    """A source, read: typed, but not yet checked against each other.

    Attributes:
        impressions: `part, source, row`, the columns of `IMPRESSIONS` (nullable, `timestamp` UTC without
            zone), context columns, and `reason, detail, raw`: why the row must be refused, where known yet.
        clicks: Clicks that come as events of their own: `part, source, row, impression_id, doc_id`, and
            `dwell_ms`; None where impressions know their clicks.
        documents: `part, source, row`, `DOCUMENTS`, feature columns, `reason, detail, raw`.
        refused: `table, source, row, reason, detail, raw` of rows that reached neither table.
        context: Names of the context columns.
        features: Names of the feature columns.
        ignored: How many lines are neither: searches, page views, bulk actions.
    """

    impressions: ir.Table
    documents: ir.Table
    refused: ir.Table
    clicks: ir.Table | None = None
    context: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    ignored: Mapping[str, int] = field(default_factory=dict)


def type_impressions(
    connection: BaseBackend, texts: str, context: Sequence[str], zone: str, first_position: int = 1
) -> ir.Table:
    """Turn a table of texts into impressions with types, and name the first fault of each row.

    Args:
        connection: DuckDB.
        texts: A table with `part, source, row` and the columns of `IMPRESSIONS` and `context`, all text.
        context: Further columns, passed through.
        zone: Time zone of timestamps that state none.
        first_position: What the log calls the first position, 0 or 1.
    """
    extra = "".join(f", {identifier(name)}" for name in context)
    everything = ", ".join(f"{literal(name)}: {identifier(name)}" for name in (*IMPRESSIONS.names, *context))
    faults = [
        ("impression_id IS NULL", Refusal.MISSING_ID, "'no impression_id'"),
        ("doc_id IS NULL", Refusal.MISSING_ID, "'no doc_id'"),
        ("timestamp IS NULL", Refusal.MISSING_TIMESTAMP, "NULL"),
        ("typed_timestamp IS NULL", Refusal.UNREADABLE_TIMESTAMP, "timestamp"),
        (
            "position IS NOT NULL AND coalesce(typed_position NOT BETWEEN 1 AND 2147483647, true)",
            Refusal.INVALID_POSITION,
            "position",
        ),
        (
            "clicked IS NOT NULL AND tt_truth(clicked) IS NULL",
            Refusal.INVALID_VALUE,
            "'clicked: ' || clicked",
        ),
        (
            "dwell_ms IS NOT NULL AND coalesce(tt_number(dwell_ms) NOT BETWEEN 0 AND 9e15, true)",
            Refusal.INVALID_VALUE,
            "'dwell_ms: ' || dwell_ms",
        ),
    ]
    reason, detail = (_first(faults, index) for index in (1, 2))
    view = f"{texts}_typed"
    connection.raw_sql(f"""
        CREATE OR REPLACE TEMP VIEW {view} AS
        SELECT part, source, row, impression_id, coalesce(query_id, impression_id) AS query_id, query_text,
          user_id, typed_timestamp AS timestamp, doc_id,
          CASE WHEN typed_position BETWEEN 1 AND 2147483647 THEN CAST(typed_position AS INTEGER) END
            AS position,
          coalesce(tt_truth(clicked), false) AS clicked,
          CASE WHEN tt_number(dwell_ms) BETWEEN 0 AND 9e15 THEN CAST(round(tt_number(dwell_ms)) AS BIGINT) END
            AS dwell_ms{extra},
          {reason} AS reason, {detail} AS detail,
          CASE WHEN {reason} IS NOT NULL THEN CAST(to_json({{{everything}}}) AS VARCHAR) END AS raw
        FROM (SELECT *, tt_time(timestamp, {literal(zone)}) AS typed_timestamp,
                tt_whole(position) + {1 - first_position} AS typed_position FROM {texts})
    """)
    return connection.table(view)


def _first(faults: Sequence[tuple[str, Refusal, str]], index: int) -> str:
    results = [literal(fault[1]) if index == 1 else fault[2] for fault in faults]
    cases = (f"WHEN {fault[0]} THEN {result}" for fault, result in zip(faults, results, strict=True))
    return f"CASE {' '.join(cases)} END"


def refused_of(connection: BaseBackend, tables: Mapping[str, str]) -> ir.Table:
    """Collect the `<name>_refused` tables; `tables` says which table their rows were meant for."""
    parts = [
        connection.table(f"{name}_refused").mutate(table=ibis.literal(table))
        for name, table in tables.items()
    ]
    return ibis.union(*parts) if len(parts) > 1 else parts[0]
