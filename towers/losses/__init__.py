"""Objectives over a score matrix, one a file; `build_loss` makes the one that a configuration names."""

from typing import Annotated, Protocol

from pydantic import Field
from torch import Tensor

from towers.losses.cross_entropy import CrossEntropy, CrossEntropyConfig
from towers.losses.hinge import HardestHinge, HingeConfig
from towers.losses.matrix import OwnScores

LossConfig = Annotated[CrossEntropyConfig | HingeConfig, Field(discriminator="kind")]


class Loss(Protocol):
    """An objective: scores and the one mask in, a scalar out."""

    def __call__(
        self,
        score_BN: Tensor,
        excluded_BN: Tensor,
        *,
        temperature: float | Tensor,
        log_q_N: Tensor | None = None,
        weight_B: Tensor | None = None,
        own: OwnScores | None = None,
    ) -> Tensor:
        """Return the scalar loss of a batch."""
        ...


def build_loss(config: LossConfig) -> Loss:
    """Return the objective that a configuration describes."""
    match config:
        case CrossEntropyConfig():
            return CrossEntropy(config)
        case HingeConfig():
            return HardestHinge(config)


__all__ = [
    "CrossEntropy",
    "CrossEntropyConfig",
    "HardestHinge",
    "HingeConfig",
    "Loss",
    "LossConfig",
    "OwnScores",
    "build_loss",
]
