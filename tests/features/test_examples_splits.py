from datetime import UTC, datetime, timedelta

import ibis
import pyarrow as pa
import pytest
from pydantic import TypeAdapter, ValidationError

from features.errors import LeakageError
from features.splits import (
    LastImpressionSplit,
    SessionSplit,
    SplitConfig,
    TimeSplit,
    assign_parts,
    check_histories,
    check_no_leakage,
    cuts,
)

T0 = datetime(2024, 1, 1, tzinfo=UTC)


def _lists(hours: list[int], users: list[str | None] | None = None, parts: list[str] | None = None):
    users = users or [f"u{hour}" for hour in hours]
    columns = {
        "list": list(range(len(hours))),
        "impression_id": [f"i{row}" for row in range(len(hours))],
        "timestamp": pa.array([T0 + timedelta(hours=hour) for hour in hours], pa.timestamp("us", "UTC")),
        "user_id": pa.array(users, pa.string()),
        "session": pa.array([user or f"i{row}" for row, user in enumerate(users)], pa.string()),
    }
    return ibis.memtable(pa.table(columns | ({"part": parts} if parts else {})))


def _parts(lists, split) -> list[str]:
    moments = cuts(lists, split) if isinstance(split, TimeSplit) else None
    rows = assign_parts(lists, split, moments).to_pyarrow().sort_by("list")
    return rows["part"].to_pylist()


def test_a_time_split_takes_the_latest_share_of_the_lists():
    split = TimeSplit(test_share=0.2, validation_share=0.125)
    assert _parts(_lists(list(range(10))), split) == ["train"] * 7 + ["validation"] + ["test"] * 2


def test_lists_of_one_moment_are_never_divided():
    split = TimeSplit(test_share=0.2, validation_share=0.4)
    assert _parts(_lists([0, 1, 2, 3, 3, 5, 6, 7, 7, 7]), split) == (
        ["train"] * 3 + ["validation"] * 4 + ["test"] * 3
    )


def test_dates_fix_the_cut_in_utc():
    split = TypeAdapter(SplitConfig).validate_python(
        {"test_from": "2024-01-02", "validation_from": "2024-01-01T12:00:00+02:00"}
    )
    assert cuts(_lists([0]), split) == (T0 + timedelta(hours=10), T0 + timedelta(days=1))
    assert _parts(_lists([0, 9, 10, 23, 24]), split) == (["train"] * 2 + ["validation"] * 2 + ["test"])


def test_a_date_for_the_test_leaves_the_validation_to_its_share():
    split = TimeSplit(test_from=T0 + timedelta(hours=6), validation_share=0.5)
    assert _parts(_lists(list(range(8))), split) == ["train"] * 3 + ["validation"] * 3 + ["test"] * 2


def test_the_last_list_of_users_with_an_earlier_one_is_the_test():
    users = ["a", "b", "a", "c", "b", "a", None, None]
    split = LastImpressionSplit(by="last_impression", validation_share=1.0)
    assert _parts(_lists(list(range(8)), users), split) == [
        "train",  # a, first of three
        "train",  # b, first of two: no earlier one is left for a validation
        "validation",  # a, last but one
        "train",  # c has one list only
        "test",
        "test",
        "train",  # nobody knows whose last list this is
        "train",
    ]


def test_the_validation_takes_about_its_share_of_the_users():
    users = [f"user {number}" for number in range(400) for _ in range(3)]
    split = LastImpressionSplit(by="last_impression", validation_share=0.25)
    parts = _parts(_lists(list(range(1200)), users), split)
    assert parts.count("test") == 400
    assert 70 <= parts.count("validation") <= 130


def test_sessions_are_held_out_whole_and_the_same_way_every_time():
    users = [f"user {number % 300}" for number in range(900)]
    split = SessionSplit(by="session", test_share=0.2, validation_share=0.1)
    parts = _parts(_lists(list(range(900)), users), split)
    assert parts[:300] == parts[300:600] == parts[600:]
    assert 40 <= parts[:300].count("test") <= 80
    assert 15 <= parts[:300].count("validation") <= 45
    assert parts[:6] == ["train", "train", "train", "train", "train", "test"]


@pytest.mark.parametrize(
    "value",
    [
        {"by": "nothing"},
        {"by": "time", "validation_share": 1.0},
        {"by": "session", "test_share": 0.6, "validation_share": 0.4},
        {"by": "time", "test_from": "2024-01-01", "validation_from": "2024-01-02"},
        {"by": "last_impression", "test_share": 0.1},
        {"test_share": 0.0},
    ],
)
def test_a_split_that_cannot_be_made_is_refused(value: dict):
    with pytest.raises(ValidationError):
        TypeAdapter(SplitConfig).validate_python(value)


TIME, LAST = TimeSplit(), LastImpressionSplit(by="last_impression")
SESSION = SessionSplit(by="session")


def _train(*impressions: str):
    return ibis.memtable(pa.table({"impression_id": list(impressions)}))


@pytest.mark.parametrize("split", [TIME, LAST, SESSION], ids=lambda split: split.by)
def test_a_held_out_list_among_the_train_rows_is_a_leak(split):
    lists = _lists([0, 1], ["a", "b"], ["train", "test"])
    check_no_leakage(_train("i0"), lists, split)
    with pytest.raises(LeakageError, match="1 train rows come from held-out lists"):
        check_no_leakage(_train("i0", "i1"), lists, split)


def test_a_train_list_at_the_moment_of_the_cut_is_a_leak():
    with pytest.raises(LeakageError, match="not strictly before"):
        check_no_leakage(_train("i0"), _lists([1, 1], ["a", "b"], ["train", "validation"]), TIME)


def test_a_train_list_after_its_users_test_is_a_leak_and_after_anothers_is_not():
    parts = ["test", "train"]
    check_no_leakage(_train("i1"), _lists([0, 1], ["a", "b"], parts), LAST)
    with pytest.raises(LeakageError, match="of their user"):
        check_no_leakage(_train("i1"), _lists([0, 1], ["a", "a"], parts), LAST)


def test_a_session_on_both_sides_is_a_leak():
    with pytest.raises(LeakageError, match="session"):
        check_no_leakage(_train("i0"), _lists([0, 1], ["a", "a"], ["train", "test"]), SESSION)


@pytest.mark.parametrize("clicked_in", [1, 2], ids=["its own list", "a later list"])
def test_a_history_with_a_click_that_is_not_strictly_earlier_is_a_leak(clicked_in: int):
    histories = ibis.memtable(pa.table({"list": [1], "user_id": ["a"], "history": [["x"]]}))
    check_histories(histories, _clicks(0, "a"))
    with pytest.raises(LeakageError, match="histories"):
        check_histories(histories, _clicks(clicked_in, "a"))
    with pytest.raises(LeakageError, match="histories"):
        check_histories(histories, _clicks(0, "b"))


def _clicks(clicked_in: int, user: str):
    return ibis.memtable(pa.table({"list": [clicked_in], "user_id": [user], "doc_id": ["x"]}))
