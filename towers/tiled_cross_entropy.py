"""Bidirectional cross-entropy with memory linear in B.

`towers.log_sums` reduces the score matrix to a number for each row and column; the rest concerns vectors of
length B and is left to autograd.

Shapes: B queries, N documents, N ≥ B, D embedding; column i < B is the positive of row i. U documents of each
query's own.
"""

import torch
from torch import Tensor

from towers.exclusions import Exclusions
from towers.log_sums import Matrix, log_sums
from towers.losses import CrossEntropyConfig, OwnScores
from towers.losses.debias import debiased_negatives, log_sum
from towers.losses.matrix import weighted_mean, widened
from towers.tiled_debias import log_column_counts, log_row_counts
from towers.tiles import TilingConfig, check_tiled, positive_temperature


def tiled_cross_entropy(
    config: CrossEntropyConfig,
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
    """Compute what `towers.losses.CrossEntropy` computes of `query_BD @ document_ND.T`.

    Args:
        config: Which terms the loss has.
        query_BD: Floating; computed in float32 or wider.
        document_ND: Like `query_BD`.
        exclusions: Pairs that may not be negatives, in either direction.
        temperature: Divides scores; > 0.
        log_q_N: Log of the expected number of columns a document takes; `None` corrects nothing.
        weight_B: Weight of each row's pair, > 0.
        own: Negatives of one query each; they enter its row and its list.
        tiling: Size and precision of the tiles.

    Returns:
        Scalar, in nats.

    Raises:
        ValueError: If the shapes do not fit or the temperature is not positive.
        ConfigError: If the processor lacks the precision.
    """
    check_tiled(query_BD, document_ND, exclusions)
    query_BD, document_ND = widened(query_BD), widened(document_ND)
    temperature = positive_temperature(temperature, query_BD)
    if log_q_N is None or not config.log_q:
        log_q_N = query_BD.new_zeros(len(document_ND))
    log_q_N = log_q_N.to(query_BD.dtype)
    matrix = Matrix(exclusions, log_q_N, tiling or TilingConfig())
    positive_B, row_B, column_B = log_sums(query_BD, document_ND, temperature, matrix)
    positive_B = positive_B / temperature
    numerator_B = positive_B - log_q_N[: len(query_BD)] if config.correct_positive else positive_B
    own_BU = _own_logits(config, own, temperature)
    prior = config.false_negative_prior
    if prior > 0:
        row_BX = row_B[:, None] if own_BU is None else torch.cat([row_B[:, None], own_BU], dim=1)
        log_count_B = log_row_counts(exclusions, log_q_N, own, config.log_q)
        row_B = debiased_negatives(positive_B, log_sum(row_BX), log_count_B, prior, temperature)
        log_count_B = log_column_counts(exclusions).to(row_B.dtype)
        column_B = debiased_negatives(positive_B, column_B, log_count_B, prior, temperature)
        own_BU = None  # counted in the rows' sums
    total = weighted_mean(_short_of_certain([numerator_B, row_B], own_BU), weight_B)
    if config.column_weight > 0:
        columns = _short_of_certain([positive_B, column_B], None)
        total = total + config.column_weight * weighted_mean(columns, weight_B)
    if config.list_weight > 0:
        own_BU = _own_logits(config.model_copy(update={"log_q": False}), own, temperature)
        shown = _short_of_certain([positive_B], own_BU)
        total = total + config.list_weight * weighted_mean(shown, weight_B)
    return total / (1 + config.column_weight + config.list_weight)


def _own_logits(config: CrossEntropyConfig, own: OwnScores | None, temperature: Tensor) -> Tensor | None:
    if own is None:
        return None
    logit_BU = own.score_BU.to(temperature.dtype) / temperature
    if config.log_q and own.log_q_BU is not None:
        logit_BU = logit_BU - own.log_q_BU.to(temperature.dtype)
    return logit_BU.masked_fill(own.excluded_BU, -torch.inf)


def _short_of_certain(logits: list[Tensor], more_BU: Tensor | None) -> Tensor:
    """Return minus the log of the share that the first of several (B,) logits has of their exponentials."""
    columns = [logit_B[:, None] for logit_B in logits] + ([] if more_BU is None else [more_BU])
    return -torch.cat(columns, dim=1).log_softmax(1)[:, 0]
