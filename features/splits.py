"""Which lists train, which validate, which test; and the proof that nothing later reaches training."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import ibis
import ibis.expr.types as ir
from pydantic import AwareDatetime, BeforeValidator, Discriminator, Field, Tag, model_validator

from features.compute import number
from features.config import Config
from features.errors import LeakageError

PARTS = ("train", "validation", "test")
HELD_OUT = ("validation", "test")


def _utc(value: object) -> object:
    """Read a date without a zone as UTC, since logs are in UTC."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    elif not isinstance(value, datetime) and hasattr(value, "timetuple"):
        value = datetime(*value.timetuple()[:6])
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    return value


Moment = Annotated[AwareDatetime, BeforeValidator(_utc)]


class TimeSplit(Config):
    """One cut in time for everything: train, then validation, then test."""

    by: Literal["time"] = "time"
    test_share: float = Field(
        0.1, gt=0, lt=1, description="Share of the lists, the latest, that are the test."
    )
    validation_share: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="Share of the lists before the test, the latest, that are the validation.",
    )
    test_from: Moment | None = Field(
        None, description="First moment of the test (UTC), in place of test_share."
    )
    validation_from: Moment | None = Field(
        None, description="First moment of the validation (UTC), in place of validation_share."
    )

    @model_validator(mode="after")
    def _validation_precedes_test(self) -> "TimeSplit":
        if self.test_from and self.validation_from and self.validation_from >= self.test_from:
            raise ValueError(
                f"validation_from {self.validation_from} must be before test_from {self.test_from}"
            )
        return self


class LastImpressionSplit(Config):
    """The last list of each user who has an earlier one is the test; there is no one moment of the cut."""

    by: Literal["last_impression"]
    validation_share: float = Field(
        0.2,
        gt=0,
        le=1,
        description="Share of the users, chosen by hash, whose last list but one is the validation, if they "
        "have an earlier one still.",
    )


class SessionSplit(Config):
    """Whole users or sessions are held out, chosen by hash; train and test overlap in time."""

    by: Literal["session"]
    session_column: str = Field(
        "user_id", min_length=1, description="Column of the impressions that names the user or the session."
    )
    test_share: float = Field(0.1, gt=0, lt=1, description="Share of the sessions that are the test.")
    validation_share: float = Field(
        0.1, gt=0, lt=1, description="Share of the sessions that are the validation."
    )

    @model_validator(mode="after")
    def _leave_some_for_training(self) -> "SessionSplit":
        if self.test_share + self.validation_share >= 1:
            raise ValueError("test_share + validation_share must be below 1")
        return self


def _kind_of_split(value: Any) -> str:
    return str(value.get("by", "time") if isinstance(value, dict) else getattr(value, "by", "time"))


Split = TimeSplit | LastImpressionSplit | SessionSplit

SplitConfig = Annotated[
    Annotated[TimeSplit, Tag("time")]
    | Annotated[LastImpressionSplit, Tag("last_impression")]
    | Annotated[SessionSplit, Tag("session")],
    Discriminator(_kind_of_split),
]


def cuts(lists: ir.Table, split: TimeSplit) -> tuple[datetime, datetime]:
    """Return the first moment of the validation and of the test, UTC.

    Lists with equal timestamps are never divided: all of them are on the later side.
    """
    count = number(lists.count())
    test_from = split.test_from or _moment_of(lists, count - max(1, round(count * split.test_share)))
    if split.validation_from:
        return split.validation_from, test_from
    before = lists.filter(lists.timestamp < ibis.literal(test_from))
    left = number(before.count())
    index = left - max(1, round(left * split.validation_share))
    return (_moment_of(before, max(0, index)) if left else test_from), test_from


def _moment_of(lists: ir.Table, index: int) -> datetime:
    """Return the timestamp of the list at a place in the order of all."""
    moment: datetime = (
        lists.filter(lists.list == index).select("timestamp").to_pyarrow()["timestamp"][0].as_py()
    )
    return moment.astimezone(UTC)


def assign_parts(lists: ir.Table, split: Split, moments: tuple[datetime, datetime] | None) -> ir.Table:
    """Add the column `part` (train, validation or test) to the lists.

    Args:
        lists: One row per list: `list` (its place in the order of all), `timestamp`, `user_id`, `session`.
        split: How to divide.
        moments: What `cuts` found, for a time split.
    """
    if isinstance(split, TimeSplit):
        if moments is None:
            raise ValueError("a time split needs the moments that `cuts` returns")
        validation_from, test_from = (ibis.literal(moment) for moment in moments)
        test, validation = lists.timestamp >= test_from, lists.timestamp >= validation_from
    elif isinstance(split, SessionSplit):
        place = _hash(lists.session)
        test = place < _threshold(split.test_share)
        validation = place < _threshold(split.test_share + split.validation_share)
    else:
        of_user = ibis.window(group_by=lists.user_id)
        place = ibis.row_number().over(ibis.window(group_by=lists.user_id, order_by=lists.list.desc()))
        count = lists.list.count().over(of_user)
        chosen = _hash(lists.user_id) < _threshold(split.validation_share)
        test = lists.user_id.notnull() & (count >= 2) & (place == 0)
        validation = lists.user_id.notnull() & (count >= 3) & (place == 1) & chosen
    return lists.mutate(part=ibis.cases((test, "test"), (validation, "validation"), else_="train"))


def _hash(key: ir.StringValue) -> ir.StringValue:
    """Return 8 hexadecimal digits that are the same on every machine and engine, spread evenly."""
    return key.hexdigest("md5").left(8)


def _threshold(share: float) -> str:
    """Return what the hashes of this share of all keys lie below."""
    return f"{round(share * 2**32):08x}" if share < 1 else "g"


def check_no_leakage(train: ir.Table, lists: ir.Table, split: Split) -> None:
    """Prove from the written train rows that no held-out list is among them and that the split holds.

    Args:
        train: The rows of `train.parquet`.
        lists: Every list: `list`, `impression_id`, `user_id`, `session`, `timestamp`, `part`.
        split: What the split promises.

    Raises:
        LeakageError: If a train row comes from a held-out list, or is not before what it must precede.
    """
    rows = train.select("impression_id").distinct().inner_join(lists, "impression_id")
    _refuse(rows.filter(rows.part != "train"), "train rows come from held-out lists")
    held_out = lists.filter(lists.part != "train")
    if isinstance(split, TimeSplit):
        _refuse(
            rows.filter(rows.timestamp >= held_out.timestamp.min().as_scalar()),
            "train lists are not strictly before every held-out list",
        )
    elif isinstance(split, SessionSplit):
        _refuse(rows.semi_join(held_out, "session"), "train lists belong to a session that is held out")
    else:
        first = held_out.group_by("user_id").agg(held_out_from=held_out.list.min())
        _refuse(
            rows.inner_join(first, "user_id").filter(lambda row: row.list >= row.held_out_from),
            "train lists are not before the held-out list of their user",
        )


def check_histories(histories: ir.Table, clicks: ir.Table) -> None:
    """Prove that every document of a history was clicked by that user in a list strictly before.

    Args:
        histories: `list`, `user_id`, `history` of the rows of all parts.
        clicks: Every click: `list`, `user_id`, `doc_id`.

    Raises:
        LeakageError: If a history holds what its user had not yet clicked.
    """
    first = clicks.group_by("user_id", "doc_id").agg(clicked_in=clicks.list.min())
    entries = histories.select("list", "user_id", doc_id=histories.history.unnest())
    entries = entries.left_join(first, ["user_id", "doc_id"])
    _refuse(
        entries.filter(entries.clicked_in.isnull() | (entries.clicked_in >= entries.list)),
        "entries of histories are not strictly before their list",
    )


def _refuse(rows: ir.Table, what: str) -> None:
    count = number(rows.count())
    if count:
        raise LeakageError(f"{count} {what}; nothing was written: this is a defect, please report it")
