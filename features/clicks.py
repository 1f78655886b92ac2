"""From shown documents to what a click says: positives, and documents examined and skipped."""

from typing import Literal

import ibis
import ibis.expr.types as ir
from pydantic import Field

from features.compute import collected
from features.config import Config


class ClicksConfig(Config):
    """Which clicks count, and which documents without a click were seen by the user."""

    minimum_dwell_ms: int | None = Field(
        None,
        ge=0,
        description="Shorter clicks are neither positive nor unclicked; a click without a dwell time counts.",
    )
    maximum_clicks_per_list: int | None = Field(
        None, ge=1, description="Lists with more clicks are dropped, as a robot's."
    )
    maximum_user_click_rate: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Users who clicked a larger share of what the train lists showed them are dropped.",
    )
    drop_all_clicked: bool = Field(
        False, description="Drop lists of two or more documents of which every one was clicked."
    )
    examined: Literal["above_last_click", "all"] = Field(
        "above_last_click",
        description="Which documents were seen: down to the last click and examined_below more, or the whole "
        "list, for logs whose lists were shown at once, as in a grid.",
    )
    examined_below: int = Field(
        2, ge=0, description="How many positions below the last click count as seen (above_last_click)."
    )
    examined_without_position: bool = Field(
        False, description="Whether lists without positions count as seen as a whole (above_last_click)."
    )


def number_lists(impressions: ir.Table, session_column: str | None) -> ir.Table:
    """Return one row per list, with its place in the order of all lists.

    The order is by timestamp (the earliest of the list's rows), then by length of the impression_id, then by
    impression_id: ids that count up (9, 10) keep their order where timestamps tie. "Earlier" and "later" mean
    this order everywhere.

    Returns:
        `list` (int64 from 0), `impression_id, timestamp, user_id, query_text, session, rows` (shown),
        `clicks`, `last_click` (largest position with a click), `unplaced_click` (a click without position).
    """
    placed = impressions.position.max(where=impressions.clicked)
    session = impressions[session_column].cast("string").max() if session_column else ibis.null("string")
    lists = impressions.group_by("impression_id").agg(
        timestamp=impressions.timestamp.min(),
        user_id=impressions.user_id.max(),
        query_text=impressions.query_text.max(),
        session=session,
        rows=impressions.count(),
        clicks=impressions.clicked.sum(),
        last_click=placed,
        unplaced_click=(impressions.clicked & impressions.position.isnull()).any(),
    )
    order = [lists.timestamp, lists.impression_id.length(), lists.impression_id]
    return lists.mutate(
        list=ibis.row_number().over(ibis.window(order_by=order)),
        session=ibis.coalesce(lists.session, lists.impression_id),
    )


def drop_lists(lists: ir.Table, config: ClicksConfig) -> ir.Table:
    """Add the column `dropped`: why a list is left out of everything, null where it is kept.

    The click rate of a user is that of the train lists alone, so what users do later changes nothing.
    """
    reasons: list[tuple[ir.BooleanValue, str]] = []
    if config.maximum_clicks_per_list is not None:
        reasons.append((lists.clicks > config.maximum_clicks_per_list, "too_many_clicks"))
    if config.drop_all_clicked:
        reasons.append(((lists.rows >= 2) & (lists.clicks == lists.rows), "all_clicked"))
    lists = lists.mutate(dropped=ibis.cases(*reasons) if reasons else ibis.null("string"))
    if config.maximum_user_click_rate is not None:
        counted = lists.filter(lists.dropped.isnull(), lists.part == "train", lists.user_id.notnull())
        users = counted.group_by("user_id").agg(rate=counted.clicks.sum() / counted.rows.sum())
        users = users.filter(users.rate > config.maximum_user_click_rate).select(robot="user_id")
        lists = lists.left_join(users, lists.user_id == users.robot)
        reason = ibis.cases((lists.robot.notnull(), "user_click_rate"))
        lists = lists.mutate(dropped=ibis.coalesce(lists.dropped, reason)).drop("robot")
    return lists


def judge_shown(impressions: ir.Table, lists: ir.Table, config: ClicksConfig) -> ir.Table:
    """Return one row per list and document with what the user's click, or its absence, says.

    A document that a list shows or logs twice is one: at its first position, clicked if any row was clicked,
    with the longest dwell time.

    Returns:
        `list, doc_id, position`; `clicked`; `positive` (a click that counts); `unclicked` (examined and
        skipped); `repeats` (further rows of the same document). Only lists that are kept.
    """
    kept = lists.filter(lists.dropped.isnull()).select(
        "list", "impression_id", "last_click", "unplaced_click"
    )
    rows = impressions.inner_join(kept, "impression_id")
    shown = rows.group_by("list", "doc_id").agg(
        position=rows.position.min(),
        clicked=rows.clicked.any(),
        dwell_ms=rows.dwell_ms.max(where=rows.clicked),
        repeats=rows.count() - 1,
        last_click=rows.last_click.max(),
        unplaced_click=rows.unplaced_click.any(),
    )
    positive = shown.clicked
    if config.minimum_dwell_ms is not None:
        positive = positive & ibis.coalesce(shown.dwell_ms >= config.minimum_dwell_ms, True)
    return shown.select(
        "list",
        "doc_id",
        "position",
        "clicked",
        "repeats",
        positive=positive,
        unclicked=~shown.clicked & _examined(shown, config),
    )


def _examined(shown: ir.Table, config: ClicksConfig) -> ir.BooleanValue:
    if config.examined == "all":
        return ibis.literal(True)
    above = shown.position <= shown.last_click + config.examined_below
    unknown = shown.position.isnull() | shown.last_click.isnull() | shown.unplaced_click
    examined: ir.BooleanValue = ibis.ifelse(unknown, config.examined_without_position, above)
    return examined


def skipped_documents(shown: ir.Table, lists: ir.Table, known_positives: ir.Table) -> ir.Table:
    """Return for each train list the documents that its user examined and skipped.

    Documents that were clicked for the same query_key in any train list are left out.

    Returns:
        `list`, `unclicked_doc_ids` in the order shown (position, then doc_id).
    """
    rows = shown.filter(shown.unclicked).select("list", "doc_id", "position")
    train = lists.filter(lists.part == "train", lists.query_key.notnull()).select("list", "query_key")
    rows = rows.inner_join(train, "list").anti_join(known_positives, ["query_key", "doc_id"])
    return rows.group_by("list").agg(unclicked_doc_ids=collected(rows.doc_id, rows.position, rows.doc_id))
