"""From embeddings to the loss: through the whole score matrix, or tile by tile; on one rank or several.

Shapes: B queries, N documents, N ≥ B, D embedding; column i < B is the positive of row i.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from towers.distributed import ALONE, Ranks
from towers.losses import Loss, LossConfig, build_loss
from towers.parts import Scored, part_of
from towers.tiled import tiled_loss


class Objective(Protocol):
    """A scalar of embeddings whose inner products are scores."""

    def __call__(self, scored: Scored, /, ranks: Ranks = ALONE) -> Tensor:
        """Return this rank's part of the scalar loss; those of all ranks sum up to it, one has the whole."""
        ...


def dense(loss: Loss) -> Objective:
    """Return the objective that makes the B × N score matrix and its mask, as a whole on every rank."""

    def objective(scored: Scored, /, ranks: Ranks = ALONE) -> Tensor:
        excluded_BN = scored.exclusions.dense()
        value = loss(
            scored.query @ scored.document.T,
            excluded_BN,
            temperature=scored.temperature,
            log_q_N=scored.log_q,
            weight_B=scored.weight,
            own=scored.own,
            positive_BN=excluded_BN,  # whatever is excluded is excluded for being a positive
        )
        return value / ranks.size

    return objective


@dataclass(frozen=True)
class _Configured:
    """The objective that a configuration describes; on several ranks each computes its rows and columns."""

    config: LossConfig
    tiled: bool
    progress: float

    def __call__(self, scored: Scored, /, ranks: Ranks = ALONE) -> Tensor:
        if ranks.size == 1:
            return self._compute(self.config, scored)
        return part_of(self.config, scored, self._compute, ranks, progress=self.progress)

    def _compute(self, config: LossConfig, scored: Scored) -> Tensor:
        if not self.tiled:
            return dense(build_loss(config, self.progress))(scored)
        return tiled_loss(
            config,
            scored.query,
            scored.document,
            scored.exclusions,
            temperature=scored.temperature,
            log_q_N=scored.log_q,
            weight_B=scored.weight,
            own=scored.own,
            progress=self.progress,
        )


def build_objective(config: LossConfig, *, tiled: bool, progress: float = 0.0) -> Objective:
    """Return the objective that a configuration describes.

    Args:
        config: Any objective; one without a tiled form is refused when it is first computed.
        tiled: Whether memory is linear in B.
        progress: Share of the stage's steps that are done, 0 to 1.
    """
    return _Configured(config, tiled, progress)
