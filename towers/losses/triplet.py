"""Triplet: in every triplet of a query, its positive and a negative, the positive must win by a margin.

Shapes: B queries, N documents, N ≥ B; column i < B is the positive of row i, columns ≥ B are extra negatives.
U documents of each query's own; X = N + U.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from features.config import Config
from towers.losses.matrix import (
    ColumnWeight,
    Margin,
    OwnScores,
    check,
    in_both_directions,
    mean_where,
    widened,
)


class TripletConfig(Config):
    """Which triplets count."""

    kind: Literal["triplet"] = "triplet"
    margin: Margin = 0.1
    triplets: Literal["all", "violating", "hardest"] = Field(
        "all",
        description="The mean over a row's triplets: over all; over those that still cost something; or the "
        "costliest alone.",
    )
    column_weight: ColumnWeight = 1.0


class Triplet(nn.Module):
    """Mean of `max(0, m - s_ii + s_ij)` over the triplets (i, i, j) with an allowed j.

    First the mean over each row's triplets, then over the rows, so that a row counts the same however many
    of its pairs are excluded; likewise over the first B columns with the triplets (j, j, i). Of a row's
    triplets `violating` averages those with a loss above 0, which keeps the gradient's size as most triplets
    come to be satisfied; `hardest` takes the largest. A row without any allowed negative has loss 0 and
    gradient 0. The result is `(rows + column_weight · columns) / (1 + column_weight)`.

    Source: Weinberger and Saul 2009, "Distance metric learning for large margin nearest neighbor
    classification"; which triplets: Hermans et al. 2017, "In defense of the triplet loss" (batch all, batch
    all ≠ 0, batch hard). Differs: scores instead of distances, two directions, a mask, the mean by row.
    """

    def __init__(self, config: TripletConfig) -> None:
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
        positive_BN: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss.

        Args:
            score_BN: Raw similarities, any floating type; reduced in float32 or wider.
            excluded_BN: True where a pair may not be a negative, in either direction; False on the diagonal.
            temperature: Not used: the margin is in units of the raw score.
            log_q_N: Not used: a margin is no estimate of a probability, so no sampling correction applies.
            weight_B: Weight of each row's pair, > 0.
            own: Negatives of one query each; they enter its row.
            positive_BN: Not used: the diagonal is the only positive.

        Returns:
            Scalar, in units of the score; `margin` when every score is equal.

        Raises:
            ValueError: If the shapes do not fit.
        """
        check(score_BN, excluded_BN)
        return in_both_directions(
            self._of_rows, widened(score_BN), excluded_BN, own, weight_B, self.config.column_weight
        )

    def _of_rows(self, positive_B: Tensor, score_BX: Tensor, barred_BX: Tensor) -> Tensor:
        loss_BX = (self.config.margin - positive_B[:, None] + score_BX).clamp(min=0)
        match self.config.triplets:
            case "all":
                return mean_where(loss_BX, ~barred_BX)
            case "violating":
                return mean_where(loss_BX, ~barred_BX & (loss_BX > 0))
            case "hardest":
                return loss_BX.masked_fill(barred_BX, -torch.inf).amax(1).clamp(min=0)
