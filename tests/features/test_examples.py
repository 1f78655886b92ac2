from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from features.artifact import Artifact, publish
from features.errors import ArtifactError, ConfigError, SchemaError
from features.examples import ExamplesConfig, build_examples
from features.tables import DOCUMENTS, IMPRESSIONS

# Ibis 12 calls what DuckDB 2 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:fetch_arrow_table:DeprecationWarning")

T0 = datetime(2024, 1, 1, tzinfo=UTC)
DAY = {"test_from": T0 + timedelta(hours=48), "validation_from": T0 + timedelta(hours=24)}
Row = dict[str, Any]


def shown(impression: str, hour: float, docs: str, clicked: str = "", **columns: Any) -> list[Row]:
    """Return the rows of one list; each character of `docs` is a document."""
    row: Row = {
        "impression_id": impression,
        "query_id": impression,
        "query_text": "shoe",
        "user_id": "u",
        "timestamp": T0 + timedelta(hours=hour),
        "dwell_ms": None,
    } | columns
    return [
        {"position": place, "clicked": doc in clicked} | row | {"doc_id": doc}
        for place, doc in enumerate(docs, 1)
    ]


def later() -> list[Row]:
    """Return a validation and a test list of two queries, so that every split has its parts."""
    return [
        *shown("v1", 30, "ab", "a", query_text="shoe", user_id="v"),
        *shown("v2", 31, "ab", "b", query_text="hat", user_id="w"),
        *shown("t1", 50, "ab", "a", query_text="shoe", user_id="v"),
        *shown("t2", 51, "ab", "b", query_text="hat", user_id="w"),
    ]


def write_lake(path: Path, rows: Iterable[Row], documents: Iterable[Row] | None = None) -> Path:
    rows = list(rows)
    documents = [{"doc_id": doc} for doc in "abcdefgh"] if documents is None else list(documents)
    extra = [pa.field("session_id", pa.string())] if any("session_id" in row for row in rows) else []
    features = [pa.field("brand", pa.string())] if any("brand" in row for row in documents) else []
    days: dict[str, list[Row]] = {}
    for row in rows:
        days.setdefault(row["timestamp"].date().isoformat(), []).append(row)
    with publish(path, "lake", {}) as staging:
        for day, of_day in days.items():
            folder = staging / "impressions" / f"date={day}"
            folder.mkdir(parents=True)
            pq.write_table(
                pa.Table.from_pylist(of_day, pa.schema([*IMPRESSIONS, *extra])), folder / "0.parquet"
            )
        if documents:
            (staging / "documents").mkdir()
            full = [{"title": f"title {row['doc_id']}", "text": ""} | row for row in documents]
            pq.write_table(
                pa.Table.from_pylist(full, pa.schema([*DOCUMENTS, *features])),
                staging / "documents" / "0.parquet",
            )
    return path


class Built:
    """An examples artifact and its files as lists of rows."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.counts = artifact.content["counts"]

    def __getattr__(self, name: str) -> list[Row]:
        rows: list[Row] = pq.read_table(self.artifact.path / f"{name}.parquet").to_pylist()
        return rows


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Built]:
    def from_rows(rows: Iterable[Row], *, documents: Iterable[Row] | None = None, **config: Any) -> Built:
        lake = write_lake(tmp_path / "lake", rows, documents)
        config = {"query": "text", "split": DAY} | config
        return Built(build_examples(lake, tmp_path / "examples", ExamplesConfig(**config)))

    return from_rows


# --- train rows -----------------------------------------------------------------------------------------


def test_each_click_gives_a_row_with_what_was_examined_and_skipped(build):
    rows = build([*shown("i", 1, "abcdefgh", "bd", query_text="Red  SHOE"), *later()]).train
    assert [row["positive_doc_id"] for row in rows] == ["b", "d"]
    for row in rows:
        assert row["unclicked_doc_ids"] == ["a", "c", "e", "f"]  # down to the last click, and two more
        assert row["query_key"] == row["query_text"] == "red shoe"
        assert (row["impression_id"], row["history"], row["weight"]) == ("i", [], 1.0)
        assert row["timestamp"] == T0 + timedelta(hours=1)


@pytest.mark.parametrize(
    ("clicks", "position", "unclicked"),
    [
        ({"examined_below": 0}, 1, ["a"]),
        ({"examined": "all"}, 1, ["a", "c", "d", "e"]),
        ({}, None, []),
        ({"examined_without_position": True}, None, ["a", "c", "d", "e"]),
        ({"examined": "all"}, None, ["a", "c", "d", "e"]),
    ],
)
def test_what_was_examined_is_a_matter_of_configuration(build, clicks, position, unclicked):
    columns = {} if position else {"position": None}
    rows = [{**row, **columns} for row in shown("i", 1, "abcde", "b")]
    assert build([*rows, *later()], clicks=clicks).train[0]["unclicked_doc_ids"] == unclicked


def test_a_document_clicked_elsewhere_for_the_same_query_is_not_unclicked(build):
    rows = [
        *shown("i", 1, "abc", "c", query_text="boot"),
        *shown("j", 2, "adc", "a", query_text="BOOT ", user_id="x"),
        *shown("k", 60, "b", "b", query_text="boot"),  # after the cut: may change nothing
        *later(),
    ]
    found = {row["impression_id"]: row["unclicked_doc_ids"] for row in build(rows).train}
    assert found == {"i": ["b"], "j": ["d"]}


def test_the_key_of_a_history_query_is_its_user(build):
    rows = [
        *shown("i", 1, "abc", "c"),
        *shown("j", 2, "adc", "a"),
        *shown("k", 3, "ab", "b", user_id="x"),
        *later(),
    ]
    found = build(rows, query="history").train
    assert [(row["query_key"], row["query_text"]) for row in found] == [("u", None), ("u", None), ("x", None)]
    assert [row["unclicked_doc_ids"] for row in found] == [["b"], ["d"], ["a"]]


def test_weight_by_list_shares_one_among_the_clicks_of_a_list(build):
    rows = [*shown("i", 1, "abcd", "abcd"), *shown("j", 2, "a", "a"), *later()]
    assert [row["weight"] for row in build(rows, weight="list").train] == [0.25] * 4 + [1.0]


def test_a_click_too_short_is_neither_positive_nor_unclicked(build):
    rows = shown("i", 1, "abcd", "bcd")
    for row, dwell in zip(rows, [None, 5, 5000, None], strict=True):
        row["dwell_ms"] = dwell
    test = shown("t3", 52, "abcd", "bc", query_text="coat")
    test[1]["dwell_ms"] = 5
    built = build([*rows, *test, *later()], clicks={"minimum_dwell_ms": 1000})
    assert [(row["positive_doc_id"], row["unclicked_doc_ids"]) for row in built.train] == [
        ("c", ["a"]),
        ("d", ["a"]),
    ]
    assert {"query_key": "shoe", "doc_id": "b"} not in built.known_positives
    assert built.counts["shown"] == {
        "shown": 16,
        "clicked": 9,
        "positive": 7,
        "too_short": 2,
        "repeated_rows": 0,
        "unknown_documents": 0,
    }
    (shown_list,) = [row for row in built.test_lists if row["impression_id"] == "t3"]
    assert (shown_list["doc_ids"], shown_list["clicked"]) == (["a", "c", "d"], [False, True, False])


def test_a_repeated_click_in_a_list_counts_once(build):
    twice = [*shown("i", 1, "abc", "b"), *shown("i", 1, "b", "b"), *shown("i", 1, "b", "")]
    built = build([*twice, *later()])
    assert [(row["positive_doc_id"], row["unclicked_doc_ids"]) for row in built.train] == [("b", ["a", "c"])]
    assert built.counts["shown"]["repeated_rows"] == 2
    assert {row["doc_id"]: row["impressions"] for row in built.documents}["b"] == 1


def test_a_document_without_a_record_is_counted_and_nothing_else(build):
    built = build([*shown("i", 1, "aZbc", "bZ"), *shown("t3", 52, "aZ", "Z"), *later()])
    assert [(row["positive_doc_id"], row["unclicked_doc_ids"]) for row in built.train] == [("b", ["a", "c"])]
    assert built.counts["shown"]["unknown_documents"] == 2
    assert "Z" not in {doc for row in built.test for doc in row["relevant_doc_ids"]}


def test_robots_are_dropped_and_counted_and_every_list_is_accounted_for(build):
    rows = [
        *shown("i", 1, "abcdef", "ab"),
        *shown("all", 2, "ab", "ab", user_id="x"),
        *shown("many", 3, "abcdef", "abcd", user_id="y"),
        *shown("robot", 4, "abcd", "abc", user_id="z"),
        *shown("none", 5, "ab", "", user_id="q"),
        *later(),
    ]
    built = build(
        rows, clicks={"maximum_clicks_per_list": 3, "drop_all_clicked": True, "maximum_user_click_rate": 0.6}
    )
    assert {row["impression_id"] for row in built.train} == {"i"}
    lists = built.counts["lists"]
    assert lists["dropped"] == {"all_clicked": 1, "too_many_clicks": 1, "user_click_rate": 1}
    assert lists["without_click"] == 1
    assert (
        lists["total"]
        == 9
        == sum(lists["dropped"].values()) + sum(lists[part] for part in ("train", "validation", "test"))
    )
    assert {row["doc_id"]: row["impressions"] for row in built.documents}["c"] == 1


def test_what_a_user_clicks_after_the_cut_does_not_make_a_robot_of_the_past(build):
    rows = [*shown("i", 1, "ab", "a"), *shown("t3", 52, "abcdef", "abcdef"), *later()]
    built = build(rows, clicks={"maximum_user_click_rate": 0.6})
    assert [row["impression_id"] for row in built.train] == ["i"]
    assert built.counts["lists"]["dropped"] == {}


def test_lists_without_click_or_query_still_count_as_impressions(build):
    rows = [
        *shown("i", 1, "ab", "a"),
        *shown("j", 2, "ab", ""),
        *shown("k", 3, "ac", "c", query_text=" \t"),
        *shown("l", 4, "ac", "", query_text=None),
        *later(),
    ]
    built = build(rows, ctr_prior_strength=10.0)
    assert [row["impression_id"] for row in built.train] == ["i"]
    assert built.counts["lists"]["without_query"] == 2
    found = {row["doc_id"]: row for row in built.documents}
    assert (found["a"]["impressions"], found["a"]["clicks"]) == (4, 1)
    assert found["a"]["ctr"] == pytest.approx((1 + 10 * 2 / 8) / (4 + 10))
    assert found["a"]["sampling_probability"] == 1.0


def test_logs_that_hold_clicks_only_are_legal(build):
    clicks = [*shown("i", 1, "ab", "ab"), *shown("j", 2, "c", "c", user_id="x"), *shown("v", 30, "a", "a")]
    clicks += [*shown("t", 50, "b", "b"), *shown("t2", 51, "b", "b", query_text="hat")]
    built = build([{**row, "position": None} for row in clicks])
    assert [row["positive_doc_id"] for row in built.train] == ["a", "b", "c"]
    assert built.counts["unclicked"] == 0
    assert built.test_lists == []
    assert len(built.test) == 2


# --- histories ------------------------------------------------------------------------------------------


def test_a_history_is_the_users_latest_earlier_clicks_oldest_first(build):
    rows = [
        *shown("1", 1, "abc", "ca"),
        *shown("2", 2, "d", "d"),
        *shown("x", 2, "h", "h", user_id="x"),
        *shown("3", 3, "e", "e"),
        *later(),
    ]
    found = {
        row["impression_id"]: row["history"] for row in build(rows, query="history", history_length=2).train
    }
    assert found == {"1": [], "2": ["a", "c"], "x": [], "3": ["c", "d"]}


def test_lists_of_one_moment_follow_each_other_by_their_ids(build):
    rows = [*shown("10", 1, "b", "b"), *shown("9", 1, "a", "a"), *shown("11", 1, "c", "c"), *later()]
    found = {row["impression_id"]: row["history"] for row in build(rows, query="history").train}
    assert found == {"9": [], "10": ["a"], "11": ["a", "b"]}


def test_a_minimum_history_leaves_out_rows_and_queries_but_not_their_clicks(build):
    rows = [
        *shown("i", 1, "ab", "a"),
        *shown("j", 2, "ab", "b"),
        *later(),
        *shown("t3", 52, "ab", "b", user_id="new"),
    ]
    built = build([*rows, *shown("w", 3, "ab", "a", user_id="v")], query="history", minimum_history=1)
    assert [row["impression_id"] for row in built.train] == ["j"]
    assert [row["query_id"] for row in built.test] == ["t1", "t2"]
    assert len(built.known_positives) == 3
    assert built.counts["lists"]["short_history"] == 4


# --- held-out queries -----------------------------------------------------------------------------------


@pytest.mark.parametrize("graded", [False, True])
def test_texts_that_are_equal_once_normalised_are_one_query(build, graded):
    rows = [
        *shown("i", 1, "ab", "a", query_text="shoe"),
        *shown("t3", 52, "abc", "bc", query_text="ＳＨＯＥ"),
        *shown("t4", 53, "abd", "b", query_text=" Shoe ", user_id="z"),
        *shown("t5", 54, "abd", "", query_text="shoe"),
        *later(),
    ]
    built = build(rows, graded=graded)
    shoe, hat = sorted(built.test, key=lambda row: row["query_key"], reverse=True)
    assert (shoe["query_text"], shoe["relevant_doc_ids"]) == ("shoe", ["a", "b", "c"])
    assert shoe["relevance"] == ([1.0, 2.0, 1.0] if graded else [1.0, 1.0, 1.0])
    assert (shoe["seen_query"], shoe["frequency"], shoe["user_id"]) == (True, 1, None)
    assert (hat["seen_query"], hat["frequency"], hat["relevant_doc_ids"]) == (False, 0, ["b"])
    assert shoe["query_id"] != hat["query_id"]
    of_shoe = {row["impression_id"] for row in built.test_lists if row["query_id"] == shoe["query_id"]}
    assert of_shoe == {"t1", "t3", "t4"}
    assert built.counts["test_queries"]["on_both_sides_of_the_cut"] == 1
    assert built.counts["test_queries"]["relevant_cold"] == 3


def test_history_queries_are_one_per_list_and_may_exclude_what_was_seen(build):
    rows = [
        *shown("i", 1, "abc", "ab", user_id="v"),
        *shown("t3", 52, "abch", "ch", user_id="v"),
        *shown("t4", 53, "bd", "b", user_id="v"),
        *later(),
    ]
    kept = {row["query_id"]: row for row in build(rows, query="history").test}
    assert {key: row["relevant_doc_ids"] for key, row in kept.items()} == {
        "t1": ["a"],
        "t2": ["b"],
        "t3": ["c", "h"],
        "t4": ["b"],
    }
    assert all(row["excluded_doc_ids"] == [] for row in kept.values())
    assert kept["t3"]["history"] == ["a", "b", "a", "a"]
    built = build(rows, query="history", exclude_seen=True, history_length=1)
    excluding = {row["query_id"]: row for row in built.test}
    assert set(excluding) == {"t3"}  # the others clicked again what they had clicked before
    assert excluding["t3"]["excluded_doc_ids"] == ["a", "b"]
    assert excluding["t3"]["history"] == ["a"]
    assert excluding["t3"]["frequency"] == 2
    assert {row["query_id"] for row in built.test_lists} == {"t3"}
    assert built.counts["test_queries"]["without_relevant_left"] == 3


def test_shown_lists_hold_every_document_in_the_order_shown_if_there_is_something_to_tell_apart(build):
    rows = [*shown("i", 1, "ab", "a"), *shown("t3", 52, "hcab", "ac"), *shown("t4", 53, "ab", "ab"), *later()]
    found = {row["impression_id"]: row for row in build(rows).test_lists}
    assert set(found) == {"t1", "t2", "t3"}
    assert found["t3"]["doc_ids"] == list("hcab")
    assert found["t3"]["clicked"] == [False, True, True, False]


def test_sessions_can_be_named_by_a_column_of_the_log(build):
    rows = [
        row
        for number in range(60)
        for row in shown(
            f"i{number}", number, "ab", "a", session_id=f"s{number % 20}", query_text=f"q{number % 7}"
        )
    ]
    split = {"by": "session", "session_column": "session_id", "test_share": 0.3, "validation_share": 0.3}
    built = build(rows, split=split)
    session = {row["impression_id"]: row["session_id"] for row in rows}
    train = {session[row["impression_id"]] for row in built.train}
    test = {session[row["impression_id"]] for row in built.test_lists}
    assert train
    assert test
    assert not train & test
    with pytest.raises(ConfigError, match="'visit' is not a column"):
        build(rows, split=split | {"session_column": "visit"})


# --- documents ------------------------------------------------------------------------------------------


def test_clicks_of_held_out_sessions_are_in_no_history_of_training(build):
    docs = "abcdefgh"
    rows = [
        row
        for number in range(48)
        for row in shown(f"i{number:02}", number, docs, docs[number % 8], session_id=f"s{number // 2}")
    ]
    split = {"by": "session", "session_column": "session_id", "test_share": 0.3, "validation_share": 0.3}
    built = build([*rows, *shown("other", 50, "ab", "a", user_id="v")], query="history", split=split)
    train = sorted(row["impression_id"] for row in built.train if row["user_id"] == "u")
    clicked = {f"i{number:02}": docs[number % 8] for number in range(48)}
    assert 2 < len(train) < 46
    for row in built.train:
        assert row["history"] == [clicked[i] for i in train if i < row["impression_id"] != "other"]
    last = built.test[-1]
    assert last["history"] == [clicked[i] for i in sorted(clicked) if i < last["query_id"]]


def test_documents_keep_the_catalogue_and_share_a_key_where_their_content_is_equal(build):
    documents = [
        {"doc_id": "b", "title": "Red SHOE", "text": "warm", "brand": "x"},
        {"doc_id": "a", "title": "red shoe ", "text": "Warm", "brand": "y"},
        {"doc_id": "c", "title": "", "text": "", "image": "c.png"},
        {"doc_id": "d", "title": "", "text": "", "image": "c.png"},
        {"doc_id": "e", "title": "", "text": "", "brand": "z"},
        {"doc_id": "f", "title": "", "text": ""},
    ]
    built = build([*shown("i", 1, "abc", "a"), *later()], documents=documents)
    found = built.documents
    assert [row["doc_id"] for row in found] == list("abcdef")
    assert [row["brand"] for row in found] == ["y", "x", None, None, "z", None]
    a, b, c, d, e, f = (row["content_key"] for row in found)
    assert a == b
    assert c == d
    assert len({a, c, e, f}) == 4
    assert [row["cold"] for row in found] == [False] + [True] * 5
    assert sum(row["sampling_probability"] for row in found) == pytest.approx(1)
    assert built.counts["documents"] == {"total": 6, "cold": 5, "distinct_contents": 4}


# --- what must never happen -----------------------------------------------------------------------------

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


def _rows(lists: list[tuple[int, str, str, list[tuple[str, bool]]]]) -> list[Row]:
    rows = [*shown("i0", 0, "abc", "b", user_id="w"), *later()]
    for number, (hour, user, text, docs) in enumerate(lists):
        clicked = "".join(doc for doc, click in docs if click)
        ids = "".join(doc for doc, _ in docs)
        rows += shown(f"x{number:02}", hour, ids, clicked, user_id=user, query_text=text)
    return rows


@SLOW
@given(lists=LISTS, query=st.sampled_from(["text", "history"]))
def test_train_rows_equal_a_loop_over_the_log(tmp_path_factory, lists, query):
    rows = _rows(lists)
    path = tmp_path_factory.mktemp("loop")
    config = ExamplesConfig(query=query, split=DAY, history_length=3)
    built = Built(build_examples(write_lake(path / "lake", rows), path / "examples", config))

    def key(row: Row) -> str:
        return row["user_id"] if query == "history" else row["query_text"].lower()

    order = sorted(rows, key=lambda row: (row["timestamp"], len(row["impression_id"]), row["impression_id"]))
    before = [row for row in order if row["timestamp"] < DAY["validation_from"]]
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
def test_events_after_the_cut_change_nothing_before_it(tmp_path_factory, lists, query):
    path = tmp_path_factory.mktemp("cut")
    clicks = {"maximum_user_click_rate": 0.9, "maximum_clicks_per_list": 3}
    config = ExamplesConfig(query=query, split=DAY, clicks=clicks)
    before = shown("i1", 3, "abcd", "bd", user_id="v", query_text="shoe")
    after = [
        row
        for row in _rows(lists)
        if row["timestamp"] >= DAY["validation_from"] or row["impression_id"] == "i0"
    ]
    build_examples(write_lake(path / "lake", before + _rows([])), path / "one", config)
    build_examples(write_lake(path / "lake", before + after), path / "two", config)
    for name in ("train.parquet", "documents.parquet", "known_positives.parquet"):
        assert (path / "one" / name).read_bytes() == (path / "two" / name).read_bytes(), name


def test_equal_inputs_give_an_equal_digest_whatever_the_engine_has(build):
    rows = [*shown("i", 1, "abc", "b"), *shown("j", 2, "abc", "a", user_id="x"), *later()]
    one = build(rows, engine={"threads": 1})
    train = one.train
    assert build(rows, engine={"threads": 3, "memory_limit": "300MB"}).artifact.digest == one.artifact.digest
    assert build(rows, history_length=3).artifact.digest != one.artifact.digest
    assert build(rows[::-1]).train == train


# --- errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "documents", "error", "words"),
    [
        ([], None, SchemaError, "holds no impressions"),
        (later(), [], SchemaError, "holds no documents"),
        (shown("i", 1, "ab"), None, SchemaError, "no click counts in the log's 1 lists"),
        (shown("i", 1, "a", "a"), [{"doc_id": "a"}], SchemaError, "one document"),
        (shown("i", 1, "a", "a"), None, SchemaError, "1 distinct queries"),
        (later(), None, ConfigError, "leaves train without a click: 0 train, 2 validation, 2 test rows"),
        (later()[:4] + shown("i", 1, "a", "a"), None, ConfigError, "leaves test without a click"),
    ],
)
def test_a_log_that_nobody_can_learn_from_is_refused_in_one_line(
    build, tmp_path, rows, documents, error, words
):
    with pytest.raises(error, match=words) as caught:
        build(rows, documents=documents)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["lake"]  # nothing half-written


def test_only_a_finished_lake_is_read(tmp_path):
    with pytest.raises(ArtifactError):
        build_examples(tmp_path / "absent", tmp_path / "examples", ExamplesConfig(query="text"))


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"query": "auto"},
        {"query": "text", "exclude_seen": True},
        {"query": "text", "minimum_history": 1},
        {"query": "history", "history_length": 0},
        {"query": "text", "unknown": 1},
        {"query": "text", "clicks": {"examined": "above"}},
    ],
)
def test_a_configuration_that_cannot_be_meant_is_refused(config):
    with pytest.raises(ValidationError):
        ExamplesConfig(**config)
