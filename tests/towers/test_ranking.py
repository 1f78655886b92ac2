import hashlib

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from towers.data import Lists
from towers.metrics import EvaluationError
from towers.ranking import rank, tie_order, tie_start, top


class Table:
    """A system that reads its scores from a table, by query_id."""

    def __init__(self, score_QN: np.ndarray, name: str = "table") -> None:
        self.name = name
        self.score_QN = score_QN.astype(np.float32)

    def score(self, queries: pd.DataFrame) -> np.ndarray:
        return self.score_QN[[int(query_id) for query_id in queries["query_id"]]]


def frame(queries: int) -> pd.DataFrame:
    return pd.DataFrame({"query_id": [str(q) for q in range(queries)]})


def ids(documents: int) -> list[str]:
    return [f"d{n}" for n in range(documents)]


def naive(score: list[float], doc_ids: list[str], query_id: str, hidden: set[int], depth: int) -> list[int]:
    """The rule as it reads: score first, then the digest order, turned by the query's digest."""
    by_digest = sorted(range(len(doc_ids)), key=lambda n: hashlib.sha256(doc_ids[n].encode()).digest())
    turn = int.from_bytes(hashlib.sha256(query_id.encode()).digest()[:8], "big") % len(doc_ids)
    turned = by_digest[turn:] + by_digest[:turn]
    ranked = sorted((n for n in turned if n not in hidden), key=lambda n: -score[n])
    return (ranked + [-1] * len(doc_ids))[: min(depth, len(doc_ids))]


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_ranking_equals_sorting_everything_ties_and_exclusions_included(data):
    queries, documents = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 12))
    cell = st.sampled_from([-1.0, 0.0, 0.5, 2.0])
    row = st.lists(cell, min_size=documents, max_size=documents)
    score = np.array([data.draw(row) for _ in range(queries)])
    hidden = [sorted(data.draw(st.sets(st.integers(0, documents - 1)))) for _ in range(queries)]
    excluded = Lists(
        np.array([n for h in hidden for n in h], dtype=np.int64),
        np.concatenate([[0], np.cumsum([len(h) for h in hidden])]),
    )
    depth, block = data.draw(st.integers(1, 15)), data.draw(st.integers(1, 40))
    ranking = rank(Table(score), frame(queries), ids(documents), depth, excluded=excluded, block=block)
    for q in range(queries):
        expected = naive(score[q].tolist(), ids(documents), str(q), set(hidden[q]), depth)
        assert ranking.documents[q].tolist() == expected


def test_equal_scores_rank_like_random_wherever_the_relevant_documents_stand():
    queries, documents, depth = 400, 2000, 100
    ranking = rank(Table(np.zeros((queries, documents))), frame(queries), ids(documents), depth)
    for relevant in (np.arange(20), np.arange(documents - 20, documents)):
        recall = np.isin(ranking.documents, relevant).sum() / (queries * len(relevant))
        assert recall == pytest.approx(depth / documents, abs=0.015)


def test_shuffling_the_corpus_changes_nothing():
    rng = np.random.default_rng(5)
    score = rng.integers(0, 4, (30, 50)).astype(np.float32)
    shuffle = rng.permutation(50)
    doc_ids = np.array(ids(50))
    plain = rank(Table(score), frame(30), doc_ids.tolist(), 10)
    shuffled = rank(Table(score[:, shuffle]), frame(30), doc_ids[shuffle].tolist(), 10)
    assert np.array_equal(doc_ids[plain.documents], doc_ids[shuffle][shuffled.documents])


def test_a_query_is_ranked_the_same_beside_any_others():
    score = np.random.default_rng(6).integers(0, 3, (9, 40))
    together = rank(Table(score), frame(9), ids(40), 7).documents
    one_by_one = rank(Table(score), frame(9), ids(40), 7, block=1).documents
    backwards = rank(Table(score), frame(9).iloc[::-1], ids(40), 7).documents[::-1]
    assert np.array_equal(together, one_by_one)
    assert np.array_equal(together, backwards)


def test_more_ranks_than_documents_gives_every_document_once():
    ranking = rank(Table(np.array([[1.0, 3.0, 2.0]])), frame(1), ids(3), 100)
    assert ranking.documents.tolist() == [[1, 2, 0]]


def test_a_corpus_of_one_document_is_ranked():
    assert rank(Table(np.array([[0.0]])), frame(1), ["only"], 10).documents.tolist() == [[0]]


def test_the_scores_of_shown_documents_come_back_even_where_they_are_excluded():
    score = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    shown = Lists(np.array([2, 0, 1]), np.array([0, 2, 3]))
    excluded = Lists(np.array([2]), np.array([0, 1, 1]))
    ranking = rank(Table(score), frame(2), ids(3), 3, excluded=excluded, shown=shown, block=3)
    assert ranking.shown.tolist() == [3.0, 1.0, 5.0]
    assert ranking.documents[0].tolist() == [1, 0, -1]


def test_the_scores_of_a_system_are_left_as_they_were():
    class Kept(Table):
        def score(self, queries: pd.DataFrame) -> np.ndarray:
            return self.score_QN

    kept = Kept(np.array([[1.0, 2.0]]))
    rank(kept, frame(1), ids(2), 2, excluded=Lists(np.array([0]), np.array([0, 1])))
    assert kept.score_QN.tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_refused_with_system_and_query(value):
    score = np.ones((3, 4))
    score[1, 2] = value
    with pytest.raises(EvaluationError, match=r"'broken'.*not finite.*'1'") as caught:
        rank(Table(score, "broken"), frame(3), ids(4), 2)
    assert "\n" not in str(caught.value)


def test_scores_for_another_corpus_are_refused():
    with pytest.raises(EvaluationError, match=r"'table'.*\(1, 3\).*4 documents"):
        rank(Table(np.ones((1, 3))), frame(1), ids(4), 2)


def test_the_tie_order_holds_each_row_once_and_ids_of_any_script():
    order = tie_order(["鞋子", "👟", "a", "\ud800"])
    assert sorted(order.tolist()) == [0, 1, 2, 3]
    assert (tie_start(["鞋子", "\ud800"], 4) < 4).all()


def test_top_takes_the_first_of_the_tie_order_where_all_are_equal():
    order = np.array([3, 1, 0, 2])
    assert top(np.zeros((2, 4), dtype=np.float32), order, np.array([0, 3]), 2).tolist() == [[3, 1], [2, 3]]
