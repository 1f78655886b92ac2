"""The debiased sum of negatives: less what unlabelled positives are expected to have added to it.

Shapes: B rows.
"""

import math

import torch
from torch import Tensor


def debiased_negatives(
    positive_B: Tensor, log_sum_B: Tensor, log_count_B: Tensor, prior: float, temperature: float | Tensor
) -> Tensor:
    """Return the log of each row's sum of exponentials over true negatives, estimated.

    Of the candidates a share τ⁺ are positives that nobody clicked, so that a mean over candidates is
    `(1 - τ⁺)` times the mean over negatives plus τ⁺ times that over positives, and

        g_i = max( (Σ_j exp(l'_ij) - n_i τ⁺ exp(l_ii)) / (1 - τ⁺), n_i exp(-1 / temperature) )

    with the row's own positive for the mean over positives. `n_i` is the number of allowed candidates; under
    log Q, where each counts `1 / Q_j`, it is the sum of those. The floor is what n negatives of the lowest
    cosine, -1, would add; there the gradient through the scores is 0.

    Args:
        positive_B: Logits `l_ii` of the positives, without log Q.
        log_sum_B: Log of `Σ_j exp(l'_ij)` over the allowed candidates, less log Q; -∞ where there is none.
        log_count_B: `log n_i`; not read where there is none.
        prior: τ⁺, 0 < τ⁺ < 1.
        temperature: What the logits were divided by.

    Returns:
        (B,) `log g`, -∞ for a row without candidates.

    Source: Chuang et al. 2020, "Debiased contrastive learning", eq. 7 and 8 with M = 1. Differs: a mask,
    log Q, computed in logarithms.
    """
    empty_B = log_sum_B == -torch.inf
    sum_B, count_B = log_sum_B.masked_fill(empty_B, 0), log_count_B.masked_fill(empty_B, 0)
    excess_B = sum_B - (count_B + math.log(prior) + positive_B)
    # log(exp(a) - exp(b)) = a + log(1 - exp(b - a)), where a > b; elsewhere the floor holds
    above_B = excess_B > torch.finfo(excess_B.dtype).eps
    share_B = -torch.expm1(-excess_B.where(above_B, 1))
    true_B = (sum_B + share_B.log()).where(above_B, -torch.inf) - math.log1p(-prior)
    return torch.maximum(true_B, count_B - 1 / temperature).masked_fill(empty_B, -torch.inf)


def log_sum(logit_BX: Tensor) -> Tensor:
    """Return log Σ exp of each row; -∞, with a gradient of 0 in place of NaN, where every logit is -∞."""
    empty_B = (logit_BX == -torch.inf).all(1)
    return logit_BX.masked_fill(empty_B[:, None], 0).logsumexp(1).masked_fill(empty_B, -torch.inf)
