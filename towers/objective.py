"""From embeddings to the loss: through the whole score matrix, or tile by tile.

Shapes: B queries, N documents, N ≥ B, D embedding; column i < B is the positive of row i.
"""

from functools import partial
from typing import Protocol

from torch import Tensor

from towers.exclusions import Exclusions
from towers.losses import Loss, LossConfig, OwnScores, build_loss
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
    ) -> Tensor:
        """Return the loss; for the arguments see `towers.losses.objective.Loss`."""
        ...


def dense(loss: Loss) -> Objective:
    """Return the objective that makes the B × N score matrix and its mask."""

    def objective(
        query_BD: Tensor,
        document_ND: Tensor,
        exclusions: Exclusions,
        *,
        temperature: Tensor,
        log_q_N: Tensor,
        weight_B: Tensor,
        own: OwnScores | None,
    ) -> Tensor:
        excluded_BN = exclusions.dense()
        return loss(
            query_BD @ document_ND.T,
            excluded_BN,
            temperature=temperature,
            log_q_N=log_q_N,
            weight_B=weight_B,
            own=own,
            positive_BN=excluded_BN,  # whatever is excluded is excluded for being a positive
        )

    return objective


def build_objective(config: LossConfig, *, tiled: bool, progress: float = 0.0) -> Objective:
    """Return the objective that a configuration describes.

    Args:
        config: Any objective; one without a tiled form is refused when it is first computed.
        tiled: Whether memory is linear in B.
        progress: Share of the stage's steps that are done, 0 to 1.
    """
    return partial(tiled_loss, config, progress=progress) if tiled else dense(build_loss(config, progress))
