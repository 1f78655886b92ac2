"""Objectives whose memory grows linearly in B, equal to those of `towers.losses`.

Shapes: B queries, N documents, N ≥ B, D embedding; column i < B is the positive of row i.
"""

from torch import Tensor

from features.errors import ConfigError
from towers.exclusions import Exclusions
from towers.losses import (
    CrossEntropyConfig,
    HingeConfig,
    LossConfig,
    OwnScores,
    SigmoidConfig,
    SingleLossConfig,
    WeightedSumConfig,
)
from towers.tiled_cross_entropy import tiled_cross_entropy
from towers.tiled_hinge import require_hardest, tiled_hinge
from towers.tiled_sigmoid import tiled_sigmoid
from towers.tiles import TilingConfig


def require_tiled_form(loss_config: LossConfig) -> None:
    """Refuse an objective that needs its whole score matrix.

    Raises:
        ConfigError: If it, or a part of a weighted sum, has no tiled form.
    """
    match loss_config:
        case WeightedSumConfig(first=first, second=second):
            require_tiled_form(first)
            require_tiled_form(second)
        case HingeConfig():
            require_hardest(loss_config)
        case CrossEntropyConfig() | SigmoidConfig():
            pass
        case _:
            raise ConfigError(
                f"the objective {loss_config.kind!r} has no tiled form; train it with the plain one, "
                "in batches whose score matrix fits into memory"
            )


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
    progress: float = 0.0,
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
        tiling: Size and precision of the tiles; `None` is `TilingConfig()`.
        progress: Share of the stage's steps that are done, 0 to 1; only a weighted sum changes with it.

    Returns:
        Scalar, differentiable once in embeddings, own scores and temperature.

    Raises:
        ConfigError: If the objective has no tiled form, or the processor lacks the precision.
        ValueError: If the shapes do not fit or the temperature is not positive.
    """
    require_tiled_form(loss_config)
    whole: list[tuple[float, SingleLossConfig]] = (
        loss_config.parts(progress) if isinstance(loss_config, WeightedSumConfig) else [(1.0, loss_config)]
    )
    total = query_BD.new_zeros(())
    for share, part in whole:
        match part:
            case CrossEntropyConfig():
                value = tiled_cross_entropy(
                    part,
                    query_BD,
                    document_ND,
                    exclusions,
                    temperature=temperature,
                    log_q_N=log_q_N,
                    weight_B=weight_B,
                    own=own,
                    tiling=tiling,
                )
            case HingeConfig():
                value = tiled_hinge(
                    part, query_BD, document_ND, exclusions, weight_B=weight_B, own=own, tiling=tiling
                )
            case SigmoidConfig():
                value = tiled_sigmoid(
                    part,
                    query_BD,
                    document_ND,
                    exclusions,
                    temperature=temperature,
                    weight_B=weight_B,
                    own=own,
                    tiling=tiling,
                )
        total = total + share * value
    return total
