import numpy as np
import pandas as pd
import pytest

from towers.metrics import Judgements
from towers.slices import Slice, build_slices, thirds


def queries(frequency: list[int], **columns: list) -> pd.DataFrame:
    count = len(frequency)
    frame = {
        "query_text": ["word"] * count,
        "history": [[]] * count,
        "seen_query": [f > 0 for f in frequency],
    }
    return pd.DataFrame({**frame, **columns, "frequency": frequency})


def one_relevant_each(documents: list[int]) -> Judgements:
    count = len(documents)
    return Judgements(count, np.arange(count), np.array(documents), np.ones(count))


def by_name(slices: list[Slice]) -> dict[str, Slice]:
    return {part.name: part for part in slices}


def test_thirds_share_the_clicks_and_not_the_queries():
    train = np.array([30, 15, 15, 10, 5, 5, 5, 5])  # 90 clicks: 30 | 15 + 15 | the rest
    assert thirds(train, train).tolist() == [0, 1, 1, 2, 2, 2, 2, 2]


def test_queries_of_equal_frequency_are_never_separated():
    train = np.array([4, 4, 4, 4, 4, 4])
    assert set(thirds(train, train).tolist()) == {0}


def test_a_query_without_a_training_click_is_in_the_tail_even_where_nothing_else_is():
    assert thirds(np.array([0, 9]), np.array([9])).tolist() == [2, 0]
    assert thirds(np.array([0]), np.array([], dtype=np.int64)).tolist() == [2]


def test_the_place_of_a_query_does_not_depend_on_the_other_evaluated_queries():
    train = np.array([30, 15, 15, 10, 5, 5, 5, 5])
    assert thirds(np.array([15]), train).tolist() == [1]


def test_all_comes_first_and_every_query_is_in_one_third():
    frame = queries([50, 20, 20, 3, 0])
    slices = build_slices(
        frame, one_relevant_each([0, 1, 2, 3, 4]), np.zeros(5, dtype=bool), frame["frequency"]
    )
    assert slices[0].name == "all"
    assert slices[0].rows.tolist() == [0, 1, 2, 3, 4]
    named = by_name(slices)
    assert sorted(np.concatenate([named[name].rows for name in ("head", "torso", "tail")])) == [0, 1, 2, 3, 4]
    assert named["seen_query"].rows.tolist() == [0, 1, 2, 3]
    assert named["unseen_query"].rows.tolist() == [4]


def test_judgements_follow_their_queries_into_a_slice():
    frame = queries([9, 0])
    named = by_name(build_slices(frame, one_relevant_each([5, 7]), np.zeros(8, dtype=bool), np.array([9])))
    assert named["unseen_query"].judgements.document.tolist() == [7]
    assert named["unseen_query"].judgements.query.tolist() == [0]


def test_cold_documents_restrict_relevance_and_leave_out_queries_without_one():
    judgements = Judgements(3, np.array([0, 0, 1, 2]), np.array([0, 1, 0, 1]), np.array([1.0, 1.0, 1.0, 2.0]))
    cold = np.array([False, True])
    part = by_name(build_slices(queries([1, 1, 1]), judgements, cold, np.ones(3, dtype=np.int64)))[
        "cold_documents"
    ]
    assert part.rows.tolist() == [0, 2]
    assert part.judgements.document.tolist() == [1, 1]
    assert part.judgements.relevant_count().tolist() == [1, 1]


def test_a_cold_document_that_is_judged_irrelevant_does_not_count():
    judgements = Judgements(1, np.array([0, 0]), np.array([0, 1]), np.array([1.0, 0.0]))
    part = by_name(build_slices(queries([1]), judgements, np.array([False, True]), np.array([1])))
    assert part["cold_documents"].rows.tolist() == []


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_history_slices_hold_the_queries_without_text(missing):
    frame = queries([1, 1, 1], query_text=[missing, missing, "shoe"], history=[["d1"], [], ["d1"]])
    named = by_name(build_slices(frame, one_relevant_each([0, 0, 0]), np.zeros(1, dtype=bool), np.ones(3)))
    assert named["history"].rows.tolist() == [0]
    assert named["no_history"].rows.tolist() == [1]
