"""Objectives over a score matrix, one a file; `build_loss` makes the one that a configuration names."""

from typing import Annotated

from pydantic import Field

from towers.losses.cross_entropy import CrossEntropy, CrossEntropyConfig
from towers.losses.hinge import Hinge, HingeConfig
from towers.losses.matrix import OwnScores
from towers.losses.nce import NoiseContrastive, NoiseContrastiveConfig
from towers.losses.objective import Loss
from towers.losses.pair import Pair, PairConfig
from towers.losses.sigmoid import Sigmoid, SigmoidConfig
from towers.losses.single import SingleLossConfig, build_single
from towers.losses.supervised_contrastive import SupervisedContrastive, SupervisedContrastiveConfig
from towers.losses.triplet import Triplet, TripletConfig
from towers.losses.weighted_sum import WeightedSum, WeightedSumConfig

LossConfig = Annotated[SingleLossConfig | WeightedSumConfig, Field(discriminator="kind")]


def build_loss(config: LossConfig, progress: float = 0.0) -> Loss:
    """Return the objective that a configuration describes.

    Args:
        config: Any objective.
        progress: Share of the stage's steps that are done, 0 to 1; only a weighted sum changes with it.
    """
    return WeightedSum(config, progress) if isinstance(config, WeightedSumConfig) else build_single(config)


def is_hinge(config: LossConfig, progress: float = 0.0) -> bool:
    """Return whether nothing but the hardest negatives push, at a share of a stage.

    That is a hinge, the hardest triplets, or a weighted sum at a moment when only such parts count. Such an
    objective collapses fresh towers.
    """
    if isinstance(config, WeightedSumConfig):
        return all(is_hinge(part) for _, part in config.parts(progress))
    return isinstance(config, HingeConfig) or (
        isinstance(config, TripletConfig) and config.triplets == "hardest"
    )


def asks_lists(config: LossConfig) -> bool:
    """Return whether the objective compares a positive with what was shown beside it."""
    return any(isinstance(part, CrossEntropyConfig) and part.list_weight > 0 for part in _singles(config))


def supposes_cosine(config: LossConfig) -> bool:
    """Return whether the objective takes -1 for the lowest score there can be."""
    return any(
        isinstance(part, CrossEntropyConfig) and part.false_negative_prior > 0 for part in _singles(config)
    )


def _singles(config: LossConfig) -> list[SingleLossConfig]:
    return [config.first, config.second] if isinstance(config, WeightedSumConfig) else [config]


__all__ = [
    "CrossEntropy",
    "CrossEntropyConfig",
    "Hinge",
    "HingeConfig",
    "Loss",
    "LossConfig",
    "NoiseContrastive",
    "NoiseContrastiveConfig",
    "OwnScores",
    "Pair",
    "PairConfig",
    "Sigmoid",
    "SigmoidConfig",
    "SingleLossConfig",
    "SupervisedContrastive",
    "SupervisedContrastiveConfig",
    "Triplet",
    "TripletConfig",
    "WeightedSum",
    "WeightedSumConfig",
    "asks_lists",
    "build_loss",
    "is_hinge",
    "supposes_cosine",
]
