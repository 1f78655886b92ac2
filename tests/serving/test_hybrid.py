import numpy as np
import pytest

from serving.bundle import Bundle
from serving.hybrid import DEPTH, RANK_CONSTANT, fuse, without
from serving.index import Neighbours
from serving.retriever import Retriever
from serving.search import Search


def ranking(*rows: int) -> Neighbours:
    scores = np.linspace(1, 0.1, max(1, len(rows)))[: len(rows)].astype(np.float32)
    return Neighbours(np.array(rows, dtype=np.int64), scores)


def naive(rankings: list[list[int]], k: int) -> list[tuple[int, float]]:
    """The formula, document by document."""
    fused = {}
    for document in {row for ranked in rankings for row in ranked}:
        fused[document] = sum(
            1 / (60 + ranked.index(document) + 1) for ranked in rankings if document in ranked
        )
    return sorted(fused.items(), key=lambda pair: (-pair[1], pair[0]))[:k]


@pytest.mark.parametrize("seed", range(5))
def test_fused_scores_are_those_of_the_formula(seed):
    generator = np.random.default_rng(seed)
    first, second = generator.permutation(40)[:25].tolist(), generator.permutation(40)[:17].tolist()
    got = fuse((ranking(*first), ranking(*second)), 12)
    expected = naive([first, second], 12)
    assert [row for row, _ in got] == [row for row, _ in expected]
    np.testing.assert_allclose([score for _, score in got], [score for _, score in expected], rtol=1e-12)


def test_equal_fused_scores_stand_in_catalogue_order():
    assert [row for row, _ in fuse((ranking(7, 3), ranking(3, 7)), 5)] == [3, 7]
    assert [row for row, _ in fuse((ranking(9), ranking(4)), 5)] == [4, 9]


def test_what_is_left_out_or_not_finite_leaves_a_ranking_and_others_move_up():
    scores = np.array([3.0, np.nan, 2.0, 1.0], dtype=np.float32)
    left = without(Neighbours(np.arange(4), scores), {2}, 3)
    assert left.rows.tolist() == [0, 3]
    assert without(ranking(5, 6, 7), frozenset(), 2).rows.tolist() == [5, 6]


def test_a_hybrid_search_is_the_fusion_of_both_and_says_how(bundle: Bundle):
    retriever = Retriever(bundle)
    dense = [hit.doc_id for hit in retriever.search("red shoes", k=100)]
    words = [hit.doc_id for hit in retriever.answer(Search(text="red shoes", k=100, mode="bm25")).hits]
    rows = [[bundle.rows[doc_id] for doc_id in ranked[:DEPTH]] for ranked in (dense, words)]
    answer = retriever.answer(Search(text="red shoes", k=6, mode="hybrid", explain=True))
    assert [(bundle.rows[hit.doc_id], pytest.approx(hit.score)) for hit in answer.hits] == naive(rows, 6)
    for hit, why in zip(answer.hits, answer.explanation.hits, strict=True):
        assert hit.score == pytest.approx(why.dense_share + why.bm25_share)
        assert why.dense.rank == dense.index(hit.doc_id) + 1
        if hit.doc_id in words:
            assert why.bm25_share == pytest.approx(1 / (RANK_CONSTANT + words.index(hit.doc_id) + 1))
            assert why.matched_terms
        else:
            assert (why.bm25, why.bm25_share, why.matched_terms) == (None, 0.0, [])
