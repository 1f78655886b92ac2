"""Objectives whose memory grows linearly in B, equal to those of `towers.losses`.

Shapes: B queries, N documents, N ≥ B, D embedding; column i < B is the positive of row i.
"""

from torch import Tensor

from features.errors import ConfigError
from towers.exclusions import Exclusions
from towers.losses import CrossEntropyConfig, LossConfig, OwnScores
from towers.tiled_cross_entropy import tiled_cross_entropy
from towers.tiles import TilingConfig


def tiled_loss(
    loss_config: LossConfig,
    query_BD: Tensor,
    document_ND: Tensor,
    exclusions: Exclusions,
    *,
    temperature: float | Tensor,
    log_q_N: Tensor | None = None,
    weight_B: Tensor | None = None,
    own: OwnScores | None = None,
    tiling: TilingConfig | None = None,
) -> Tensor:
    """Compute the objective that a configuration describes, without a B × N matrix.

    Args:
        loss_config: Of `towers.losses`.
        query_BD: Floating; computed in float32 or wider.
        document_ND: Like `query_BD`.
        exclusions: Pairs that may not be negatives, in either direction.
        temperature: Divides scores; > 0.
        log_q_N: Log of the expected number of columns a document takes; `None` corrects nothing.
        weight_B: Weight of each row's pair, > 0.
        own: Negatives of one query each; they enter its row.
        tiling: Size and precision of the tiles.

    Returns:
        Scalar, differentiable once in embeddings, own scores and temperature.

    Raises:
        ConfigError: If the objective has no tiled form, or the processor lacks the precision.
        ValueError: If the shapes do not fit or the temperature is not positive.
    """
    match loss_config:
        case CrossEntropyConfig():
            function = tiled_cross_entropy
        case _:
            raise ConfigError(
                f"the objective {loss_config.kind!r} has no tiled form; train it with the plain one, "
                "in batches whose score matrix fits into memory"
            )
    return function(
        loss_config,
        query_BD,
        document_ND,
        exclusions,
        temperature=temperature,
        log_q_N=log_q_N,
        weight_B=weight_B,
        own=own,
        tiling=tiling,
    )
