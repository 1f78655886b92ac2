"""Weighted sum: two objectives at once, the second gaining on the first as the stage goes.

Shapes: B queries, N documents, N ≥ B; column i < B is the positive of row i, columns ≥ B are extra negatives.
"""

from typing import Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from features.config import Config
from towers.losses.matrix import OwnScores
from towers.losses.single import SingleLossConfig, build_single


class WeightedSumConfig(Config):
    """Which two objectives, and the ramp of their weights."""

    kind: Literal["weighted_sum"] = "weighted_sum"
    first: SingleLossConfig = Field(description="The objective of weight 1 - w, by its `kind`.")
    second: SingleLossConfig = Field(description="The objective of weight w, by its `kind`.")
    weight_from: float = Field(0.0, ge=0, le=1, description="w until the ramp starts.")
    weight_to: float = Field(1.0, ge=0, le=1, description="w once the ramp has ended.")
    ramp_start: float = Field(
        0.0, ge=0, le=1, description="Share of the stage's steps after which w starts to change."
    )
    ramp_end: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of the stage's steps after which w stays; at ramp_start: a jump.",
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.ramp_end < self.ramp_start:
            raise ValueError(
                f"ramp_end must be at least ramp_start; they are {self.ramp_end} and {self.ramp_start}"
            )
        return self

    def weight_at(self, progress: float) -> float:
        """Return w at a share of the stage, 0 at its first step: linear between the ramp's ends."""
        if progress < self.ramp_start:
            return self.weight_from
        if progress >= self.ramp_end:
            return self.weight_to
        done = (progress - self.ramp_start) / (self.ramp_end - self.ramp_start)
        return self.weight_from + done * (self.weight_to - self.weight_from)

    def parts(self, progress: float) -> list[tuple[float, SingleLossConfig]]:
        """Return the weights and objectives that count at a share of the stage; one of weight 0 does not."""
        weight = self.weight_at(progress)
        both: list[tuple[float, SingleLossConfig]] = [(1 - weight, self.first), (weight, self.second)]
        return [(share, config) for share, config in both if share > 0]


class WeightedSum(nn.Module):
    """`(1 - w) · first + w · second` of one batch, for the w of one moment of a stage.

    The weights hold between values as they are: cross-entropy is in nats and hinge in units of the score,
    which is smaller by about the temperature.

    Like a batch, it is a function of the step alone and keeps no state, so that a resumed training goes on
    with the same weights.
    """

    def __init__(self, config: WeightedSumConfig, progress: float) -> None:
        """Prepare.

        Args:
            config: The two objectives and the ramp.
            progress: Share of the stage's steps that are done, 0 to 1.
        """
        super().__init__()
        self.parts = [(weight, build_single(part)) for weight, part in config.parts(progress)]

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
        """Compute the loss; the arguments are those of `towers.losses.objective.Loss`, handed to both.

        Returns:
            Scalar.

        Raises:
            ValueError: If one of the objectives refuses the arguments.
        """
        values = [
            weight
            * loss(
                score_BN,
                excluded_BN,
                temperature=temperature,
                log_q_N=log_q_N,
                weight_B=weight_B,
                own=own,
                positive_BN=positive_BN,
            )
            for weight, loss in self.parts
        ]
        return values[0] if len(values) == 1 else values[0] + values[1]
