"""What holds for any log: rows equal a loop over it, and what comes after the cut changes nothing before."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Row = dict[str, Any]
Drawn = list[tuple[int, str, str, list[tuple[str, bool]]]]

LISTS = st.lists(
    st.tuples(
        st.integers(0, 71),
        st.sampled_from("uvw"),
        st.sampled_from(["shoe", "Shoe", "hat"]),
        st.lists(
            st.tuples(st.sampled_from("abcdef"), st.booleans()),
            min_size=1,
            max_size=4,
            unique_by=lambda x: x[0],
        ),
    ),
    min_size=1,
    max_size=12,
)
SLOW = settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@pytest.fixture(scope="session")
def log_of(shown: Callable[..., list[Row]], later: Callable[[], list[Row]]) -> Callable[[Drawn], list[Row]]:
    """Return a function that writes drawn lists as rows of a log that can be split."""

    def log(lists: Drawn) -> list[Row]:
        rows = [*shown("i0", 0, "abc", "b", user_id="w"), *later()]
        for number, (hour, user, text, docs) in enumerate(lists):
            clicked = "".join(doc for doc, click in docs if click)
            ids = "".join(doc for doc, _ in docs)
            rows += shown(f"x{number:02}", hour, ids, clicked, user_id=user, query_text=text)
        return rows

    return log


@SLOW
@given(lists=LISTS, query=st.sampled_from(["text", "history"]))
def test_train_rows_equal_a_loop_over_the_log(tmp_path_factory, log_of, build_in, cut, lists, query):
    rows = log_of(lists)
    built = build_in(tmp_path_factory.mktemp("loop"), rows, query=query, history_length=3)

    def key(row: Row) -> str:
        return row["user_id"] if query == "history" else row["query_text"].lower()

    order = sorted(rows, key=lambda row: (row["timestamp"], len(row["impression_id"]), row["impression_id"]))
    before = [row for row in order if row["timestamp"] < cut]
    known = {(key(row), row["doc_id"]) for row in before if row["clicked"]}
    expected = set()
    for row in before:
        if not row["clicked"]:
            continue
        place = order.index(row)
        mine = [other for other in rows if other["impression_id"] == row["impression_id"]]
        last = max(other["position"] for other in mine if other["clicked"])
        unclicked = [
            other["doc_id"]
            for other in mine
            if not other["clicked"]
            and other["position"] <= last + 2
            and (key(row), other["doc_id"]) not in known
        ]
        earlier = [
            other["doc_id"]
            for other in order[:place]
            if other["clicked"]
            and other["user_id"] == row["user_id"]
            and other["impression_id"] != row["impression_id"]
        ]
        history = earlier[-3:] if query == "history" else []
        expected.add((row["impression_id"], key(row), row["doc_id"], tuple(unclicked), tuple(history)))
    found = [
        (row["impression_id"], row["query_key"], row["positive_doc_id"], tuple(row["unclicked_doc_ids"]),
         tuple(row["history"]))
        for row in built.train
    ]  # fmt: skip
    assert len(found) == len(expected)
    assert set(found) == expected
    assert {(row["query_key"], row["doc_id"]) for row in built.known_positives} == known
    assert built.train == sorted(
        built.train, key=lambda row: (row["timestamp"], row["impression_id"], row["positive_doc_id"])
    )


@SLOW
@given(lists=LISTS, query=st.sampled_from(["text", "history"]))
def test_events_after_the_cut_change_nothing_before_it(
    tmp_path_factory, shown, log_of, build_in, cut, lists, query
):
    clicks = {"maximum_user_click_rate": 0.9, "maximum_clicks_per_list": 3}
    before = shown("i1", 3, "abcd", "bd", user_id="v", query_text="shoe")
    after = [row for row in log_of(lists) if row["timestamp"] >= cut or row["impression_id"] == "i0"]
    one, two = (
        build_in(tmp_path_factory.mktemp("cut"), rows, query=query, clicks=clicks).artifact.path
        for rows in (before + log_of([]), before + after)
    )
    for name in ("train.parquet", "documents.parquet", "known_positives.parquet"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
