"""From texts and histories to string ids with scores, over one bundle. Safe to call from many threads.

Searches are answered many at a time: one call of the query tower for all that need a vector, one call of the
index for those that ask for equally much. `serving.queries` checks each; one that is refused does not touch
the others.
"""

import math
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

import pandas as pd

from serving.bundle import Bundle
from serving.encode import encode_documents, encode_queries, encode_searches
from serving.index import Neighbours
from serving.queries import Checked, check, check_size, row_of
from serving.queries import QueryError as QueryError
from serving.queries import QueryLimits as QueryLimits
from serving.queries import UnknownDocumentError as UnknownDocumentError
from serving.search import Answer as Answer
from serving.search import Hit as Hit
from serving.search import Search
from serving.vectors import Vectors


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
        checked = [self._checked(search) for search in searches]
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
        return [self._hits(neighbours, k, ()) for neighbours in found]

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
        hits = self._hits(self.bundle.index.search(vector, k + 1)[0], k, (doc_id,))
        ended = time.perf_counter()
        return self._answer(Search(k=k), hits, [], (encoded - started) * 1e3, (ended - encoded) * 1e3)

    def title(self, doc_id: str) -> str:
        """Return a document's title; empty where the catalogue has none."""
        return str(self.bundle.documents["title"].iat[row_of(doc_id, self.bundle)])

    def text(self, doc_id: str) -> str:
        """Return a document's text."""
        return str(self.bundle.documents["text"].iat[row_of(doc_id, self.bundle)])

    def _checked(self, search: Search) -> Checked | QueryError:
        try:
            return check(search, self.bundle, self.limits)
        except QueryError as refusal:
            return refusal

    def _answered(self, asked: Sequence[Checked]) -> Iterable[Answer]:
        dense = [one for one in asked if one.search.mode == "dense"]
        started = time.perf_counter()
        query_BD = encode_searches(self.bundle.towers, [one.query for one in dense]) if dense else None
        encoded = time.perf_counter()
        found = self._nearest(dense, query_BD) if query_BD is not None else {}
        ended = time.perf_counter()
        for one in asked:
            if one.search.mode == "bm25":
                yield self._bm25(one)
                continue
            hits = self._hits(found[id(one)], one.search.k, one.left_out)
            encode_ms, search_ms = (encoded - started) * 1e3, (ended - encoded) * 1e3
            yield self._answer(one.search, hits, one.unknown, encode_ms, search_ms)

    def _nearest(self, asked: Sequence[Checked], query_BD: Vectors) -> dict[int, Neighbours]:
        """Search for all, in one call for each depth; the keys are the identities of `asked`."""
        of_depth: dict[int, list[int]] = defaultdict(list)
        for place, one in enumerate(asked):
            of_depth[one.search.k + len(one.left_out)].append(place)
        found = {}
        for depth, places in of_depth.items():
            neighbours = self.bundle.index.search(query_BD[places], depth)
            found.update({id(asked[place]): near for place, near in zip(places, neighbours, strict=True)})
        return found

    def _bm25(self, one: Checked) -> Answer:
        started = time.perf_counter()
        depth = min(one.search.k + len(one.left_out), len(self.bundle.doc_ids))
        doc_ids, scores = self.bundle.lexical.search(one.words, depth)
        kept = [pair for pair in zip(doc_ids, scores.tolist(), strict=True) if pair[0] not in one.left_out]
        hits = [Hit(doc_id, score, rank) for rank, (doc_id, score) in enumerate(kept[: one.search.k], 1)]
        return self._answer(one.search, hits, one.unknown, 0.0, (time.perf_counter() - started) * 1e3)

    def _hits(self, found: Neighbours, k: int, left_out: Collection[str]) -> list[Hit]:
        doc_ids = self.bundle.doc_ids
        pairs = [
            (doc_ids[row], score)
            for row, score in zip(found.rows.tolist(), found.scores.tolist(), strict=True)
        ]
        kept = [pair for pair in pairs if pair[0] not in left_out and math.isfinite(pair[1])][:k]
        return [Hit(doc_id, score, rank) for rank, (doc_id, score) in enumerate(kept, 1)]

    def _answer(
        self, search: Search, hits: list[Hit], unknown: list[str], encode_ms: float, search_ms: float
    ) -> Answer:
        served_k = min(search.k, len(self.bundle.doc_ids))
        notes = _notes(search, served_k, len(hits), len(unknown))
        return Answer(hits, served_k, unknown, encode_ms, search_ms, notes)


def _notes(search: Search, served_k: int, found: int, unknown: int) -> list[str]:
    notes = []
    if search.k > served_k:
        notes.append(f"k was clipped from {search.k} to the corpus of {served_k} documents")
    if unknown:
        notes.append(f"{unknown} documents of the history are not in the catalogue and were left out")
    if found < served_k:
        reason = "share a word with the query" if search.mode == "bm25" else "were found and not excluded"
        notes.append(f"{found} documents {reason}")
    return notes
