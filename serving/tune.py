"""ANN recall against exact search, and the cheapest search parameter that reaches a target.

**ANN recall@k** is the share of the exact k nearest documents that the index returns. A returned document
whose exact score equals the k-th exact score counts as one of them, since duplicates of a listing are
interchangeable there. FAISS searches one inverted list by default, so an index is never shipped unmeasured.

Shapes: B queries, N documents, D embedding, k neighbours.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import faiss
import numpy as np

from serving.build import IndexConfig
from serving.index import Index, Neighbours
from serving.vectors import Vectors, check_vectors

_TIE = 1e-5  # of the lengths' product; the same sum in another order differs by about this much in float32


@dataclass(frozen=True)
class Tuning:
    """What the index was set to and what that gives.

    Attributes:
        parameters: Every search parameter that is set, fixed or tuned; a bundle restores them on load.
        ann_recall: ANN recall@k at these parameters on the tuning queries.
        met: Whether the target was reached; None where none was asked for.
        curve: The settings tried, ascending, each with its ANN recall@k.
    """

    parameters: dict[str, int]
    ann_recall: float
    met: bool | None
    curve: list[dict[str, int | float]] = field(default_factory=list)


def exact_search(query_BD: Vectors, document_ND: Vectors, k: int) -> list[Neighbours]:
    """Return the k documents of largest inner product for each query, by a full scan."""
    checked_BD = check_vectors(query_BD, document_ND.shape[1])
    k = min(k, len(document_ND))
    if len(checked_BD) == 0:
        return []
    score_Bk, row_Bk = faiss.knn(checked_BD, document_ND, k, metric=faiss.METRIC_INNER_PRODUCT)
    found = []
    for scores, rows in zip(score_Bk, row_Bk, strict=True):
        order = np.lexsort((rows, -scores))
        found.append(Neighbours(rows[order], scores[order]))
    return found


def ann_recall(
    index: Index, query_BD: Vectors, document_ND: Vectors, k: int, exact: list[Neighbours] | None = None
) -> float:
    """Return the mean ANN recall@k of the index over the queries, at its present parameters.

    Args:
        index: Holds the documents in row order.
        query_BD: At least one query.
        document_ND: The vectors that the index was built from.
        k: Depth; clipped to N.
        exact: The result of `exact_search` for the same queries and k, to save doing it again.

    Raises:
        ValueError: If there are no queries.
    """
    if len(query_BD) == 0:
        raise ValueError("ANN recall needs at least one query")
    truth = exact_search(query_BD, document_ND, k) if exact is None else exact
    shares = []
    for query_D, wanted, got in zip(query_BD, truth, index.search(query_BD, k), strict=True):
        lengths = np.linalg.norm(query_D) * np.linalg.norm(document_ND[wanted.rows[-1]])
        threshold = wanted.scores[-1] - _TIE * float(lengths)
        true_scores = document_ND[got.rows] @ query_D  # the index's own scores may be quantised
        shares.append(min(len(wanted.rows), int((true_scores >= threshold).sum())) / len(wanted.rows))
    return float(np.mean(shares))


def tune(index: Index, query_BD: Vectors, document_ND: Vectors, config: IndexConfig) -> Tuning:
    """Set the smallest nprobe or efSearch with `config.target_recall`, or the largest if none has it.

    Doubles the parameter until the target is met, then bisects. The index is left at the chosen setting.
    """
    fixed = {str(parameter): value for parameter, value in config.search.items()}
    name, target = index.tunable, config.target_recall
    exact = exact_search(query_BD, document_ND, config.k)
    if target is None or name is None or name in config.search:
        recall = ann_recall(index, query_BD, document_ND, config.k, exact)
        return Tuning(fixed, recall, None if target is None else recall >= target)
    tried: dict[int, float] = {}

    def recall_at(setting: int) -> float:
        if setting not in tried:
            index.set_parameters({name: setting})
            tried[setting] = ann_recall(index, query_BD, document_ND, config.k, exact)
        return tried[setting]

    chosen = _smallest(recall_at, index.largest_setting, target)
    recall = recall_at(chosen)
    index.set_parameters({name: chosen})
    curve = [{str(name): setting, "ann_recall": tried[setting]} for setting in sorted(tried)]
    return Tuning({**fixed, name: chosen}, recall, recall >= target, curve)


def _smallest(recall_at: Callable[[int], float], largest: int, target: float) -> int:
    above = 1
    while above < largest and recall_at(above) < target:
        above = min(2 * above, largest)
    below = above // 2  # the last doubling that failed, or 0
    if recall_at(above) < target:
        return largest
    while above - below > 1:
        middle = (above + below) // 2
        if recall_at(middle) >= target:
            above = middle
        else:
            below = middle
    return above
