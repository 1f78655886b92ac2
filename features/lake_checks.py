"""What becomes of each row: accepted, a duplicate, or refused for a reason: Ibis expressions."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import ibis
import ibis.expr.types as ir

from features.readers import RawTables
from features.tables import Refusal

ACCEPTED: Final = "accepted"
DUPLICATE: Final = "duplicate"


def check_impressions(raw: RawTables, known: ir.Table | None, latest: datetime) -> ir.Table:
    """Return the impressions with their `outcome`: `ACCEPTED`, `DUPLICATE` or a `Refusal`.

    Rows of one list and document are one impression: the earliest, then the best placed, then the first in
    the source is kept, clicked if any of them was, with the longest dwell.

    Args:
        raw: What was read.
        known: `doc_id` of the catalogue; None accepts every document.
        latest: UTC without a zone; a later timestamp is in the future.
    """
    shown = raw.impressions
    if raw.clicks is not None:
        clicks = (
            raw.clicks.filter(raw.clicks.impression_id.notnull() & raw.clicks.doc_id.notnull())
            .group_by(click_impression=raw.clicks.impression_id, click_doc=raw.clicks.doc_id)
            .aggregate(click_dwell=raw.clicks.dwell_ms.max())
        )
        matches = [shown.impression_id == clicks.click_impression, shown.doc_id == clicks.click_doc]
        shown = shown.left_join(clicks, matches)
        shown = shown.mutate(
            clicked=shown.clicked | shown.click_doc.notnull(),
            dwell_ms=ibis.coalesce(shown.dwell_ms, shown.click_dwell),
        ).drop("click_impression", "click_doc", "click_dwell")
    future = shown.timestamp > ibis.literal(latest)
    refusals = [(shown.reason.notnull(), shown.reason), (future, ibis.literal(str(Refusal.FUTURE_TIMESTAMP)))]
    if known is None:
        return _mark_repeated(shown.mutate(outcome=ibis.cases(*refusals, else_=ibis.literal(ACCEPTED))))
    catalogue = known.select(known_id=known.doc_id)
    shown = shown.left_join(catalogue, shown.doc_id == catalogue.known_id)
    refusals.append((shown.known_id.isnull(), ibis.literal(str(Refusal.UNKNOWN_DOCUMENT))))
    return _mark_repeated(
        shown.mutate(outcome=ibis.cases(*refusals, else_=ibis.literal(ACCEPTED))).drop("known_id")
    )


def _mark_repeated(shown: ir.Table) -> ir.Table:
    same = ibis.window(group_by=[shown.impression_id, shown.doc_id, shown.outcome])
    first = ibis.window(
        group_by=[shown.impression_id, shown.doc_id, shown.outcome],
        order_by=[
            shown[name].asc() for name in ("timestamp", "position", "part", "row", "query_text", "user_id")
        ],
    )
    accepted = shown.outcome == ACCEPTED
    return shown.mutate(
        outcome=(accepted & (ibis.row_number().over(first) > 0)).ifelse(DUPLICATE, shown.outcome),
        clicked=accepted.ifelse(shown.clicked.max().over(same), shown.clicked),
        dwell_ms=accepted.ifelse(shown.dwell_ms.max().over(same), shown.dwell_ms),
    )


def check_documents(raw: RawTables) -> ir.Table:
    """Return the documents with their `outcome`; of the rows of one id the newest, else the last, is kept."""
    documents = raw.documents
    documents = documents.mutate(outcome=ibis.coalesce(documents.reason, ibis.literal(ACCEPTED)))
    newest = ibis.window(
        group_by=[documents.doc_id, documents.outcome],
        order_by=[
            documents[name].desc(nulls_first=False) for name in ("updated_at", "part", "row", "title", "text")
        ],
    )
    repeated = (documents.outcome == ACCEPTED) & (ibis.row_number().over(newest) > 0)
    return documents.mutate(outcome=repeated.ifelse(DUPLICATE, documents.outcome))


def unmatched_clicks(clicks: ir.Table, impressions: ir.Table) -> ir.Table:
    """Return the click events, with their `outcome`, whose list did not show their document."""
    lists = impressions.select("impression_id", "doc_id").distinct()
    orphans = clicks.anti_join(lists, ["impression_id", "doc_id"])
    return orphans.mutate(
        outcome=(orphans.impression_id.isnull() | orphans.doc_id.isnull()).ifelse(
            str(Refusal.MISSING_ID), str(Refusal.CLICK_NOT_SHOWN)
        )
    )


def quarantined(table: ir.Table, name: str, columns: Sequence[str]) -> ir.Table:
    """Return the refused rows of a checked table in the columns of `QUARANTINE`.

    Args:
        table: With `source, row, outcome` and `columns`, and perhaps `detail` and `raw`.
        name: impressions or documents.
        columns: What to keep of a row whose reader kept nothing.
    """
    refused = table.filter(~table.outcome.isin([ACCEPTED, DUPLICATE]))
    values = _to_json(ibis.struct({column: refused[column].cast("string") for column in columns}))
    has_detail = "detail" in table.columns
    return refused.select(
        table=ibis.literal(name),
        source=refused.source,
        row=refused.row.cast("int64"),
        reason=refused.outcome,
        detail=refused.detail.cast("string") if has_detail else ibis.null(str),
        raw=ibis.coalesce(refused.raw, values) if has_detail else values,
    )


def _to_json(struct: ir.StructValue) -> ir.StringValue:
    """Write a struct as JSON, by the function `to_json` that DuckDB and Spark both have."""

    def to_json(value: object) -> str:
        raise NotImplementedError(value)  # the engine's own function runs instead

    return ibis.udf.scalar.builtin(to_json, signature=((struct.type(),), "json"))(struct).cast("string")


def describe(impressions: ir.Table) -> dict[str, Any]:
    """Return what a manifest says of the accepted impressions."""
    accepted = impressions.filter(impressions.outcome == ACCEPTED)
    row = (
        accepted.aggregate(
            lists=accepted.impression_id.nunique(),
            clicks=accepted.clicked.sum(),
            first=accepted.timestamp.min(),
            last=accepted.timestamp.max(),
        )
        .to_pyarrow()
        .to_pylist()[0]
    )
    return {
        "lists": int(row["lists"]),
        "clicks": int(row["clicks"] or 0),
        "first": f"{row['first'].isoformat()}Z",
        "last": f"{row['last'].isoformat()}Z",
    }
