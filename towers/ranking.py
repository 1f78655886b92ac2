"""Exact ranking of the whole corpus, in blocks of queries, with a declared tie rule.

Shapes: Q queries, N documents, K ranks.

The tie rule: documents of equal score are ordered by the SHA-256 of their doc_id, starting at a place in
that order that the SHA-256 of the query_id picks. It knows neither the order of the corpus nor what is
relevant, so a collapsed model, whose scores are all equal, ranks at random: its R@100 is about 100 / N.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from towers.data import Lists
from towers.metrics import EvaluationError, Floats, Integers

DEFAULT_BLOCK = 2**22
"""Scores held at once; a block needs about 30 bytes for each."""


class System(Protocol):
    """Something that scores every document for a query."""

    @property
    def name(self) -> str:
        """What the tables call it."""
        ...

    def score(self, queries: pd.DataFrame) -> NDArray[np.float32]:
        """Score every document (Q, N), higher is better, in the order of the documents table."""
        ...


@dataclass(frozen=True)
class Ranking:
    """What a system made of some queries.

    Attributes:
        documents: (Q, K) rows of the best documents, best first; -1 where nothing is left to rank.
        shown: The scores of the shown documents that were asked for, in their order.
    """

    documents: Integers
    shown: Floats


def tie_order(doc_ids: Sequence[str]) -> Integers:
    """Return (N,) the corpus rows in the order of the SHA-256 of their doc_id."""
    digests = [hashlib.sha256(doc_id.encode("utf-8", "surrogatepass")).digest() for doc_id in doc_ids]
    return np.array(sorted(range(len(digests)), key=digests.__getitem__), dtype=np.int64)


def tie_start(query_ids: Sequence[str], documents: int) -> Integers:
    """Return (Q,) where in the tie order of `documents` documents each query starts."""
    digests = (hashlib.sha256(query_id.encode("utf-8", "surrogatepass")).digest() for query_id in query_ids)
    return np.array([int.from_bytes(digest[:8], "big") % documents for digest in digests], dtype=np.int64)


def top(score_QN: NDArray[np.float32], order: Integers, start: Integers, depth: int) -> Integers:
    """Return (Q, K) the rows of the best documents, K = min(depth, N), ties by the declared rule.

    Args:
        score_QN: Finite scores; -inf marks a document that is not to be ranked, and leaves -1 behind.
        order: (N,) as `tie_order` gives it.
        start: (Q,) as `tie_start` gives it.
        depth: Ranks wanted, at least 1.
    """
    documents = len(order)
    depth = min(depth, documents)
    turned = np.lib.stride_tricks.sliding_window_view(np.concatenate([order, order[:-1]]), documents)
    order_QN = turned[start]
    tied_QN = np.take_along_axis(score_QN, order_QN, axis=1)  # now the first of equal scores wins
    last_Q1 = np.partition(tied_QN, documents - depth, axis=1)[:, documents - depth, None]
    keep_QN = tied_QN >= last_Q1
    crowded = np.flatnonzero(keep_QN.sum(axis=1) > depth)
    if len(crowded):
        above = tied_QN[crowded] > last_Q1[crowded]
        equal = keep_QN[crowded] & ~above
        room = depth - above.sum(axis=1, keepdims=True)
        keep_QN[crowded] = above | (equal & (equal.cumsum(axis=1) <= room))
    column_QK = np.nonzero(keep_QN)[1].reshape(len(score_QN), depth)
    best_QK = np.take_along_axis(tied_QN, column_QK, axis=1)
    by_score = np.argsort(-best_QK, axis=1, kind="stable")
    row_QK = np.take_along_axis(order_QN, np.take_along_axis(column_QK, by_score, axis=1), axis=1)
    ranked = np.isfinite(np.take_along_axis(best_QK, by_score, axis=1))
    return np.where(ranked, row_QK, -1)


def rank(
    system: System,
    queries: pd.DataFrame,
    doc_ids: Sequence[str],
    depth: int,
    *,
    excluded: Lists | None = None,
    shown: Lists | None = None,
    block: int = DEFAULT_BLOCK,
) -> Ranking:
    """Rank the whole corpus for every query.

    Args:
        system: Scores the documents.
        queries: Q rows of a query frame with a `query_id`.
        doc_ids: The corpus, in the order of the documents table.
        depth: Ranks wanted; more than N gives N.
        excluded: Documents that are not to be ranked, for each query.
        shown: Documents whose scores are wanted, ranked or not, for each query.
        block: Scores held at once.

    Raises:
        EvaluationError: If the system returns another shape, or a score that is not finite.
    """
    nothing = Lists(np.zeros(0, dtype=np.int64), np.zeros(len(queries) + 1, dtype=np.int64))
    excluded = nothing if excluded is None else excluded
    shown = nothing if shown is None else shown
    order = tie_order(doc_ids)
    start = tie_start(queries["query_id"].tolist(), len(order))
    rows = max(1, block // len(order))
    document_QK = np.full((len(queries), min(depth, len(order))), -1, dtype=np.int64)
    shown_score = np.zeros(len(shown.values))
    for first in range(0, len(queries), rows):
        last = min(first + rows, len(queries))
        score_QN = _checked(system, queries.iloc[first:last], len(order))
        within = np.arange(first, last)
        document, query = shown.take(within)
        shown_score[shown.offsets[first] : shown.offsets[last]] = score_QN[query, document]
        document, query = excluded.take(within)
        if len(document):
            score_QN = score_QN.copy()
            score_QN[query, document] = -np.inf
        document_QK[first:last] = top(score_QN, order, start[first:last], depth)
    return Ranking(document_QK, shown_score)


def _checked(system: System, queries: pd.DataFrame, documents: int) -> NDArray[Any]:
    score_QN = system.score(queries)
    if score_QN.shape != (len(queries), documents):
        raise EvaluationError(
            f"system {system.name!r} returned scores of shape {score_QN.shape} for {len(queries)} queries "
            f"and {documents} documents; it must score every document of every query"
        )
    bad = np.flatnonzero(~np.isfinite(score_QN).all(axis=1))
    if len(bad):
        query_id = queries["query_id"].iloc[int(bad[0])]
        raise EvaluationError(
            f"system {system.name!r} gives scores that are not finite for query {query_id!r} "
            f"({len(bad)} of {len(queries)} queries in its block); it cannot be ranked, train it again"
        )
    return score_QN
