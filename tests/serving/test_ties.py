import dataclasses

import faiss
import numpy as np
import pytest

from serving import ties
from serving.filters import Selection
from serving.index import Index
from serving.retriever import Retriever
from serving.search import Search

D = 8


def copies(distinct: int, each: int) -> np.ndarray:
    """Unit vectors, every one of them `each` times, in any order."""
    random = np.random.default_rng(0)
    base = random.normal(size=(distinct, D)).astype(np.float32)
    base /= np.linalg.norm(base, axis=1, keepdims=True)
    return base[random.permutation(np.repeat(np.arange(distinct), each))]


def opened(factory: str, document_ND: np.ndarray, alive: np.ndarray | None = None) -> Index:
    index = faiss.index_factory(D, factory, faiss.METRIC_INNER_PRODUCT)
    index.train(document_ND)
    index.add(document_ND)
    return Index(index, "cpu", alive)


DOCUMENTS = copies(30, 20)
QUERIES = np.random.default_rng(1).normal(size=(25, D)).astype(np.float32)


def assert_first_of_equals(index: Index, k: int, selection: Selection | None = None) -> None:
    """The k best are the beginning of all that there are, ranked by score and then by row."""
    size = index.size if selection is None else selection.count
    every = index.search(QUERIES, size, selection)
    for found, all_of_them in zip(index.search(QUERIES, k, selection), every, strict=True):
        ranked = np.lexsort((all_of_them.rows, -all_of_them.scores))[:k]
        assert found.rows.tolist() == all_of_them.rows[ranked].tolist()
        np.testing.assert_array_equal(found.scores, all_of_them.scores[ranked])


@pytest.mark.parametrize("factory", ["Flat", "SQ8", "PQ4x4", "RR8,Flat"])
@pytest.mark.parametrize("k", [1, 5, 20, 33, 130, 599])
def test_a_scan_returns_the_first_of_those_that_share_the_last_score(factory, k):
    assert_first_of_equals(opened(factory, DOCUMENTS), k)


@pytest.mark.parametrize("factory", ["Flat", "IVF8,Flat", "HNSW8", "PQ4x4fs"])
def test_so_does_a_scan_of_a_selection_whatever_the_family(factory):
    some = Selection.of(np.random.default_rng(2).random(len(DOCUMENTS)) < 0.4)
    assert_first_of_equals(opened(factory, DOCUMENTS), 7, some)


def test_so_does_a_scan_that_leaves_few_out(monkeypatch):
    monkeypatch.setattr("serving.index._EXHAUSTIVE_ROWS", 0)
    index = opened("Flat", DOCUMENTS)
    few = Selection.of(np.arange(len(DOCUMENTS)) >= 30)
    assert index.way(few) == "overfetched"
    assert_first_of_equals(index, 7, few)


def test_so_does_a_scan_past_tombstones():
    alive = np.arange(len(DOCUMENTS)) % 3 > 0
    index = opened("Flat", DOCUMENTS, alive)
    assert index.size == 400
    assert_first_of_equals(index, 7)


@pytest.mark.parametrize("at_once", [1, 1 << 22])
def test_where_all_scores_are_equal_the_first_documents_come(at_once, monkeypatch):
    monkeypatch.setattr(ties, "_AT_ONCE", at_once)
    nothing = np.zeros((3, D), dtype=np.float32)
    for found in opened("Flat", DOCUMENTS).search(nothing, 12):
        assert found.rows.tolist() == [*range(12)]


def test_equals_are_looked_for_to_a_bound_and_no_deeper(monkeypatch):
    monkeypatch.setattr(ties, "MOST_TIED", 200)
    index = opened("Flat", DOCUMENTS)
    depths = []
    whole = index.whole
    monkeypatch.setattr(index, "whole", lambda query_BD, k: depths.append(k) or whole(query_BD, k))
    assert len(index.search(np.zeros((1, D), dtype=np.float32), 10)[0].rows) == 10
    assert depths == [11, 176, 200]
    assert len(index.search(QUERIES, 300)[0].rows) == 300


def test_a_search_without_a_tie_is_one_call_for_one_document_more(monkeypatch):
    index = opened("Flat", copies(300, 1))
    calls = []
    whole = index.whole
    monkeypatch.setattr(
        index, "whole", lambda query_BD, k: calls.append((len(query_BD), k)) or whole(query_BD, k)
    )
    index.search(QUERIES, 10)
    assert calls == [(25, 11)]


def test_a_catalogue_of_equal_documents_is_answered_in_its_order_at_any_k(bundle):
    same = np.repeat(np.eye(1, bundle.index.dimension, dtype=np.float32), len(bundle.doc_ids), axis=0)
    flat = faiss.IndexFlatIP(bundle.index.dimension)
    flat.add(same)
    retriever = Retriever(dataclasses.replace(bundle, index=Index(flat, "cpu")))
    for k in (1, 3, 8):
        hits = retriever.answer(Search(text="red shoes", k=k, exclude=("d00",))).hits
        assert [hit.doc_id for hit in hits] == bundle.doc_ids[1 : k + 1]
