"""What a user had clicked before each list: the query of logs that hold no query text."""

import ibis
import ibis.expr.types as ir

from features.compute import collected


def clicks_before(positives: ir.Table, lists: ir.Table) -> ir.Table:
    """Return for each list of a known user the user's clicks in strictly earlier lists.

    Clicks are in the order of their lists (see `features.clicks.number_lists`); within a list, whose clicks
    have no times of their own, by position, then doc_id. A document clicked in several lists is there
    as often.

    Args:
        positives: `list, doc_id, position` of every click that counts, of any part.
        lists: Every list: `list`, `user_id`.

    Returns:
        `list`, `earlier` (list of doc_ids, oldest first; empty where there is none).
    """
    users = lists.filter(lists.user_id.notnull()).select("list", "user_id")
    clicks = positives.inner_join(users, "list")
    clicked = clicks.group_by("user_id").agg(
        clicked=collected(clicks.doc_id, clicks.list, clicks.position, clicks.doc_id)
    )
    here = positives.group_by("list").agg(here=positives.count())
    counted = users.left_join(here, "list").drop("list_right").fill_null({"here": 0})
    so_far = ibis.cumulative_window(group_by=counted.user_id, order_by=counted.list)
    counted = counted.mutate(before=counted.here.sum().over(so_far) - counted.here)
    found = counted.left_join(clicked, "user_id")
    nothing = ibis.literal([], type="array<string>")
    return found.select("list", earlier=ibis.coalesce(found.clicked[: found.before], nothing))


def latest(earlier: ir.ArrayValue, length: int) -> ir.ArrayValue:
    """Return the last `length` entries, oldest first."""
    start = ibis.greatest(earlier.length() - length, 0)
    recent: ir.ArrayValue = earlier[start:]
    return recent
