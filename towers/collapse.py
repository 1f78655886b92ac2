"""How far apart the towers hold things: the numbers by which a collapse shows.

Shapes: B queries, N documents, N ≥ B, D embedding; column i < B is the positive of row i.
"""

import torch
from torch import Tensor


@torch.no_grad()
def separation(score_BN: Tensor, excluded_BN: Tensor) -> dict[str, float]:
    """Measure by how much positives beat their hardest negatives.

    Returns:
        `gap`: mean of s⁺ - max s⁻ over the rows that have an allowed negative, in units of the score; and
        `hardest_unclicked`: the share of those rows whose hardest negative is an unclicked column. Both are
        left out where no row has a negative.
    """
    rows = score_BN.shape[0]
    barred_BN = excluded_BN.clone()
    barred_BN.diagonal().fill_(True)
    hardest_B, column_B = score_BN.masked_fill(barred_BN, -torch.inf).max(1)
    kept = hardest_B > -torch.inf
    if not kept.any():
        return {}
    gap_B = score_BN.diagonal() - hardest_B
    return {
        "gap": float(gap_B[kept].double().mean()),
        "hardest_unclicked": float((column_B[kept] >= rows).double().mean()),
    }


@torch.no_grad()
def spread(embedding_ND: Tensor) -> float:
    """Return the mean over dimensions of the standard deviation over rows.

    For unit vectors in all directions it is about 1 / √D; far below that, the vectors have collapsed to a few
    directions. 0 for a single row.
    """
    return float(embedding_ND.double().std(0, correction=0).mean())
