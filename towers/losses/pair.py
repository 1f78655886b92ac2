"""Pair: each pair by itself, positives pulled up to one score and negatives pushed down to another.

Shapes: B queries, N documents, N ≥ B; column i < B is the positive of row i, columns ≥ B are extra negatives.
U documents of each query's own; X = N + U.
"""

from typing import Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from features.config import Config
from towers.losses.matrix import OwnScores, check, mean_where, negative_rows, weighted_mean, widened


class PairConfig(Config):
    """Where positives and negatives should lie, in raw scores."""

    kind: Literal["pair"] = "pair"
    positive_margin: float = Field(
        1.0, description="The score from which a positive costs nothing; 1 is the highest under cosine."
    )
    negative_margin: float = Field(0.3, description="The score up to which a negative costs nothing.")
    negative_weight: float = Field(
        1.0, gt=0, description="Weight of the mean over a row's negatives against 1 for its positive."
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.negative_margin >= self.positive_margin:
            raise ValueError(
                "negative_margin must be below positive_margin; "
                f"they are {self.negative_margin} and {self.positive_margin}"
            )
        return self


class Pair(nn.Module):
    """Mean over rows of `½ max(0, m⁺ - s_ii)² + w · mean_j ½ max(0, s_ij - m⁻)²` over the allowed j.

    A pair is the same from either end, so there is no second direction. A row without any allowed negative
    keeps the term of its positive alone.

    Source: Hadsell, Chopra and LeCun 2006, "Dimensionality reduction by learning an invariant mapping",
    eq. 4. Differs: scores instead of distances (under cosine `D² = 2 - 2s`), a margin for positives too, and
    the mean over negatives, so that a batch's size does not change the balance.
    """

    def __init__(self, config: PairConfig) -> None:
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
            temperature: Not used: the margins are in units of the raw score.
            log_q_N: Not used: a margin is no estimate of a probability, so no sampling correction applies.
            weight_B: Weight of each row, > 0.
            own: Negatives of one query each; they enter its row.
            positive_BN: Not used: the diagonal is the only positive.

        Returns:
            Scalar, in units of the squared score.

        Raises:
            ValueError: If the shapes do not fit.
        """
        check(score_BN, excluded_BN)
        score_BX, barred_BX = negative_rows(widened(score_BN), excluded_BN, own)
        missing_B = (self.config.positive_margin - score_BX.diagonal()).clamp(min=0)
        excess_BX = (score_BX - self.config.negative_margin).clamp(min=0)
        negatives_B = mean_where(excess_BX.square(), ~barred_BX)
        return weighted_mean(missing_B.square() + self.config.negative_weight * negatives_B, weight_B) / 2
