"""The queries of validation and test, their relevant documents, and the lists that were shown for them."""

from typing import NamedTuple

import ibis
import ibis.expr.types as ir

from features.compute import collected


class HeldOut(NamedTuple):
    """What one part is evaluated on."""

    queries: ir.Table
    """`query_id, query_key, query_text, history, user_id, relevant_doc_ids, relevance, excluded_doc_ids,
    timestamp`: the query part of `validation.parquet` and `test.parquet`."""

    lists: ir.Table
    """`impression_id, query_id, doc_ids, clicked`: lists with a click and a document without one."""


def held_out(
    positives: ir.Table, shown: ir.Table, lists: ir.Table, *, graded: bool, exclude_seen: bool
) -> HeldOut:
    """Build the evaluation of one part.

    Args:
        positives: Every click that counts: `list, doc_id`.
        shown: Every shown document: `list, doc_id, position, clicked, positive`.
        lists: The part's lists that have a query: `list, impression_id, query_id, query_key, query_text,
            user_id, timestamp, history, earlier` (what the user had clicked before).
        graded: Whether relevance is the number of lists with a click instead of 1.
        exclude_seen: Whether what the user had clicked before is neither ranked nor relevant.
    """
    clicks = positives.inner_join(lists, "list")
    if exclude_seen:
        clicks = clicks.filter(~clicks.earlier.contains(clicks.doc_id))
    judged = clicks.group_by("query_id", "doc_id").agg(lists=clicks.count())
    relevance = judged.lists.cast("float64") if graded else ibis.literal(1.0)
    judged = judged.mutate(relevance=relevance)
    judged = judged.group_by("query_id").agg(
        relevant_doc_ids=collected(judged.doc_id, judged.doc_id),
        relevance=collected(judged.relevance, judged.doc_id),
    )
    first = ibis.window(group_by=lists.query_id, order_by=lists.list)
    queries = lists.mutate(place=ibis.row_number().over(first)).filter(ibis._.place == 0)
    nothing = ibis.literal([], type="array<string>")
    queries = queries.inner_join(judged, "query_id").select(
        "query_id",
        "query_key",
        "query_text",
        "history",
        "user_id",
        "relevant_doc_ids",
        "relevance",
        "timestamp",
        excluded_doc_ids=ibis._.earlier.unique().sort() if exclude_seen else nothing,
    )
    return HeldOut(queries, _lists_with_both(shown, lists.semi_join(queries, "query_id")))


def _lists_with_both(shown: ir.Table, lists: ir.Table) -> ir.Table:
    """Return the lists as shown, without clicks too short to count, if there is something to tell apart."""
    rows = shown.filter(shown.positive | ~shown.clicked)
    rows = rows.inner_join(lists.select("list", "impression_id", "query_id"), "list")
    shown_lists = rows.group_by("list", "impression_id", "query_id").agg(
        doc_ids=collected(rows.doc_id, rows.position, rows.doc_id),
        clicked=collected(rows.positive, rows.position, rows.doc_id),
        both=rows.positive.any() & (~rows.positive).any(),
    )
    return shown_lists.filter(shown_lists.both).drop("both")
