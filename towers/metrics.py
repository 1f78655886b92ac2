"""Per-query retrieval metrics under their `ir_measures` names, from the gains at the ranks of a ranking.

Shapes: Q queries, K ranks, J judged (query, document) pairs, S shown documents.

- `R@k`: share of the relevant documents found in the first k (Recall@k); `Success@k`: whether any was.
- `RR@k`: 1 / rank of the first relevant document, 0 below rank k. `P@k`: relevant in the first k, over k.
- `AP@k`: sum of the precision at each relevant rank up to k, over the number of relevant documents.
- `nDCG@k`: gain / log2(rank + 1) summed up to k, over the same sum for the best order. The gain is the
  grade itself, as in `ir_measures`' default (`dcg='log2'`, trec_eval); a negative grade counts as 0.
- `ListAUC`: the chance that a clicked document of a shown list scores above an unclicked one of the same
  list; a tie counts one half.

A document is relevant if its grade is positive, or at least `rel` where the name says so, as in
`R(rel=100)@10`. Where a query has no relevant document a metric is not defined: its value is NaN, and
whoever averages leaves the query out and counts it.
"""

import re
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from features.errors import SchemaError, TwotowerError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

LIST_AUC = "ListAUC"
KINDS = ("R", "Success", "RR", "nDCG", "P", "AP")
_NAME = re.compile(r"(?P<kind>[A-Za-z]+)(?:\(rel=(?P<rel>\d{1,9})\))?@(?P<cutoff>\d{1,9})")


class EvaluationError(TwotowerError):
    """A system cannot be evaluated, or its numbers would mean nothing."""


class NothingRelevantError(EvaluationError, SchemaError):
    """No query of the data has a relevant document, so there is nothing to measure."""


@dataclass(frozen=True)
class Metric:
    """A metric with its cutoff, and the least grade that counts as relevant (`None`: any positive one)."""

    kind: str
    cutoff: int
    rel: int | None = None

    def __str__(self) -> str:
        return (
            f"{self.kind}@{self.cutoff}" if self.rel is None else f"{self.kind}(rel={self.rel})@{self.cutoff}"
        )


def parse_metric(name: str) -> Metric:
    """Read a metric's name, such as `nDCG@10` or `R(rel=100)@10`.

    Raises:
        ValueError: If the name is not one of `R, Success, RR, nDCG, P, AP` with a cutoff of at least 1.
    """
    match = _NAME.fullmatch(name)
    if match is None or match["kind"] not in KINDS or int(match["cutoff"]) < 1:
        allowed = ", ".join(f"{kind}@k" for kind in KINDS)
        raise ValueError(f"{name!r} is not a metric; use one of {allowed} with k >= 1, such as nDCG@10")
    rel = None if match["rel"] is None else int(match["rel"])
    if rel == 0 or (rel is not None and match["kind"] == "nDCG"):
        raise ValueError(
            f"{name!r}: rel must be at least 1, and nDCG takes none (it reads the grades themselves)"
        )
    return Metric(match["kind"], int(match["cutoff"]), rel)


@dataclass(frozen=True)
class Judgements:
    """Graded (query, document) pairs, sorted by query and, within one, best grade first.

    Attributes:
        queries: Number of queries; a query without a pair is legal.
        query: (J,) row of the query, ascending.
        document: (J,) row of the document in the corpus.
        grade: (J,) relevance; positive ones are relevant.
    """

    queries: int
    query: Integers
    document: Integers
    grade: Floats
    _start: Integers = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        order = np.lexsort((self.document, -self.grade, self.query))
        for name in ("query", "document", "grade"):
            object.__setattr__(self, name, getattr(self, name)[order])
        start = np.searchsorted(self.query, np.arange(self.queries + 1))
        object.__setattr__(self, "_start", start)

    def only(self, keep: NDArray[np.bool_]) -> "Judgements":
        """Return the judgements where `keep` (J,) is true, over the same queries."""
        return Judgements(self.queries, self.query[keep], self.document[keep], self.grade[keep])

    def take(self, rows: Integers) -> "Judgements":
        """Return the judgements of some queries (distinct rows, ascending), renumbered from 0."""
        position = np.full(self.queries, -1, dtype=np.int64)
        position[rows] = np.arange(len(rows))
        query = position[self.query]
        keep = query >= 0
        return Judgements(len(rows), query[keep], self.document[keep], self.grade[keep])

    def relevant_count(self, rel: float | None = None) -> Integers:
        """Return (Q,) how many documents of each query are relevant."""
        relevant = _relevant(self.grade, rel)
        return np.bincount(self.query[relevant], minlength=self.queries).astype(np.int64)

    def ideal_dcg(self, cutoff: int) -> Floats:
        """Return (Q,) the discounted gain of the best possible order, up to `cutoff` ranks."""
        rank = np.arange(len(self.query)) - self._start[self.query]
        gain = np.where(rank < cutoff, np.maximum(self.grade, 0.0), 0.0) / np.log2(rank + 2.0)
        return np.bincount(self.query, weights=gain, minlength=self.queries).astype(np.float64)

    def gains(self, ranked_QK: Integers) -> Floats:
        """Return (Q, K) the grade of each ranked document; 0 where it is unjudged or the rank empty (-1)."""
        width = max(int(self.document.max(initial=0)), int(ranked_QK.max(initial=0))) + 1
        key = self.query * width + self.document
        order = np.argsort(key, kind="stable")
        wanted = np.arange(len(ranked_QK))[:, None] * width + ranked_QK
        if not len(key):
            return np.zeros(ranked_QK.shape)
        place = np.minimum(np.searchsorted(key, wanted, sorter=order), len(key) - 1)
        hit = (key[order[place]] == wanted) & (ranked_QK >= 0)
        return np.where(hit, self.grade[order[place]], 0.0)


def per_query(metric: Metric, gain_QK: Floats, judgements: Judgements) -> Floats:
    """Compute one metric for every query.

    Args:
        metric: Which one.
        gain_QK: Grades of the ranked documents, best rank first. Ranks beyond K count as not relevant, so K
            may be below the cutoff only where the ranking ends there (a corpus smaller than the cutoff).
        judgements: All grades of the same queries.

    Returns:
        (Q,) values; NaN where a query has no relevant document.
    """
    gain_QK = gain_QK[:, : metric.cutoff]
    found_QK = _relevant(gain_QK, metric.rel)
    relevant = judgements.relevant_count(metric.rel).astype(np.float64)
    rank = np.arange(1.0, gain_QK.shape[1] + 1.0)
    if metric.kind == "R":
        value = found_QK.sum(axis=1) / np.maximum(relevant, 1.0)
    elif metric.kind == "Success":
        value = found_QK.any(axis=1).astype(np.float64)
    elif metric.kind == "RR":
        value = (found_QK / rank).max(axis=1, initial=0.0)
    elif metric.kind == "P":
        value = found_QK.sum(axis=1) / metric.cutoff
    elif metric.kind == "AP":
        precision_QK = found_QK.cumsum(axis=1) / rank
        value = np.where(found_QK, precision_QK, 0.0).sum(axis=1) / np.maximum(relevant, 1.0)
    else:
        gained = (np.maximum(gain_QK, 0.0) / np.log2(rank + 1.0)).sum(axis=1)
        ideal = judgements.ideal_dcg(metric.cutoff)
        value = gained / np.where(ideal > 0, ideal, 1.0)
    return np.where(relevant > 0, value, np.nan)


def list_auc(score: Floats, clicked: NDArray[np.bool_], start: Integers) -> Floats:
    """Compute the area under the curve inside each shown list.

    AUC = (sum of the clicked documents' ranks - P (P + 1) / 2) / (P U), with P clicked, U unclicked and
    ascending ranks, equal scores sharing their mean rank, so that a tie counts one half.

    Args:
        score: (S,) scores of the shown documents, list after list.
        clicked: (S,) whether each was clicked.
        start: (lists + 1,) where each list begins; the last entry is S.

    Returns:
        (lists,) values; NaN for a list without a click or without an unclicked document.
    """
    lists = len(start) - 1
    member = np.repeat(np.arange(lists), np.diff(start))
    order = np.lexsort((score, member))
    sorted_score, sorted_member = score[order], member[order]
    new = np.ones(len(score), dtype=bool)
    new[1:] = (sorted_score[1:] != sorted_score[:-1]) | (sorted_member[1:] != sorted_member[:-1])
    group = np.cumsum(new) - 1
    size = np.bincount(group)
    mean_rank = (np.cumsum(size) - (size - 1) / 2.0)[group] - start[sorted_member]
    positives = np.bincount(member[clicked], minlength=lists).astype(np.float64)
    negatives = np.diff(start) - positives
    hit = clicked[order]
    rank_sum = np.bincount(sorted_member[hit], weights=mean_rank[hit], minlength=lists)
    pairs = positives * negatives
    above = rank_sum - positives * (positives + 1.0) / 2.0
    return np.where(pairs > 0, above / np.maximum(pairs, 1.0), np.nan)


def _relevant(grade: Floats, rel: float | None) -> NDArray[np.bool_]:
    return grade > 0 if rel is None else grade >= rel
