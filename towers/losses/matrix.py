"""What every objective over a score matrix does first and last: check it, widen it, average its rows.

B queries, N documents, N ≥ B; column i < B is the positive of row i.
"""

import torch
from torch import Tensor


def check(score_BN: Tensor, excluded_BN: Tensor) -> None:
    """Refuse matrices that cannot be what the loss expects.

    Raises:
        ValueError: If the shapes differ, there are fewer columns than rows, or the mask is not boolean.
    """
    if score_BN.dim() != 2 or score_BN.shape[1] < score_BN.shape[0] or score_BN.shape[0] == 0:
        raise ValueError(f"score_BN must be B x N with N >= B >= 1; its shape is {tuple(score_BN.shape)}")
    if excluded_BN.shape != score_BN.shape or excluded_BN.dtype != torch.bool:
        raise ValueError(
            f"excluded_BN must be bool of shape {tuple(score_BN.shape)}; "
            f"it is {excluded_BN.dtype} of shape {tuple(excluded_BN.shape)}"
        )


def widened(score: Tensor) -> Tensor:
    """Return the scores in float32 where they are narrower, so that reductions do not lose digits."""
    return score.to(torch.promote_types(score.dtype, torch.float32))


def weighted_mean(loss_B: Tensor, weight_B: Tensor | None) -> Tensor:
    """Average the rows' losses; `weight_B` (> 0) counts a row more or less than once."""
    if weight_B is None:
        return loss_B.mean()
    weight_B = weight_B.to(loss_B.dtype)
    return (loss_B * weight_B).sum() / weight_B.sum()
