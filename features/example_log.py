"""The log after splitting and denoising, and what became of every list, click and document in it."""

from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import ibis.expr.types as ir
from ibis.backends import BaseBackend

from features.splits import HELD_OUT, PARTS


class Log(NamedTuple):
    """Materialised tables from which all files of an `examples` artifact are selected."""

    lists: ir.Table
    """Every list: place in the order, part, why dropped, `query_key`, `query_id`."""

    shown: ir.Table
    """Every document of the lists that are kept."""

    positives: ir.Table
    """`list, doc_id, position` of every click that counts, of any part."""

    known: ir.Table
    """`query_key, doc_id, clicks` of the train lists."""

    moments: tuple[datetime, datetime] | None
    """First moment of the validation and of the test, for a split by time."""


def compute(connection: BaseBackend, name: str, table: ir.Table) -> ir.Table:
    """Compute a table once, for all the tables that are selected from it, until the connection closes."""
    return connection.create_table(name, table, temp=True)


def count_examples(log: Log, connection: BaseBackend, staging: Path) -> dict[str, Any]:
    """Account for every list and click of the log and describe the files just written."""
    files = {part: connection.read_parquet(staging / f"{part}.parquet") for part in PARTS}
    counts: dict[str, Any] = {part: int(table.count().execute()) for part, table in files.items()}
    counts["lists"] = _count_lists(log)
    counts["clicks"] = _count_clicks(log)
    counts["unclicked"] = int(files["train"].unclicked_doc_ids.length().sum().fill_null(0).execute())
    counts["known_positives"] = int(log.known.count().execute())
    counts["train_queries"] = int(files["train"].query_key.nunique().execute())
    documents = connection.read_parquet(staging / "documents.parquet")
    cold = documents.filter(documents.cold).select("doc_id")
    counts["documents"] = {
        "total": int(documents.count().execute()),
        "cold": int(cold.count().execute()),
        "distinct_contents": int(documents.content_key.nunique().execute()),
    }
    for part in HELD_OUT:
        queries = files[part]
        relevant = queries.select(doc_id=queries.relevant_doc_ids.unnest())
        seen = int(queries.seen_query.sum().fill_null(0).execute())
        counts[f"{part}_queries"] = {
            "on_both_sides_of_the_cut": seen,
            "unseen": counts[part] - seen,
            "without_history": int((queries.history.length() == 0).sum().fill_null(0).execute()),
            "relevant": int(relevant.count().execute()),
            "relevant_cold": int(relevant.semi_join(cold, "doc_id").count().execute()),
            "lists": int(connection.read_parquet(staging / f"{part}_lists.parquet").count().execute()),
        }
    return counts


def _count_lists(log: Log) -> dict[str, Any]:
    """Count lists: total = dropped + train + validation + test."""
    lists = log.lists
    rows = lists.group_by("part", "dropped").agg(
        lists=lists.count(),
        without_click=(lists.clicks == 0).sum(),
        without_query=lists.query_key.isnull().sum(),
    )
    found = rows.to_pyarrow().to_pylist()
    kept = [row for row in found if row["dropped"] is None]
    dropped: dict[str, int] = {}
    for row in found:
        if row["dropped"] is not None:
            dropped[row["dropped"]] = dropped.get(row["dropped"], 0) + row["lists"]
    return {
        "total": sum(row["lists"] for row in found),
        "dropped": dict(sorted(dropped.items())),
        **{part: sum(row["lists"] for row in kept if row["part"] == part) for part in PARTS},
        "without_click": sum(row["without_click"] for row in kept),
        "without_query": sum(row["without_query"] for row in kept),
    }


def _count_clicks(log: Log) -> dict[str, int]:
    """Count clicked documents of the lists that are kept, and why some do not count."""
    shown = log.shown
    row = shown.aggregate(
        clicked=shown.clicked.sum(),
        positive=shown.positive.sum(),
        too_short=(shown.clicked & ~shown.positive).sum(),
        repeated_rows=shown.repeats.sum(),
    )
    return {name: int(value or 0) for name, value in row.to_pyarrow().to_pylist()[0].items()}
