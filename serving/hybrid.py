"""Two rankings made into one: reciprocal rank fusion of the towers and BM25.

    fused(d) = Σ over rankings with d of 1 / (RANK_CONSTANT + rank of d)

Ranks count from 1; a ranking without the document adds nothing. Scores of the two systems have no common
scale, so only ranks enter. Each ranking is read to `max(k, DEPTH)`. Equal fused scores, which are common (a
document first in one ranking only, and another first in the other only), stand in catalogue order.

Source: Cormack, Clarke, Büttcher 2009, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank
Learning Methods"; the constant is theirs.
"""

from collections.abc import Collection

import numpy as np

from serving.index import Neighbours

RANK_CONSTANT = 60
DEPTH = 100


def depth_of(k: int) -> int:
    """Return how deep each ranking is read for k fused hits."""
    return max(k, DEPTH)


def share(rank: int) -> float:
    """Return what a rank, from 1, adds to a fused score."""
    return 1.0 / (RANK_CONSTANT + rank)


def fuse(rankings: tuple[Neighbours, ...], k: int) -> list[tuple[int, float]]:
    """Return (catalogue row, fused score) of the k best, best first, ties by ascending row."""
    fused: dict[int, float] = {}
    for ranking in rankings:
        for rank, row in enumerate(ranking.rows.tolist(), 1):
            fused[row] = fused.get(row, 0.0) + share(rank)
    return sorted(fused.items(), key=lambda pair: (-pair[1], pair[0]))[:k]


def without(ranking: Neighbours, left_out: Collection[int], depth: int) -> Neighbours:
    """Return the first `depth` of a ranking that have a finite score and are not left out."""
    kept = np.isfinite(ranking.scores)
    if left_out:
        kept &= ~np.isin(ranking.rows, list(left_out))
    if kept.all():
        return ranking if len(kept) <= depth else Neighbours(ranking.rows[:depth], ranking.scores[:depth])
    return Neighbours(ranking.rows[kept][:depth], ranking.scores[kept][:depth])
