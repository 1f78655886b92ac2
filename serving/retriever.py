"""From a text or a history to string ids with scores, over one bundle. Safe to call from many threads.

Every input is checked here, so that the API, the command line and a program get the same refusals.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from pydantic import Field

from features.config import Config
from features.errors import TwotowerError
from features.text import normalise
from serving.bundle import Bundle
from serving.canary import query_frame
from serving.encode import encode_documents, encode_queries
from serving.index import Neighbours


class QueryError(TwotowerError, ValueError):
    """A query cannot be answered as asked; `code` names the reason for programs."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class UnknownDocumentError(QueryError):
    """A document was asked for that this bundle does not have."""

    def __init__(self, doc_id: str) -> None:
        super().__init__("unknown_document", f"no document {_shown(doc_id)} in this bundle")


class QueryLimits(Config):
    """The largest query that is answered."""

    max_k: int = Field(1_000, ge=1, le=100_000, description="most results asked for at once")
    max_text: int = Field(2_000, ge=1, description="characters of a query text")
    max_history: int = Field(1_000, ge=1, description="documents in a history; the latest should come last")
    max_exclude: int = Field(10_000, ge=0, description="documents that may be excluded from a result")
    max_id: int = Field(512, ge=1, description="characters of a document id")


@dataclass(frozen=True)
class Hit:
    """A document that was found; `rank` counts from 1."""

    doc_id: str
    score: float
    rank: int


@dataclass(frozen=True)
class Answer:
    """What a query found and what it took.

    Attributes:
        hits: Best first; ties by catalogue order (ascending doc_id).
        k: How many could be returned at most: the k asked for, clipped to the corpus.
        unknown: Ids of the history that the catalogue does not have; they do not influence the result.
        encode_ms: Milliseconds for the query's vector; 0 for BM25.
        search_ms: Milliseconds for the search.
    """

    hits: list[Hit]
    k: int
    unknown: list[str]
    encode_ms: float
    search_ms: float


class Retriever:
    """Search over one opened bundle.

    Args:
        bundle: As `serving.bundle.load` gives it.
        limits: What is refused as too large.
    """

    def __init__(self, bundle: Bundle, limits: QueryLimits | None = None) -> None:
        self.bundle = bundle
        self.limits = limits or QueryLimits()

    def search(
        self,
        text: str | None = None,
        history: Sequence[str] | None = None,
        k: int = 10,
        exclude: Sequence[str] = (),
        user_id: str | None = None,
    ) -> list[Hit]:
        """Return the k documents nearest to a query, without the excluded ones.

        Args:
            text: The query's text, for a bundle that was trained on texts.
            history: Earlier clicked doc_ids, oldest first, for a bundle that was trained on histories, which
                reads as many of the latest as in training.
            k: At most this many; fewer where the catalogue has fewer.
            exclude: Ids that must not be returned; unknown ones are ignored. A bundle whose evaluation left
                out what was seen leaves out the history too.
            user_id: Who asks, for towers that read it.

        Raises:
            QueryError: If the query is empty, too large or of a kind the bundle cannot answer.
        """
        return self.answer(text, history, k, exclude, user_id).hits

    def answer(
        self,
        text: str | None = None,
        history: Sequence[str] | None = None,
        k: int = 10,
        exclude: Sequence[str] = (),
        user_id: str | None = None,
    ) -> Answer:
        """Return `search`'s hits with what happened on the way."""
        self._check_size(k, exclude)
        text, known, unknown = self._checked(text, history)
        started = time.perf_counter()
        length = self.bundle.history_length
        latest = known if length is None else known[-length:]
        query_BD = encode_queries(self.bundle.towers, query_frame(text, latest, user_id))
        encoded = time.perf_counter()
        dropped = self._dropped(exclude, known)
        hits = self._hits(self.bundle.index.search(query_BD, k + len(dropped))[0], k, dropped)
        return self._answer(hits, k, unknown, started, encoded)

    def search_many(self, queries: pd.DataFrame, k: int = 10) -> list[list[Hit]]:
        """Answer a query frame (`query_text, history, user_id`) in batches; ids are not checked.

        Raises:
            QueryError: If k is out of range.
        """
        self._check_size(k, ())
        found = self.bundle.index.search(encode_queries(self.bundle.towers, queries), k)
        return [self._hits(neighbours, k, set()) for neighbours in found]

    def bm25(
        self,
        text: str | None = None,
        history: Sequence[str] | None = None,
        k: int = 10,
        exclude: Sequence[str] = (),
    ) -> Answer:
        """Answer by BM25 over titles and texts; a history asks with the titles of its documents.

        Raises:
            QueryError: As `search`, but any bundle answers a text here.
        """
        self._check_size(k, exclude)
        if text is None and history is None:
            raise QueryError("empty_query", "the query is empty; give a text or a history")
        asked = [] if text is None else [self._normalised(text)]
        known, unknown = self._check_history(history) if history is not None else ([], [])
        words = "\n".join([*asked, *(self.title(doc_id) for doc_id in known)])
        started = time.perf_counter()
        dropped = self._dropped(exclude, known)
        doc_ids, scores = self.bundle.lexical.search(words, min(k + len(dropped), len(self.bundle.doc_ids)))
        kept = [(d, float(s)) for d, s in zip(doc_ids, scores, strict=True) if d not in dropped][:k]
        hits = [Hit(doc_id, score, rank) for rank, (doc_id, score) in enumerate(kept, 1)]
        return self._answer(hits, k, unknown, started, started)

    def neighbors(self, doc_id: str, k: int = 10) -> Answer:
        """Return the documents nearest to a document by the bundle's similarity, without itself.

        Raises:
            UnknownDocumentError: If the catalogue does not have it.
            QueryError: If k is out of range.
        """
        self._check_size(k, ())
        row = self.row(doc_id)
        started = time.perf_counter()
        vector = encode_documents(
            self.bundle.towers, self.bundle.documents.iloc[[row]].reset_index(drop=True)
        )
        encoded = time.perf_counter()
        hits = self._hits(self.bundle.index.search(vector, k + 1)[0], k, {doc_id})
        return self._answer(hits, k, [], started, encoded)

    def row(self, doc_id: str) -> int:
        """Return the catalogue row of a document.

        Raises:
            UnknownDocumentError: If there is none.
        """
        row = self.bundle.rows.get(doc_id)
        if row is None:
            raise UnknownDocumentError(doc_id)
        return row

    def title(self, doc_id: str) -> str:
        """Return a document's title; empty where the catalogue has none."""
        return str(self.bundle.documents["title"].iat[self.row(doc_id)])

    def text(self, doc_id: str) -> str:
        """Return a document's text."""
        return str(self.bundle.documents["text"].iat[self.row(doc_id)])

    def _checked(
        self, text: str | None, history: Sequence[str] | None
    ) -> tuple[str | None, list[str], list[str]]:
        inputs = self.bundle.query_inputs
        if text is None and history is None:
            raise QueryError("empty_query", f"the query is empty; give a {' or a '.join(inputs)}")
        for given, name in ((text, "text"), (history, "history")):
            if given is not None and name not in inputs:
                raise QueryError(
                    "wrong_input",
                    f"this bundle answers a {' and a '.join(inputs)}, not a {name}; leave {name} out",
                )
        known, unknown = self._check_history(history) if history is not None else ([], [])
        return None if text is None else self._normalised(text), known, unknown

    def _check_size(self, k: int, exclude: Sequence[str]) -> None:
        if not 1 <= k <= self.limits.max_k:
            raise QueryError("invalid_k", f"k = {k}; it must be from 1 to {self.limits.max_k}")
        if len(exclude) > self.limits.max_exclude:
            raise QueryError(
                "too_many_excluded",
                f"{len(exclude)} excluded ids; at most {self.limits.max_exclude} are allowed",
            )

    def _normalised(self, text: str) -> str:
        """Return the text as training had it."""
        if len(text) > self.limits.max_text:
            raise QueryError(
                "query_too_long",
                f"the query has {len(text)} characters; at most {self.limits.max_text} are allowed",
            )
        normalised = normalise(text)
        if not normalised:
            raise QueryError("empty_query", "the query has no visible character; type a word")
        return normalised

    def _check_history(self, history: Sequence[str]) -> tuple[list[str], list[str]]:
        if not 1 <= len(history) <= self.limits.max_history:
            raise QueryError(
                "invalid_history",
                f"the history has {len(history)} documents; it must have 1 to {self.limits.max_history}",
            )
        unknown = [doc_id for doc_id in history if doc_id not in self.bundle.rows]
        if len(unknown) == len(history):
            raise QueryError(
                "unknown_history",
                f"none of the history's documents is in this bundle, {_shown(unknown[0])} first",
            )
        return [doc_id for doc_id in history if doc_id in self.bundle.rows], unknown

    def _dropped(self, exclude: Sequence[str], history: list[str]) -> set[str]:
        return {*exclude, *(history if self.bundle.excludes_history else ())}

    def _hits(self, found: Neighbours, k: int, dropped: set[str]) -> list[Hit]:
        doc_ids = self.bundle.doc_ids
        pairs = [(doc_ids[row], float(score)) for row, score in zip(*found, strict=True)]
        kept = [pair for pair in pairs if pair[0] not in dropped and np.isfinite(pair[1])][:k]
        return [Hit(doc_id, score, rank) for rank, (doc_id, score) in enumerate(kept, 1)]

    def _answer(self, hits: list[Hit], k: int, unknown: list[str], started: float, encoded: float) -> Answer:
        ended = time.perf_counter()
        served_k = min(k, len(self.bundle.doc_ids))
        return Answer(hits, served_k, unknown, (encoded - started) * 1e3, (ended - encoded) * 1e3)


def _shown(doc_id: str) -> str:
    return repr(doc_id if len(doc_id) <= 60 else doc_id[:60] + "…")
