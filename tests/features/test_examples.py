from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from features.errors import ArtifactError, ConfigError, SchemaError
from features.examples import ExamplesConfig, build_examples


def test_each_click_gives_a_row_with_what_was_examined_and_skipped(build, shown, later):
    rows = build([*shown("i", 1, "abcdefgh", "bd", query_text="Red  SHOE"), *later()]).train
    assert [row["positive_doc_id"] for row in rows] == ["b", "d"]
    for row in rows:
        assert row["unclicked_doc_ids"] == ["a", "c", "e", "f"]  # down to the last click, and two more
        assert row["query_key"] == row["query_text"] == "red shoe"
        assert (row["impression_id"], row["history"], row["weight"]) == ("i", [], 1.0)
        assert row["timestamp"] == datetime(2024, 1, 1, 1, tzinfo=UTC)


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
def test_what_was_examined_is_a_matter_of_configuration(build, clicks, position, unclicked, shown, later):
    columns = {} if position else {"position": None}
    rows = [{**row, **columns} for row in shown("i", 1, "abcde", "b")]
    assert build([*rows, *later()], clicks=clicks).train[0]["unclicked_doc_ids"] == unclicked


def test_a_document_clicked_elsewhere_for_the_same_query_is_not_unclicked(build, shown, later):
    rows = [
        *shown("i", 1, "abc", "c", query_text="boot"),
        *shown("j", 2, "adc", "a", query_text="BOOT ", user_id="x"),
        *shown("k", 60, "b", "b", query_text="boot"),  # after the cut: may change nothing
        *later(),
    ]
    found = {row["impression_id"]: row["unclicked_doc_ids"] for row in build(rows).train}
    assert found == {"i": ["b"], "j": ["d"]}


def test_the_key_of_a_history_query_is_its_user(build, shown, later):
    rows = [
        *shown("i", 1, "abc", "c"),
        *shown("j", 2, "adc", "a"),
        *shown("k", 3, "ab", "b", user_id="x"),
        *later(),
    ]
    found = build(rows, query="history").train
    assert [(row["query_key"], row["query_text"]) for row in found] == [("u", None), ("u", None), ("x", None)]
    assert [row["unclicked_doc_ids"] for row in found] == [["b"], ["d"], ["a"]]


def test_weight_by_list_shares_one_among_the_clicks_of_a_list(build, shown, later):
    rows = [*shown("i", 1, "abcd", "abcd"), *shown("j", 2, "a", "a"), *later()]
    assert [row["weight"] for row in build(rows, weight="list").train] == [0.25] * 4 + [1.0]


def test_a_click_too_short_is_neither_positive_nor_unclicked(build, shown, later):
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


def test_a_repeated_click_in_a_list_counts_once(build, shown, later):
    twice = [*shown("i", 1, "abc", "b"), *shown("i", 1, "b", "b"), *shown("i", 1, "b", "")]
    built = build([*twice, *later()])
    assert [(row["positive_doc_id"], row["unclicked_doc_ids"]) for row in built.train] == [("b", ["a", "c"])]
    assert built.counts["shown"]["repeated_rows"] == 2
    assert {row["doc_id"]: row["impressions"] for row in built.documents}["b"] == 1


def test_a_document_without_a_record_is_counted_and_nothing_else(build, shown, later):
    built = build([*shown("i", 1, "aZbc", "bZ"), *shown("t3", 52, "aZ", "Z"), *later()])
    assert [(row["positive_doc_id"], row["unclicked_doc_ids"]) for row in built.train] == [("b", ["a", "c"])]
    assert built.counts["shown"]["unknown_documents"] == 2
    assert "Z" not in {doc for row in built.test for doc in row["relevant_doc_ids"]}


def test_robots_are_dropped_and_counted_and_every_list_is_accounted_for(build, shown, later):
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


def test_what_a_user_clicks_after_the_cut_does_not_make_a_robot_of_the_past(build, shown, later):
    rows = [*shown("i", 1, "ab", "a"), *shown("t3", 52, "abcdef", "abcdef"), *later()]
    built = build(rows, clicks={"maximum_user_click_rate": 0.6})
    assert [row["impression_id"] for row in built.train] == ["i"]
    assert built.counts["lists"]["dropped"] == {}


def test_lists_without_click_or_query_still_count_as_impressions(build, shown, later):
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


def test_logs_that_hold_clicks_only_are_legal(build, shown):
    clicks = [*shown("i", 1, "ab", "ab"), *shown("j", 2, "c", "c", user_id="x"), *shown("v", 30, "a", "a")]
    clicks += [*shown("t", 50, "b", "b"), *shown("t2", 51, "b", "b", query_text="hat")]
    built = build([{**row, "position": None} for row in clicks])
    assert [row["positive_doc_id"] for row in built.train] == ["a", "b", "c"]
    assert built.counts["unclicked"] == 0
    assert built.test_lists == []
    assert len(built.test) == 2


def test_equal_inputs_give_an_equal_digest_whatever_the_engine_has(build, shown, later):
    rows = [*shown("i", 1, "abc", "b"), *shown("j", 2, "abc", "a", user_id="x"), *later()]
    one = build(rows, engine={"threads": 1})
    train = one.train
    assert build(rows, engine={"threads": 3, "memory_limit": "300MB"}).artifact.digest == one.artifact.digest
    assert build(rows, history_length=3).artifact.digest != one.artifact.digest
    assert build(rows[::-1]).train == train


@pytest.mark.parametrize(
    ("log", "documents", "error", "words"),
    [
        (lambda shown, later: [], None, SchemaError, "holds no impressions"),
        (lambda shown, later: later(), [], SchemaError, "holds no documents"),
        (lambda shown, later: shown("i", 1, "ab"), None, SchemaError, "no click counts in the log's 1 lists"),
        (lambda shown, later: shown("i", 1, "a", "a"), [{"doc_id": "a"}], SchemaError, "one document"),
        (lambda shown, later: shown("i", 1, "a", "a"), None, SchemaError, "1 distinct queries"),
        (
            lambda shown, later: later(),
            None,
            ConfigError,
            "leaves train without a click: 0 train, 2 validation, 2 test rows",
        ),
        (
            lambda shown, later: later()[:4] + shown("i", 1, "a", "a"),
            None,
            ConfigError,
            "leaves test without a click",
        ),
    ],
)
def test_a_log_that_nobody_can_learn_from_is_refused_in_one_line(
    build, shown, later, tmp_path, log, documents, error, words
):
    with pytest.raises(error, match=words) as caught:
        build(log(shown, later), documents=documents)
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
