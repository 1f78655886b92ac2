"""The log after splitting and denoising, and what became of every list, click and document in it."""

from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import ibis.expr.types as ir
from ibis.backends import BaseBackend

from features.compute import number
from features.engine import read_parquet
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


def count_examples(log: Log, keyed: ir.Table, connection: BaseBackend, staging: Path) -> dict[str, Any]:
    """Account for every list and click of the log and describe the files just written.

    Args:
        log: The log.
        keyed: Its lists that could become examples.
        connection: The engine.
        staging: Where the files are.
    """
    files = {part: read_parquet(connection, [staging / f"{part}.parquet"]) for part in PARTS}
    counts: dict[str, Any] = {part: number(table.count()) for part, table in files.items()}
    counts["lists"] = _count_lists(log, keyed)
    counts["shown"] = _count_shown(log)
    counts["unclicked"] = number(files["train"].unclicked_doc_ids.length().sum())
    counts["known_positives"] = number(log.known.count())
    counts["train_queries"] = number(files["train"].query_key.nunique())
    documents = read_parquet(connection, [staging / "documents.parquet"])
    cold = documents.filter(documents.cold).select("doc_id")
    counts["documents"] = {
        "total": number(documents.count()),
        "cold": number(cold.count()),
        "distinct_contents": number(documents.content_key.nunique()),
    }
    for part in HELD_OUT:
        queries, lists = files[part], read_parquet(connection, [staging / f"{part}_lists.parquet"])
        of_part = keyed.filter(keyed.part == part)
        relevant = queries.select(doc_id=queries.relevant_doc_ids.unnest())
        seen = number(queries.seen_query.sum())
        counts[f"{part}_queries"] = {
            "on_both_sides_of_the_cut": seen,
            "unseen": counts[part] - seen,
            "without_relevant_left": number(of_part.query_id.nunique()) - counts[part],
            "without_history": number((queries.history.length() == 0).sum()),
            "relevant": number(relevant.count()),
            "relevant_cold": number(relevant.semi_join(cold, "doc_id").count()),
            "lists": number(lists.count()),
        }
    return counts


def _count_lists(log: Log, keyed: ir.Table) -> dict[str, Any]:
    """Count lists: total = dropped + train + validation + test."""
    lists = log.lists
    with_click = lists.filter(lists.query_key.notnull()).semi_join(log.positives, "list")
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
        "short_history": number(with_click.count()) - number(keyed.count()),
    }


def _count_shown(log: Log) -> dict[str, int]:
    """Count shown and clicked documents of the lists that are kept, and why some do not count."""
    shown = log.shown
    row = shown.aggregate(
        shown=shown.count(),
        clicked=shown.clicked.sum(),
        positive=shown.positive.sum(),
        too_short=(shown.clicked & ~shown.positive).sum(),
        repeated_rows=shown.repeats.sum(),
    )
    counts = {name: int(value or 0) for name, value in row.to_pyarrow().to_pylist()[0].items()}
    rows = number(log.lists.filter(log.lists.dropped.isnull())["rows"].sum())
    return {**counts, "unknown_documents": rows - counts["shown"] - counts["repeated_rows"]}
