"""Sigmoid: every pair is a question of its own, match or not.

Shapes: B queries, N documents, N ≥ B; column i < B is the positive of row i, columns ≥ B are extra negatives.
U documents of each query's own; X = N + U.
"""

import math
from typing import Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import softplus

from features.config import Config
from towers.losses.matrix import OwnScores, check, check_temperature, negative_rows, weighted_mean, widened


class SigmoidConfig(Config):
    """The prior of the sigmoid loss."""

    kind: Literal["sigmoid"] = "sigmoid"
    bias: float | None = Field(
        None,
        description="Added to every logit; null is -ln of the number of a row's documents, which is"
        " the log prior of a match.",
    )


class Sigmoid(nn.Module):
    """Mean over rows of `-Σ_j log σ(z_ij (score_ij / temperature + b))`, z = 1 if j = i and -1 for allowed j.

    No sum over the batch stands inside a logarithm, so a pair's loss does not depend on the other pairs, and
    both directions are the same. The bias keeps the many negatives from dominating at first: with it, towers
    whose scores are 0 already tell the prior. A row without any allowed negative keeps its positive's term.

    Source: Zhai et al. 2023, "Sigmoid loss for language image pre-training", algorithm 1. Differs:
    the bias is fixed, at -ln N instead of learned from -10 (which is -ln N at N = 22,026); a mask, extra
    columns.
    """

    def __init__(self, config: SigmoidConfig) -> None:
        super().__init__()
        self.config = config

    def forward(
        self,
        score_BN: Tensor,
        excluded_BN: Tensor,
        *,
        temperature: float | Tensor,
        log_q_N: Tensor | None = None,
        weight_B: Tensor | None = None,
        own: OwnScores | None = None,
        positive_BN: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss.

        Args:
            score_BN: Raw similarities, any floating type; reduced in float32 or wider.
            excluded_BN: True where a pair may not be a negative, in either direction; False on the diagonal.
            temperature: Divides scores; > 0. The paper starts at 0.1.
            log_q_N: Not used; the objective of this form with the correction is `nce`.
            weight_B: Weight of each row, > 0.
            own: Negatives of one query each; they enter its row.
            positive_BN: Not used: the diagonal is the only positive.

        Returns:
            Scalar, in nats a row.

        Raises:
            ValueError: If the shapes do not fit or a fixed temperature is not positive.
        """
        check(score_BN, excluded_BN)
        check_temperature(temperature)
        score_BX, barred_BX = negative_rows(widened(score_BN), excluded_BN, own)
        bias = -math.log(score_BX.shape[1]) if self.config.bias is None else self.config.bias
        logit_BX = score_BX / temperature + bias
        negatives_B = softplus(logit_BX).masked_fill(barred_BX, 0).sum(1)
        return weighted_mean(softplus(-logit_BX.diagonal()) + negatives_B, weight_B)
