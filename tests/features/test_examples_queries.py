"""Histories, held-out queries with their shown lists, and the catalogue beside them."""

import pytest

from features.errors import ConfigError


def test_a_history_is_the_users_latest_earlier_clicks_oldest_first(build, shown, later):
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


def test_lists_of_one_moment_follow_each_other_by_their_ids(build, shown, later):
    rows = [*shown("10", 1, "b", "b"), *shown("9", 1, "a", "a"), *shown("11", 1, "c", "c"), *later()]
    found = {row["impression_id"]: row["history"] for row in build(rows, query="history").train}
    assert found == {"9": [], "10": ["a"], "11": ["a", "b"]}


def test_a_minimum_history_leaves_out_rows_and_queries_but_not_their_clicks(build, shown, later):
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


def test_clicks_of_held_out_sessions_are_in_no_history_of_training(build, shown):
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


@pytest.mark.parametrize("graded", [False, True])
def test_texts_that_are_equal_once_normalised_are_one_query(build, graded, shown, later):
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


def test_history_queries_are_one_per_list_and_may_exclude_what_was_seen(build, shown, later):
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


def test_shown_lists_hold_every_document_in_the_order_shown_if_there_is_something_to_tell_apart(
    build, shown, later
):
    rows = [*shown("i", 1, "ab", "a"), *shown("t3", 52, "hcab", "ac"), *shown("t4", 53, "ab", "ab"), *later()]
    found = {row["impression_id"]: row for row in build(rows).test_lists}
    assert set(found) == {"t1", "t2", "t3"}
    assert found["t3"]["doc_ids"] == list("hcab")
    assert found["t3"]["clicked"] == [False, True, True, False]


def test_sessions_can_be_named_by_a_column_of_the_log(build, shown):
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


def test_documents_keep_the_catalogue_and_share_a_key_where_their_content_is_equal(build, shown, later):
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
