"""From texts and histories to string ids with scores, over one bundle. Safe to call from many threads.

Searches are answered many at a time: one call of the query tower for all that need a vector, one call of the
index for those that ask for equally much. `serving.queries` checks each; one that is refused does not touch
the others.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from serving.bundle import Bundle
from serving.encode import encode_documents, encode_queries
from serving.explain import explain
from serving.hybrid import fuse, without
from serving.index import Index, Neighbours
from serving.queries import Checked, Selections, check, check_size, row_of
from serving.queries import QueryError as QueryError
from serving.queries import QueryLimits as QueryLimits
from serving.queries import UnknownDocumentError as UnknownDocumentError
from serving.search import Answer as Answer
from serving.search import Explanation, Search
from serving.search import Hit as Hit
from serving.vectors import Vectors

_NOTHING = Neighbours(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32))


class Retriever:
    """Search over one opened bundle.

    Args:
        bundle: As `serving.bundle.load` gives it.
        limits: What is refused as too large.
    """

    def __init__(self, bundle: Bundle, limits: QueryLimits | None = None) -> None:
        self.bundle = bundle
        self.limits = limits or QueryLimits()

    def answer(self, search: Search) -> Answer:
        """Answer one search.

        Raises:
            QueryError: If it is empty, too large or of a kind that the bundle cannot answer.
        """
        answer = self.answer_many([search])[0]
        if isinstance(answer, QueryError):
            raise answer
        return answer

    def answer_many(self, searches: Sequence[Search]) -> list[Answer | QueryError]:
        """Answer searches, in their order; one that cannot be answered gets its refusal instead."""
        checked = self._checked(searches)
        asked = [one for one in checked if isinstance(one, Checked)]
        answered = iter([*self._answered(asked)])
        return [next(answered) if isinstance(one, Checked) else one for one in checked]

    def search(
        self,
        text: str | None = None,
        history: Sequence[str] | None = None,
        k: int = 10,
        exclude: Sequence[str] = (),
        user_id: str | None = None,
    ) -> list[Hit]:
        """Return the k documents nearest to a query; the arguments are those of `Search`.

        Raises:
            QueryError: As `answer`.
        """
        listed = None if history is None else tuple(history)
        search = Search(text=text, history=listed, k=k, exclude=tuple(exclude), user_id=user_id)
        return self.answer(search).hits

    def search_many(self, queries: pd.DataFrame, k: int = 10) -> list[list[Hit]]:
        """Answer a query frame (`query_text, history, user_id`) in batches; ids are not checked.

        Raises:
            QueryError: If k is out of range.
        """
        check_size(k, (), self.limits)
        found = self.bundle.index.search(encode_queries(self.bundle.towers, queries), k)
        return [self._hits(neighbours, k) for neighbours in found]

    def neighbors(self, doc_id: str, k: int = 10) -> Answer:
        """Return the documents nearest to a document by the bundle's similarity, without itself.

        Raises:
            UnknownDocumentError: If the catalogue does not have it.
            QueryError: If k is out of range.
        """
        check_size(k, (), self.limits)
        row = row_of(doc_id, self.bundle)
        started = time.perf_counter()
        vector = encode_documents(
            self.bundle.towers, self.bundle.documents.iloc[[row]].reset_index(drop=True)
        )
        encoded = time.perf_counter()
        hits = self._hits(self.bundle.index.search(vector, k + 1)[0], k, frozenset((row,)))
        ended = time.perf_counter()
        return self._answer(Search(k=k), hits, [], ((encoded - started) * 1e3, (ended - encoded) * 1e3, 0.0))

    def embed(self, searches: Sequence[Search]) -> Vectors:
        """Return (B, D) float32 vectors of the searches' queries, in their order.

        Raises:
            QueryError: If one is refused; its message begins with its place.
        """
        checked = self._checked(searches)
        for place, one in enumerate(checked):
            if isinstance(one, QueryError):
                raise QueryError(one.code, f"queries.{place}: {one}")
        return self.bundle.query_encoder.encode([one.query for one in checked if isinstance(one, Checked)])

    def title(self, doc_id: str) -> str:
        """Return a document's title; empty where the catalogue has none."""
        return str(self.bundle.documents["title"].iat[row_of(doc_id, self.bundle)])

    def text(self, doc_id: str) -> str:
        """Return a document's text."""
        return str(self.bundle.documents["text"].iat[row_of(doc_id, self.bundle)])

    def _checked(self, searches: Sequence[Search]) -> list[Checked | QueryError]:
        selections = Selections(self.bundle, self.limits)
        checked: list[Checked | QueryError] = []
        for search in searches:
            try:
                checked.append(check(search, self.bundle, self.limits, selections))
            except QueryError as refusal:
                checked.append(refusal)
        return checked

    def _answered(self, asked: Sequence[Checked]) -> Iterable[Answer]:
        dense = [one for one in asked if one.asks_towers]
        started = time.perf_counter()
        query_BD = self.bundle.query_encoder.encode([one.query for one in dense]) if dense else None
        encoded = time.perf_counter()
        nearest = iter(self._nearest(dense, query_BD) if query_BD is not None else ())
        searched = time.perf_counter()
        encode_ms, dense_ms = (encoded - started) * 1e3, (searched - encoded) * 1e3
        for one in asked:
            started = time.perf_counter()
            by_towers = next(nearest) if one.asks_towers else _NOTHING
            by_words = self._by_words(one) if one.asks_words else _NOTHING
            pairs = _best(one, by_towers, by_words)
            hits = [Hit(self.bundle.doc_ids[row], score, rank) for rank, (row, score) in enumerate(pairs, 1)]
            words_ms = (time.perf_counter() - started) * 1e3
            explanation = None
            if one.search.explain:
                explanation = explain(one, [row for row, _ in pairs], by_towers, by_words, self.bundle)
            times = (encode_ms, dense_ms + words_ms, dense_ms) if one.asks_towers else (0.0, words_ms, 0.0)
            yield self._answer(one.search, hits, one.unknown, times, explanation)

    def _nearest(self, asked: Sequence[Checked], query_BD: Vectors) -> list[Neighbours]:
        """Search for all: in one call for each depth and each part that is searched."""
        calls: dict[tuple[int, int], list[int]] = defaultdict(list)
        for place, one in enumerate(asked):
            part = id(one.selection)  # equal conditions of a batch share one
            calls[one.dense_depth + len(one.left_out), part].append(place)
        found: list[Neighbours] = [_NOTHING] * len(asked)
        for (depth, _), places in calls.items():
            selection = asked[places[0]].selection
            near = self.bundle.index.search(query_BD[places], depth, selection)
            for place, neighbours in zip(places, near, strict=True):
                found[place] = without(neighbours, asked[place].left_out, asked[place].dense_depth)
        return found

    def _by_words(self, one: Checked) -> Neighbours:
        depth = min(one.bm25_depth + len(one.left_out), len(self.bundle.doc_ids))
        among = None if one.selection is None else one.selection.mask
        rows, scores = self.bundle.lexical.best_rows(one.words, depth, among)
        return without(Neighbours(rows, scores), one.left_out, one.bm25_depth)

    def _hits(self, found: Neighbours, k: int, left_out: frozenset[int] = frozenset()) -> list[Hit]:
        kept = without(found, left_out, k)
        pairs = zip(kept.rows.tolist(), kept.scores.tolist(), strict=True)
        return [Hit(self.bundle.doc_ids[row], score, rank) for rank, (row, score) in enumerate(pairs, 1)]

    def _answer(
        self,
        search: Search,
        hits: list[Hit],
        unknown: list[str],
        times: tuple[float, float, float],
        explanation: Explanation | None = None,
    ) -> Answer:
        served_k = min(search.k, len(self.bundle.doc_ids))
        notes = _notes(search, served_k, len(hits), len(unknown))
        index = self.bundle.index
        if isinstance(index, Index) and index.lost is not None:
            notes.append(f"the index was searched {index.lost}")
        encode_ms, search_ms, shared_ms = times
        return Answer(hits, served_k, unknown, encode_ms, search_ms, notes, explanation, shared_ms)


def _best(one: Checked, by_towers: Neighbours, by_words: Neighbours) -> list[tuple[int, float]]:
    """Return (catalogue row, score) of the hits, best first."""
    k = one.search.k
    if one.search.mode == "hybrid":
        return fuse((by_towers, by_words), k)
    ranking = by_towers if one.search.mode == "dense" else by_words
    return list(zip(ranking.rows[:k].tolist(), ranking.scores[:k].tolist(), strict=True))


def _notes(search: Search, served_k: int, found: int, unknown: int) -> list[str]:
    notes = []
    if search.k > served_k:
        notes.append(f"k was clipped from {search.k} to the corpus of {served_k} documents")
    if unknown:
        are = "document of the history is" if unknown == 1 else "documents of the history are"
        notes.append(f"{unknown} {are} not in the catalogue, and left out")
    if found < served_k:
        ways = ["share a word with the query"] if search.mode == "bm25" else []
        ways += ["pass the filters"] if search.filters else []
        ways += ["are not excluded"] if search.exclude or not ways else []
        were = "document was" if found == 1 else "documents were"
        notes.append(f"{found} {were} found, of those that {' and '.join(ways)}")
    return notes
