"""How far apart the towers hold things: the numbers by which a collapse shows.

Shapes: B queries, N rows, D embedding.
"""

import torch
from torch import Tensor

from towers.hardest import Hardest


def mean_gap(hardest: Hardest) -> float | None:
    """Return the mean of s⁺ - max s⁻ over the rows that have an allowed negative; `None` where none has."""
    kept = hardest.negative_B > -torch.inf
    if not kept.any():
        return None
    return float((hardest.positive_B - hardest.negative_B)[kept].double().mean())


def mean_length(embedding_ND: Tensor) -> float:
    """Return the mean length of the rows; 1 under cosine."""
    return float(embedding_ND.double().norm(dim=1).mean())


@torch.no_grad()
def spread(embedding_ND: Tensor) -> float:
    """Return the mean over dimensions of the standard deviation over rows.

    For unit vectors in all directions it is about 1 / √D; far below that, the vectors have collapsed to a few
    directions. 0 for a single row.
    """
    return float(embedding_ND.double().std(0, correction=0).mean())


@torch.no_grad()
def alignment(query_BD: Tensor, positive_BD: Tensor) -> float:
    """Return the mean squared distance of a query and its positive, both scaled to unit length.

    0 where they coincide, 2 where they are orthogonal; a collapsed model has 0 too, which is why uniformity
    belongs beside it.

    Source: Wang & Isola 2020, "Understanding contrastive representation learning", α = 2.
    """
    query_BD, positive_BD = _unit(query_BD), _unit(positive_BD)
    return float((query_BD - positive_BD).square().sum(1).mean())


@torch.no_grad()
def uniformity(embedding_ND: Tensor) -> float:
    """Return the log of the mean over pairs of rows of `exp(-2 d²)`, d their distance at unit length.

    0 where all rows coincide; about -4 (more exactly, for D → ∞) where they fill the sphere. 0 for a single
    row, which has no pair.

    Source: Wang & Isola 2020, t = 2.
    """
    if len(embedding_ND) < 2:
        return 0.0
    distance_P = torch.nn.functional.pdist(_unit(embedding_ND))
    return float(distance_P.square().mul(-2).exp().mean().log())


def _unit(embedding_ND: Tensor) -> Tensor:
    return torch.nn.functional.normalize(embedding_ND.double(), dim=1)
