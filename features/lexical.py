"""BM25 over the documents' words: the baseline that towers must beat, and the other column of the page."""

import logging
from collections.abc import Sequence
from typing import Self

import bm25s
import numpy as np
from numpy.typing import NDArray

from features.text import words

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it makes itself talk while it is imported

K1 = 1.2
"""Saturation of a word's count in a document; Lucene's default."""

B = 0.75
"""Strength of the normalisation by document length; Lucene's default."""


class LexicalIndex:
    """An inverted index with Lucene's BM25 weights, in memory, searched exactly.

    Words come from `features.text.words`, so a query and a document meet under the same normaliser. A word
    that a query repeats counts as often as it is repeated. A document that shares no word with the query
    scores exactly 0; one that shares a word scores more than 0.
    """

    def __init__(self, doc_ids: Sequence[str], index: bm25s.BM25 | None) -> None:
        """Wrap a built index; use `LexicalIndex.build`.

        Args:
            doc_ids: The documents' ids, in the order of the index's rows.
            index: `None` where no document has a word, and nothing can match.
        """
        self.doc_ids = list(doc_ids)
        self._index = index
        self._row = {doc_id: row for row, doc_id in enumerate(self.doc_ids)}
        self._place = np.empty(len(self.doc_ids), dtype=np.int64)  # of each row among the sorted ids
        self._place[sorted(range(len(self.doc_ids)), key=self.doc_ids.__getitem__)] = np.arange(
            len(self.doc_ids)
        )

    @classmethod
    def build(cls, doc_ids: Sequence[str], texts: Sequence[str]) -> Self:
        """Index documents.

        Args:
            doc_ids: N distinct ids.
            texts: N texts, such as `features.text.document_text` gives; an empty one matches nothing.

        Raises:
            ValueError: If the lengths differ or an id is there twice.
        """
        if len(doc_ids) != len(texts):
            raise ValueError(f"doc_ids has {len(doc_ids)} entries and texts has {len(texts)}")
        if len(set(doc_ids)) != len(doc_ids):
            raise ValueError("doc_ids holds an id twice; ids of documents are distinct")
        vocabulary: dict[str, int] = {}
        tokens = [[vocabulary.setdefault(word, len(vocabulary)) for word in words(text)] for text in texts]
        if not vocabulary:
            return cls(doc_ids, None)
        index = bm25s.BM25(k1=K1, b=B, method="lucene", backend="numpy", auto_compile=False)
        index.index((tokens, vocabulary), create_empty_token=False, show_progress=False)
        return cls(doc_ids, index)

    def score(self, query_texts: Sequence[str]) -> NDArray[np.float32]:
        """Score every document for every query.

        Returns:
            Shape (Q, N), float32, columns in the order of `doc_ids`; zeros for a query without known words.
        """
        scores = np.zeros((len(query_texts), len(self.doc_ids)), dtype=np.float32)
        if self._index is None:
            return scores
        for row, text in enumerate(query_texts):
            known = self._index.get_tokens_ids(words(text))
            if known:
                scores[row] = self._index.get_scores_from_ids(known)
        return scores

    def search(
        self, query_text: str, k: int, among: NDArray[np.bool_] | None = None
    ) -> tuple[list[str], NDArray[np.float32]]:
        """Find the k best documents that share a word with the query; `best_rows` with ids.

        Raises:
            ValueError: If k < 1.
        """
        rows, scores = self.best_rows(query_text, k, among)
        return [self.doc_ids[row] for row in rows], scores

    def best_rows(
        self, query_text: str, k: int, among: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Find the rows of the k best documents that share a word with the query, and their scores.

        Order: score, largest first; equal scores by doc_id, ascending. Fewer than k where fewer match.

        Args:
            query_text: The query.
            k: At least 1.
            among: (N,) true for the rows that may be found; None is all of them.

        Raises:
            ValueError: If k < 1.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        scores = self.score([query_text])[0]
        rows = np.flatnonzero(scores if among is None else (scores > 0) & among)
        if len(rows) > k:
            least = np.partition(scores[rows], len(rows) - k)[len(rows) - k]
            rows = rows[scores[rows] >= least]
        rows = rows[np.lexsort((self._place[rows], -scores[rows]))][:k]
        return rows, scores[rows]

    def matched_terms(self, query_text: str, doc_id: str) -> list[str]:
        """Return the query's distinct words that the document holds, in the order of the query.

        Raises:
            ValueError: If no document has this id.
        """
        if doc_id not in self._row:
            raise ValueError(f"doc_id {doc_id!r} is not in this index of {len(self.doc_ids)} documents")
        return self.matched_in(query_text, np.array([self._row[doc_id]]))[0]

    def matched_in(self, query_text: str, rows: NDArray[np.int64]) -> list[list[str]]:
        """Return the query's distinct words that each of some rows' documents hold, in the query's order."""
        matched: list[list[str]] = [[] for _ in rows]
        if self._index is None:
            return matched
        starts, holders = self._index.scores["indptr"], self._index.scores["indices"]
        for word in dict.fromkeys(words(query_text)):
            token = self._index.vocab_dict.get(word)
            if token is not None:
                posting = holders[starts[token] : starts[token + 1]]
                for place in np.flatnonzero(np.isin(rows, posting, kind="table")):
                    matched[place].append(word)
        return matched

    def knows(self, word: str) -> bool:
        """Whether some document holds a word, as `features.text.words` gives it."""
        return self._index is not None and word in self._index.vocab_dict
