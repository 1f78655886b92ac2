"""What every objective over a score matrix does first and last: check it, widen it, average its rows.

Beside it the settings that several objectives have.

B queries, N documents, N ≥ B; column i < B is the positive of row i. U documents of each query's own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

ColumnWeight = Annotated[
    float,
    Field(
        ge=0, description="Weight of the document → query direction against 1 for query → document; 0 is off."
    ),
]
Margin = Annotated[
    float, Field(gt=0, description="By how much a positive's raw score must exceed a negative's.")
]


@dataclass(frozen=True)
class OwnScores:
    """Scores of documents that are negatives of one query only, such as the unclicked of its own list.

    Attributes:
        score_BU: Raw similarities of each query and its own documents.
        excluded_BU: True where there is no document (lists differ in length) or it may not be a negative.
        log_q_BU: Log of the expected number of columns of each document; `None` corrects nothing.
    """

    score_BU: Tensor
    excluded_BU: Tensor
    log_q_BU: Tensor | None = None

    def __post_init__(self) -> None:
        if self.score_BU.dim() != 2 or self.excluded_BU.shape != self.score_BU.shape:
            raise ValueError(
                "score_BU and excluded_BU must be B x U; "
                f"they are {tuple(self.score_BU.shape)} and {tuple(self.excluded_BU.shape)}"
            )


def row_negatives(score_BN: Tensor, excluded_BN: Tensor, own: OwnScores | None) -> tuple[Tensor, Tensor]:
    """Return scores and exclusions of the row direction: the shared columns, then each query's own."""
    if own is None:
        return score_BN, excluded_BN
    score_BX = torch.cat([score_BN, own.score_BU.to(score_BN.dtype)], dim=1)
    return score_BX, torch.cat([excluded_BN, own.excluded_BU], dim=1)


def row_log_q(log_q_N: Tensor, rows: int, own: OwnScores | None) -> Tensor:
    """Return log Q of the row direction, (B, N + U); own documents without one are not corrected."""
    log_q_BN = log_q_N.expand(rows, -1)
    if own is None:
        return log_q_BN
    log_q_BU = torch.zeros_like(own.score_BU) if own.log_q_BU is None else own.log_q_BU
    return torch.cat([log_q_BN, log_q_BU.to(log_q_N.dtype)], dim=1)


def negative_rows(score_BN: Tensor, excluded_BN: Tensor, own: OwnScores | None) -> tuple[Tensor, Tensor]:
    """Return scores of the row direction, (B, N + U), and what is no negative: excluded, or the diagonal."""
    barred_BN = excluded_BN.clone()
    barred_BN.diagonal().fill_(True)
    return row_negatives(score_BN, barred_BN, own)


def negative_columns(score_BN: Tensor, excluded_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Return scores of the document → query direction, a row for each of B documents, and what is barred."""
    rows = len(score_BN)
    return negative_rows(score_BN[:, :rows].T, excluded_BN[:, :rows].T, None)


def in_both_directions(
    loss_of: Callable[[Tensor, Tensor, Tensor], Tensor],
    score_BN: Tensor,
    excluded_BN: Tensor,
    own: OwnScores | None,
    weight_B: Tensor | None,
    column_weight: float,
) -> Tensor:
    """Average a loss over the rows and over the first B columns.

    Args:
        loss_of: Takes positives (B,), scores (B, X) and what is barred of them (B, X); returns losses (B,).
        score_BN: Similarities, already wide enough.
        excluded_BN: The mask; its diagonal is False.
        own: Negatives of one query each; they enter its row.
        weight_B: Weight of each pair, in both directions.
        column_weight: Weight of the columns against 1 for the rows; 0 leaves them out.
    """
    positive_B = score_BN.diagonal()
    rows = weighted_mean(loss_of(positive_B, *negative_rows(score_BN, excluded_BN, own)), weight_B)
    if column_weight == 0:
        return rows
    columns = weighted_mean(loss_of(positive_B, *negative_columns(score_BN, excluded_BN)), weight_B)
    return (rows + column_weight * columns) / (1 + column_weight)


def mean_where(value_BX: Tensor, kept_BX: Tensor) -> Tensor:
    """Average each row over what is kept; 0, without a gradient, where nothing is."""
    return value_BX.masked_fill(~kept_BX, 0).sum(1) / kept_BX.sum(1).clamp(min=1)


def check_temperature(temperature: float | Tensor) -> None:
    """Refuse a fixed temperature that is not positive; a learned one is clamped where it is learned.

    Raises:
        ValueError: If it is a number and not above 0.
    """
    if isinstance(temperature, float | int) and not temperature > 0:
        raise ValueError(f"temperature must be > 0; it is {temperature}")


def check(score_BN: Tensor, mask_BN: Tensor, name: str = "excluded_BN") -> None:
    """Refuse matrices that cannot be what the loss expects.

    Raises:
        ValueError: If the shapes differ, there are fewer columns than rows, or the mask is not boolean.
    """
    if score_BN.dim() != 2 or score_BN.shape[1] < score_BN.shape[0] or score_BN.shape[0] == 0:
        raise ValueError(f"score_BN must be B x N with N >= B >= 1; its shape is {tuple(score_BN.shape)}")
    if mask_BN.shape != score_BN.shape or mask_BN.dtype != torch.bool:
        raise ValueError(
            f"{name} must be bool of shape {tuple(score_BN.shape)}; "
            f"it is {mask_BN.dtype} of shape {tuple(mask_BN.shape)}"
        )


def widened(score: Tensor) -> Tensor:
    """Return the scores in float32 where they are narrower, so that reductions do not lose digits."""
    return score.to(torch.promote_types(score.dtype, torch.float32))


def weighted_mean(loss_B: Tensor, weight_B: Tensor | None) -> Tensor:
    """Average the rows' losses; `weight_B` (> 0) counts a row more or less than once."""
    if weight_B is None:
        return loss_B.mean()
    weight_B = weight_B.to(loss_B.dtype)
    return (loss_B * weight_B).sum() / weight_B.sum()
