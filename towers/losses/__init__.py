"""Objectives over a score matrix, one a file; `build_loss` makes the one that a configuration names."""

from typing import Annotated

from pydantic import Field

from towers.losses.cross_entropy import CrossEntropy, CrossEntropyConfig
from towers.losses.hinge import Hinge, HingeConfig
from towers.losses.matrix import OwnScores
from towers.losses.objective import Loss

LossConfig = Annotated[CrossEntropyConfig | HingeConfig, Field(discriminator="kind")]


def build_loss(config: LossConfig) -> Loss:
    """Return the objective that a configuration describes."""
    match config:
        case CrossEntropyConfig():
            return CrossEntropy(config)
        case HingeConfig():
            return Hinge(config)


__all__ = [
    "CrossEntropy",
    "CrossEntropyConfig",
    "Hinge",
    "HingeConfig",
    "Loss",
    "LossConfig",
    "OwnScores",
    "build_loss",
]
