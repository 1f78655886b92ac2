"""Hardest-negative hinge: the positive must beat the best negative by a margin, in both directions.

Shapes: B queries, N documents, N ≥ B; column i < B is the positive of row i, columns ≥ B are extra negatives.
U documents of each query's own.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from features.config import Config
from towers.losses.matrix import OwnScores, check, row_negatives, weighted_mean, widened


class HingeConfig(Config):
    """Which terms the hinge has."""

    kind: Literal["hinge"] = "hinge"
    margin: float = Field(
        0.1, gt=0, description="By how much a positive's raw score must exceed its hardest negative's."
    )
    column_weight: float = Field(
        1.0,
        ge=0,
        description="Weight of the document → query direction against 1 for query → document; 0 is off.",
    )


class HardestHinge(nn.Module):
    """Mean of `max(0, m - s⁺ + max s⁻)` over the rows (N columns and U own) and over the first B columns.

    Excluded pairs are removed before the maximum, since a duplicate of the positive would be its own hardest
    negative. Several equally hard negatives share the gradient equally. A row without any allowed negative
    has loss 0 and gradient 0. The result is `(rows + column_weight · columns) / (1 + column_weight)`.

    Source: Faghri et al. 2018, "VSE++", eq. 5. Differs: extra columns in the row direction, a mask.
    """

    def __init__(self, config: HingeConfig) -> None:
        super().__init__()
        self.config = config

    def forward(
        self,
        score_BN: Tensor,
        excluded_BN: Tensor,
        *,
        temperature: float | Tensor = 1.0,
        log_q_N: Tensor | None = None,
        weight_B: Tensor | None = None,
        own: OwnScores | None = None,
    ) -> Tensor:
        """Compute the loss.

        Args:
            score_BN: Raw similarities, any floating type; reduced in float32 or wider.
            excluded_BN: True where a pair may not be a negative, in either direction; False on the diagonal.
            temperature: Not used: the margin is in units of the raw score.
            log_q_N: Not used: a maximum is not an estimate of a sum, so no sampling correction applies.
            weight_B: Weight of each row's pair, > 0.
            own: Negatives of one query each; they enter its row.

        Returns:
            Scalar, in units of the score; `margin` when every score is equal.

        Raises:
            ValueError: If the shapes do not fit.
        """
        check(score_BN, excluded_BN)
        rows = score_BN.shape[0]
        score_BN = widened(score_BN)
        positive_B = score_BN.diagonal()
        barred_BN = excluded_BN.clone()
        barred_BN.diagonal().fill_(True)
        negative_BN = score_BN.masked_fill(barred_BN, -torch.inf)
        negative_BX, barred_BX = row_negatives(negative_BN, barred_BN, own)
        negative_BX = negative_BX.masked_fill(barred_BX, -torch.inf)
        loss = weighted_mean(self._short_of_margin(positive_B, negative_BX.amax(1)), weight_B)
        if self.config.column_weight == 0:
            return loss
        hardest_B = negative_BN[:, :rows].amax(0)
        columns = weighted_mean(self._short_of_margin(positive_B, hardest_B), weight_B)
        return (loss + self.config.column_weight * columns) / (1 + self.config.column_weight)

    def _short_of_margin(self, positive_B: Tensor, hardest_B: Tensor) -> Tensor:
        return (self.config.margin - positive_B + hardest_B).clamp(min=0)
