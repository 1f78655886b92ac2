"""How many candidates each row and column has, without a B × N mask, for the debiased correction.

Shapes: B queries, N documents, N ≥ B; column i < B is the positive of row i. U documents of each query's own.
"""

import torch
from torch import Tensor

from towers.exclusions import Exclusions
from towers.losses import OwnScores


def log_row_counts(exclusions: Exclusions, log_q_N: Tensor, own: OwnScores | None, corrected: bool) -> Tensor:
    """Return the log of `Σ_j 1 / Q_j` over the allowed negatives of each row.

    Args:
        exclusions: Pairs that may not be negatives.
        log_q_N: Log Q of each column; 0 counts a column as one.
        own: Negatives of one query each.
        corrected: Whether those count by their log Q too, where they have one.
    """
    each_N = (-log_q_N.detach().double()).exp()
    row, column = exclusions.pairs()
    excluded_B = each_N.new_zeros(len(exclusions)).index_add(0, row, each_N[column])
    count_B = each_N.sum() - each_N[: len(exclusions)] - excluded_B
    if own is not None:
        log_q_BU = torch.zeros_like(own.score_BU) if own.log_q_BU is None or not corrected else own.log_q_BU
        each_BU = (-log_q_BU.detach().double()).exp()
        count_B = count_B + each_BU.masked_fill(own.excluded_BU, 0).sum(1)
    return count_B.clamp(min=0).log().to(log_q_N.dtype)


def log_column_counts(exclusions: Exclusions) -> Tensor:
    """Return the log of the number of allowed queries of each of the first B columns, in float64."""
    rows = len(exclusions)
    _, column = exclusions.pairs()
    excluded_B = torch.bincount(column[column < rows], minlength=rows)
    return (rows - 1 - excluded_B).double().log()
