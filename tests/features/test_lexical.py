import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.lexical import K1, B, LexicalIndex
from features.text import words

TEXTS = st.lists(st.text(alphabet="ab 中é-", max_size=12), min_size=1, max_size=8)


def _bm25(query: str, texts: list[str]) -> list[float]:
    """Lucene's BM25: Σ idf · tf / (tf + k1 (1 - b + b · length / mean length)) over the query's words."""
    documents = [Counter(words(text)) for text in texts]
    mean_length = sum(document.total() for document in documents) / len(documents)
    scores = []
    for document in documents:
        score = 0.0
        for word in words(query):
            holders = sum(word in other for other in documents)
            if document[word]:
                idf = math.log(1 + (len(documents) - holders + 0.5) / (holders + 0.5))
                length = 1 - B + B * document.total() / mean_length
                score += idf * document[word] / (document[word] + K1 * length)
        scores.append(score)
    return scores


@settings(max_examples=60, deadline=None)
@given(texts=TEXTS, query=st.text(alphabet="abz 中", max_size=8))
def test_scores_equal_the_formula_written_as_loops(texts: list[str], query: str):
    index = LexicalIndex.build([f"d{row}" for row in range(len(texts))], texts)
    np.testing.assert_allclose(index.score([query])[0], _bm25(query, texts), rtol=1e-5, atol=1e-6)


def test_scores_have_one_row_per_query_and_one_column_per_document():
    index = LexicalIndex.build(["b", "a"], ["red shoe", "blue shoe"])
    scores = index.score(["red", "shoe", "green", ""])
    assert scores.shape == (4, 2)
    assert scores.dtype == np.float32
    assert scores[0, 0] > 0
    assert scores[0, 1] == 0
    assert scores[1, 0] == scores[1, 1] > 0
    assert not scores[2:].any()


def test_equal_scores_come_in_the_order_of_their_ids_whatever_k_cuts_off():
    index = LexicalIndex.build(["d", "b", "c", "a", "e"], ["shoe"] * 4 + ["red shoe"])
    assert index.search("shoe", 2)[0] == ["a", "b"]
    assert index.search("red shoe", 3)[0] == ["e", "a", "b"]
    assert index.search("shoe", 99)[0] == ["a", "b", "c", "d", "e"]


def test_search_returns_scores_in_descending_order_and_only_documents_that_match():
    index = LexicalIndex.build(["a", "b", "c"], ["hat", "red shoe", "red red shoe"])
    doc_ids, scores = index.search("red", 3)
    assert set(doc_ids) == {"b", "c"}
    assert scores[0] >= scores[1] > 0


def test_the_query_meets_the_document_under_the_same_normaliser():
    index = LexicalIndex.build(["a", "b"], ["ＦＵＬＬ Width CAFÉ", "红色运动鞋 👟"])
    assert index.search("full café", 5)[0] == ["a"]
    assert index.search("运动鞋", 5)[0] == ["b"]
    assert index.search("👟", 5)[0] == ["b"]


def test_matched_terms_name_the_query_words_that_the_document_holds():
    index = LexicalIndex.build(["a", "b"], ["red running shoe", "blue hat"])
    assert index.matched_terms("Shoe red shoe green", "a") == ["shoe", "red"]
    assert index.matched_terms("shoe", "b") == []
    with pytest.raises(ValueError, match="'zzz'"):
        index.matched_terms("shoe", "zzz")


@pytest.mark.parametrize("texts", [[], [""], ["", " !? "]])
def test_a_corpus_without_words_matches_nothing(texts: list[str]):
    index = LexicalIndex.build([str(row) for row in range(len(texts))], texts)
    assert index.score(["shoe", ""]).shape == (2, len(texts))
    assert not index.score(["shoe"]).any()
    assert index.search("shoe", 3)[0] == []


def test_one_document_is_a_corpus():
    index = LexicalIndex.build(["only"], ["red shoe"])
    assert index.search("shoe", 10)[0] == ["only"]


def test_building_and_searching_print_nothing(capfd: pytest.CaptureFixture[str]):
    LexicalIndex.build(["a"], ["red shoe"]).search("red", 1)
    assert capfd.readouterr() == ("", "")


def test_an_id_given_twice_is_refused():
    with pytest.raises(ValueError, match="twice"):
        LexicalIndex.build(["a", "a"], ["x", "y"])
    with pytest.raises(ValueError, match="2 entries"):
        LexicalIndex.build(["a", "b"], ["x"])
    with pytest.raises(ValueError, match="k must be"):
        LexicalIndex.build(["a"], ["x"]).search("x", 0)
