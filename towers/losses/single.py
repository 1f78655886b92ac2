"""The objectives that stand alone, and so can be a part of a weighted sum."""

from typing import Annotated

from pydantic import Field

from towers.losses.cross_entropy import CrossEntropy, CrossEntropyConfig
from towers.losses.hinge import Hinge, HingeConfig
from towers.losses.nce import NoiseContrastive, NoiseContrastiveConfig
from towers.losses.objective import Loss
from towers.losses.pair import Pair, PairConfig
from towers.losses.sigmoid import Sigmoid, SigmoidConfig
from towers.losses.supervised_contrastive import SupervisedContrastive, SupervisedContrastiveConfig
from towers.losses.triplet import Triplet, TripletConfig

SingleLossConfig = Annotated[
    CrossEntropyConfig
    | HingeConfig
    | TripletConfig
    | PairConfig
    | NoiseContrastiveConfig
    | SupervisedContrastiveConfig
    | SigmoidConfig,
    Field(discriminator="kind"),
]


def build_single(config: SingleLossConfig) -> Loss:
    """Return the objective that a configuration describes."""
    match config:
        case CrossEntropyConfig():
            return CrossEntropy(config)
        case HingeConfig():
            return Hinge(config)
        case TripletConfig():
            return Triplet(config)
        case PairConfig():
            return Pair(config)
        case NoiseContrastiveConfig():
            return NoiseContrastive(config)
        case SupervisedContrastiveConfig():
            return SupervisedContrastive(config)
        case SigmoidConfig():
            return Sigmoid(config)
