"""Supervised contrastive: softmax cross-entropy with every known positive of the batch, in both directions.

Shapes: B queries, N documents, N ≥ B; column i < B is the positive of row i, columns ≥ B are extra negatives.
U documents of each query's own; X = N + U.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from features.config import Config
from towers.losses.matrix import (
    ColumnWeight,
    OwnScores,
    check,
    check_temperature,
    mean_where,
    row_log_q,
    row_negatives,
    weighted_mean,
    widened,
)


class SupervisedContrastiveConfig(Config):
    """How the positives of a row are joined, and which terms there are."""

    kind: Literal["supervised_contrastive"] = "supervised_contrastive"
    positives: Literal["outside", "inside"] = Field(
        "outside",
        description="Average over a row's positives outside the logarithm (each must be likely) or inside it "
        "(one of them suffices).",
    )
    log_q: bool = Field(True, description="Subtract log Q from the negatives' logits in the row direction.")
    correct_positive: bool = Field(
        False, description="Whether positives' logits are corrected by log Q like a negative's."
    )
    column_weight: ColumnWeight = 1.0


class SupervisedContrastive(nn.Module):
    """Softmax over a row's positives P and allowed negatives, with the mean over P outside or inside the log.

    With logits `l_ij = score_ij / temperature` (less log Q for negatives, in rows) and A = P ∪ negatives:

    - outside: `-1/|P| Σ_p log(exp(l_ip) / Σ_a exp(l_ia))`;
    - inside: `-log(1/|P| Σ_p exp(l_ip) / Σ_a exp(l_ia))`.

    P of row i is column i and the columns j < B that `positive_BN` marks; of column j it is row j and the
    rows it marks. With the diagonal alone both equal `cross_entropy`. A document in several columns counts as
    often. With more than one positive neither form reaches 0: the best is ln |P|. A row without any allowed
    negative and with one positive contributes 0. The result is
    `(rows + column_weight · columns) / (1 + column_weight)`.

    Source: Khosla et al. 2020, "Supervised contrastive learning", eq. 2 (outside) and eq. 3 (inside).
    Differs: two directions over two kinds of things, a mask, log Q.
    """

    def __init__(self, config: SupervisedContrastiveConfig) -> None:
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
            temperature: Divides scores; > 0.
            log_q_N: Log of the expected number of columns a document takes; `None` corrects nothing.
            weight_B: Weight of each row's pair, > 0.
            own: Negatives of one query each; they enter its row.
            positive_BN: True where a pair is a positive besides the diagonal, excluded or not; columns ≥ B
                are not read. `None`: the diagonal alone.

        Returns:
            Scalar, in nats.

        Raises:
            ValueError: If the shapes do not fit or a fixed temperature is not positive.
        """
        check(score_BN, excluded_BN)
        check_temperature(temperature)
        if positive_BN is not None:
            check(score_BN, positive_BN, "positive_BN")
        rows = len(score_BN)
        score_BX, excluded_BX = row_negatives(widened(score_BN), excluded_BN, own)
        logit_BX = score_BX / temperature
        positive_BX = torch.zeros_like(excluded_BX)
        if positive_BN is not None:
            positive_BX[:, :rows] = positive_BN[:, :rows]
        positive_BX.diagonal().fill_(True)
        row_BX = logit_BX
        if log_q_N is not None and self.config.log_q:
            log_q_BX = row_log_q(log_q_N.to(logit_BX.dtype), rows, own)
            spared_BX = positive_BX & (not self.config.correct_positive)
            row_BX = logit_BX - log_q_BX.masked_fill(spared_BX, 0)
        loss = weighted_mean(self._of_rows(row_BX, excluded_BX, positive_BX), weight_B)
        if self.config.column_weight == 0:
            return loss
        columns_B = self._of_rows(*(x[:, :rows].T for x in (logit_BX, excluded_BX, positive_BX)))
        columns = weighted_mean(columns_B, weight_B)
        return (loss + self.config.column_weight * columns) / (1 + self.config.column_weight)

    def _of_rows(self, logit_BX: Tensor, excluded_BX: Tensor, positive_BX: Tensor) -> Tensor:
        log_share_BX = logit_BX.masked_fill(excluded_BX & ~positive_BX, -torch.inf).log_softmax(1)
        if self.config.positives == "outside":
            return -mean_where(log_share_BX, positive_BX)
        inside_B = log_share_BX.masked_fill(~positive_BX, -torch.inf).logsumexp(1)
        return positive_BX.sum(1).to(logit_BX.dtype).log() - inside_B
