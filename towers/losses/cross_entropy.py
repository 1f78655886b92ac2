"""Bidirectional cross-entropy: each query picks its document, each document picks its query.

Shapes: B queries, N documents, N ≥ B; column i < B is the positive of row i, columns ≥ B are extra negatives.
U documents of each query's own.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import softplus

from features.config import Config
from towers.losses.debias import debiased_negatives, log_sum
from towers.losses.matrix import (
    ColumnWeight,
    OwnScores,
    check,
    check_temperature,
    row_log_q,
    row_negatives,
    weighted_mean,
    widened,
)


class CrossEntropyConfig(Config):
    """Which terms the cross-entropy has."""

    kind: Literal["cross_entropy"] = "cross_entropy"
    log_q: bool = Field(
        True,
        description="Subtract log Q from the row direction's logits, so that popularity is not unlearned.",
    )
    correct_positive: bool = Field(
        False, description="Whether the positive's own logit is corrected by log Q like a negative's."
    )
    column_weight: ColumnWeight = 1.0
    list_weight: float = Field(
        0.0,
        ge=0,
        description="Weight of a softmax of the positive against its own documents alone; 0 is off.",
    )
    false_negative_prior: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the negatives that are in truth positives, for the debiased correction under "
        "cosine similarity; 0 is off.",
    )


class CrossEntropy(nn.Module):
    """Softmax cross-entropy over the rows (all N columns and the row's own U) and over the first B columns.

    With logits `l_ij = score_ij / temperature` and `l'_ij = l_ij - log_q_j`:

    - row i: `-p_i + log(exp(p_i) + Σ_j exp(l'_ij))` over the allowed j ≠ i, where `p_i` is `l_ii`, or `l'_ii`
      when `correct_positive`;
    - column j < B: `-l_jj + log Σ_i exp(l_ij)` over the allowed i and i = j;
    - list i: `-l_ii + log(exp(l_ii) + Σ_u exp(l_iu))` over the allowed ones u of its own documents, without
      log Q, since what was shown beside the positive is no sample of the catalogue. It learns what is clicked
      once shown, where the rows learn what is clicked at all.

    With a `false_negative_prior` the sums over negatives of rows and columns are replaced by the estimates of
    `towers.losses.debias`. The list keeps its sum, since its documents were looked at and skipped.

    The result is the mean of the three, weighted by 1, `column_weight` and `list_weight`; each is a weighted
    mean over B.

    Source: Yi et al. 2019, "Sampling-bias-corrected neural modeling". Differs: two directions, a mask, and
    the correction of the positive is a switch.
    """

    def __init__(self, config: CrossEntropyConfig) -> None:
        super().__init__()
        self.config = config

    def forward(
        self,
        score_BN: Tensor,
        excluded_BN: Tensor,
        *,
        temperature: float | Tensor,
        log_q_N: Tensor | None = None,
        weight_B: Tensor | None = None,
        own: OwnScores | None = None,
        positive_BN: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss.

        Args:
            score_BN: Raw similarities, any floating type; reduced in float32 or wider.
            excluded_BN: True where a pair may not be a negative, in either direction; False on the diagonal.
            temperature: Divides scores; > 0. Typical 0.02 to 0.1 under cosine.
            log_q_N: Log of the expected number of columns a document takes; `None` corrects nothing.
            weight_B: Weight of each row's pair, > 0.
            own: Negatives of one query each; they enter its row and its list.
            positive_BN: Not used: the diagonal is the only positive.

        Returns:
            Scalar, in nats. A row without any allowed negative contributes 0.

        Raises:
            ValueError: If the shapes do not fit or a fixed temperature is not positive.
        """
        check(score_BN, excluded_BN)
        check_temperature(temperature)
        rows, width = score_BN.shape
        score_BX, excluded_BX = row_negatives(widened(score_BN), excluded_BN, own)
        logit_BX = score_BX / temperature
        subtracted_BX = self._subtracted(excluded_BX, log_q_N, own, logit_BX.dtype)
        total = weighted_mean(self._of_rows(logit_BX, subtracted_BX, temperature), weight_B)
        if self.config.column_weight > 0:
            columns_B = self._of_columns(logit_BX[:, :rows], excluded_BN[:, :rows], temperature)
            total = total + self.config.column_weight * weighted_mean(columns_B, weight_B)
        if self.config.list_weight > 0:
            own_BU = logit_BX[:, width:].masked_fill(excluded_BX[:, width:], -torch.inf)
            shown_BU = torch.cat([logit_BX.diagonal()[:, None], own_BU], dim=1)
            total = total + self.config.list_weight * weighted_mean(-shown_BU.log_softmax(1)[:, 0], weight_B)
        return total / (1 + self.config.column_weight + self.config.list_weight)

    def _of_rows(self, logit_BX: Tensor, subtracted_BX: Tensor, temperature: float | Tensor) -> Tensor:
        """Return the loss of each row, whose logits lose what is subtracted."""
        row_BX = logit_BX - subtracted_BX
        if self.config.false_negative_prior > 0:
            return self._debiased(logit_BX.diagonal(), row_BX, -subtracted_BX, temperature)
        # log_softmax is one fused pass each way; logsumexp makes several matrices of the same size
        return -row_BX.log_softmax(1).diagonal()

    def _of_columns(self, logit_BB: Tensor, excluded_BB: Tensor, temperature: float | Tensor) -> Tensor:
        """Return the loss of each column."""
        column_BB = logit_BB.masked_fill(excluded_BB, -torch.inf)
        if self.config.false_negative_prior > 0:
            log_count_BB = torch.zeros_like(logit_BB).masked_fill(excluded_BB, -torch.inf)
            return self._debiased(logit_BB.diagonal(), column_BB.T, log_count_BB.T, temperature)
        return -column_BB.log_softmax(0).diagonal()

    def _debiased(
        self, positive_B: Tensor, logit_BX: Tensor, log_count_BX: Tensor, temperature: float | Tensor
    ) -> Tensor:
        """Return the loss of each row with the debiased sum over its negatives."""
        diagonal_BX = torch.zeros_like(logit_BX, dtype=torch.bool)
        diagonal_BX.diagonal().fill_(True)
        log_negatives_B = debiased_negatives(
            positive_B,
            log_sum(logit_BX.masked_fill(diagonal_BX, -torch.inf)),
            log_sum(log_count_BX.masked_fill(diagonal_BX, -torch.inf)),
            self.config.false_negative_prior,
            temperature,
        )
        return softplus(log_negatives_B - logit_BX.diagonal())

    def _subtracted(
        self, excluded_BX: Tensor, log_q_N: Tensor | None, own: OwnScores | None, dtype: torch.dtype
    ) -> Tensor:
        """Return what row logits lose: log Q, ∞ where excluded, 0 for an uncorrected positive."""
        if log_q_N is None or not self.config.log_q:
            subtracted_BX = torch.zeros_like(excluded_BX, dtype=dtype)
        else:
            subtracted_BX = row_log_q(log_q_N.to(dtype), len(excluded_BX), own)
        subtracted_BX = subtracted_BX.masked_fill(excluded_BX, torch.inf)
        if not self.config.correct_positive:
            subtracted_BX.diagonal().zero_()
        return subtracted_BX
