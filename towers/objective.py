"""From embeddings to the loss: through the whole score matrix, or tile by tile; on one rank or several.

Shapes: B queries, N documents, N ≥ B, D embedding; column i < B is the positive of row i.
"""

from dataclasses import dataclass
from functools import partial
from typing import Protocol

from torch import Tensor

from towers.distributed import ALONE, Ranks
from towers.exclusions import Exclusions
from towers.losses import Loss, LossConfig, OwnScores, build_loss
from towers.parts import Scored, part_of
from towers.tiled import tiled_loss


class Objective(Protocol):
    """A scalar of embeddings whose inner products are scores."""

    def __call__(
        self,
        query_BD: Tensor,
        document_ND: Tensor,
        exclusions: Exclusions,
        *,
        temperature: Tensor,
        log_q_N: Tensor,
        weight_B: Tensor,
        own: OwnScores | None,
        ranks: Ranks = ALONE,
    ) -> Tensor:
        """Return this rank's part of the loss; the parts of all ranks sum up to it. One rank has the whole.

        For the other arguments see `towers.losses.objective.Loss`.
        """
        ...


def dense(loss: Loss) -> Objective:
    """Return the objective that makes the B × N score matrix and its mask, as a whole on every rank."""

    def objective(
        query_BD: Tensor,
        document_ND: Tensor,
        exclusions: Exclusions,
        *,
        temperature: Tensor,
        log_q_N: Tensor,
        weight_B: Tensor,
        own: OwnScores | None,
        ranks: Ranks = ALONE,
    ) -> Tensor:
        excluded_BN = exclusions.dense()
        value = loss(
            query_BD @ document_ND.T,
            excluded_BN,
            temperature=temperature,
            log_q_N=log_q_N,
            weight_B=weight_B,
            own=own,
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

    def __call__(
        self,
        query_BD: Tensor,
        document_ND: Tensor,
        exclusions: Exclusions,
        *,
        temperature: Tensor,
        log_q_N: Tensor,
        weight_B: Tensor,
        own: OwnScores | None,
        ranks: Ranks = ALONE,
    ) -> Tensor:
        scored = Scored(query_BD, document_ND, exclusions, temperature, log_q_N, weight_B, own)
        if ranks.size == 1:
            return self._compute(self.config, scored)
        return part_of(self.config, scored, self._compute, ranks, progress=self.progress)

    def _compute(self, config: LossConfig, scored: Scored) -> Tensor:
        whole = (
            partial(tiled_loss, config, progress=self.progress)
            if self.tiled
            else dense(build_loss(config, self.progress))
        )
        return whole(
            scored.query,
            scored.document,
            scored.exclusions,
            temperature=scored.temperature,
            log_q_N=scored.log_q,
            weight_B=scored.weight,
            own=scored.own,
        )


def build_objective(config: LossConfig, *, tiled: bool, progress: float = 0.0) -> Objective:
    """Return the objective that a configuration describes.

    Args:
        config: Any objective; one without a tiled form is refused when it is first computed.
        tiled: Whether memory is linear in B.
        progress: Share of the stage's steps that are done, 0 to 1.
    """
    return _Configured(config, tiled, progress)
