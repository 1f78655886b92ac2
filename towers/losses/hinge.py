"""Hinge: the positive must beat a hard negative by a margin, in both directions.

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


class HingeConfig(Config):
    """Which terms the hinge has."""

    kind: Literal["hinge"] = "hinge"
    margin: Margin = 0.1
    negative: Literal["hardest", "semi_hard", "top_k_mean"] = Field(
        "hardest",
        description="What the positive must beat: the highest negative; the highest below the positive; or "
        "the mean of the k highest.",
    )
    k: int = Field(5, ge=1, description="How many negatives top_k_mean averages; else not used.")
    column_weight: ColumnWeight = 1.0


class Hinge(nn.Module):
    """Mean of `max(0, m - s⁺ + s⁻)` over the rows (N columns and U own) and over the first B columns.

    The negative `s⁻` of a row, out of its allowed scores:

    - `hardest`: the maximum. Several equally hard negatives share the gradient equally.
    - `semi_hard`: the maximum of those below `s⁺`; where there is none, the minimum, so that a row whose
      positive comes last, or whose scores are all equal, is still pulled apart.
    - `top_k_mean`: the mean of the k largest, or of all where there are fewer.

    Excluded pairs are removed before anything is picked, since a duplicate of the positive would be its own
    hardest negative. A row without any allowed negative has loss 0 and gradient 0. The result is
    `(rows + column_weight · columns) / (1 + column_weight)`.

    Source: Faghri et al. 2018, "VSE++", eq. 5; semi-hard: Schroff et al. 2015, "FaceNet", section 3.2.
    Differs: extra columns in the row direction, a mask, scores instead of distances.
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
        positive_BN: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss.

        Args:
            score_BN: Raw similarities, any floating type; reduced in float32 or wider.
            excluded_BN: True where a pair may not be a negative, in either direction; False on the diagonal.
            temperature: Not used: the margin is in units of the raw score.
            log_q_N: Not used: a maximum is not an estimate of a sum, so no sampling correction applies.
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
            self._short_of_margin, widened(score_BN), excluded_BN, own, weight_B, self.config.column_weight
        )

    def _short_of_margin(self, positive_B: Tensor, score_BX: Tensor, barred_BX: Tensor) -> Tensor:
        match self.config.negative:
            case "hardest":
                negative_B = score_BX.masked_fill(barred_BX, -torch.inf).amax(1)
            case "semi_hard":
                negative_B = _semi_hard(positive_B, score_BX, barred_BX)
            case "top_k_mean":
                negative_B = _top_k_mean(score_BX, barred_BX, self.config.k)
        return (self.config.margin - positive_B + negative_B).clamp(min=0)


def _semi_hard(positive_B: Tensor, score_BX: Tensor, barred_BX: Tensor) -> Tensor:
    """Return the highest allowed score below the positive's, or else the lowest; -∞ where none is allowed."""
    above_BX = score_BX >= positive_B[:, None]
    below_B = score_BX.masked_fill(barred_BX | above_BX, -torch.inf).amax(1)
    lowest_B = score_BX.masked_fill(barred_BX, torch.inf).amin(1)
    return torch.where((below_B == -torch.inf) & ~barred_BX.all(1), lowest_B, below_B)


def _top_k_mean(score_BX: Tensor, barred_BX: Tensor, k: int) -> Tensor:
    """Return the mean of the k highest allowed scores; -∞ where none is allowed."""
    highest_BK = score_BX.masked_fill(barred_BX, -torch.inf).topk(min(k, score_BX.shape[1])).values
    kept_BK = highest_BK > -torch.inf
    mean_B = mean_where(highest_BK, kept_BK)
    return mean_B.masked_fill(~kept_BK.any(1), -torch.inf)
