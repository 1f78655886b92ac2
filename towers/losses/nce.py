"""Noise-contrastive estimation: tell each positive from documents that were drawn as noise.

Shapes: B queries, N documents, N ≥ B; column i < B is the positive of row i, columns ≥ B are extra negatives.
U documents of each query's own; X = N + U.
"""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import softplus

from features.config import Config
from towers.losses.matrix import (
    OwnScores,
    check,
    check_temperature,
    negative_rows,
    row_log_q,
    weighted_mean,
    widened,
)


class NoiseContrastiveConfig(Config):
    """The normaliser of the noise-contrastive loss."""

    kind: Literal["nce"] = "nce"
    log_partition: float = Field(
        0.0,
        description="Subtracted from each logit; the nearer to the log of the sum of exponentials over the "
        "catalogue, the nearer σ is to a true probability.",
    )


class NoiseContrastive(nn.Module):
    """Mean over rows of `-log σ(G_ii) - Σ_j log(1 - σ(G_ij))` over the allowed j ≠ i.

    `G_ij = score_ij / temperature - c - log(k q_j)` is the log odds that document j belongs to query i rather
    than to the noise, of which k documents are drawn with probability q; `log_q_N` is `log(k q)`, the log of
    an expected number of columns. At the optimum `score / temperature - c` is `log p(document | query)`,
    whatever the noise was. There is no document → query direction, since the queries' noise is not known. A
    row without any allowed negative keeps its positive's term.

    Source: Gutmann and Hyvärinen 2012, "Noise-contrastive estimation of unnormalized statistical models",
    section 2.2. Differs: c is fixed, as in Mnih and Teh 2012; the noise is what the batch holds.
    """

    def __init__(self, config: NoiseContrastiveConfig) -> None:
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
            log_q_N: Log of the expected number of columns a document takes; required.
            weight_B: Weight of each row, > 0.
            own: Negatives of one query each, with their log Q; they enter its row.
            positive_BN: Not used: the diagonal is the only positive.

        Returns:
            Scalar, in nats a row.

        Raises:
            ValueError: If the shapes do not fit, a fixed temperature is not positive, or log Q is missing.
        """
        check(score_BN, excluded_BN)
        check_temperature(temperature)
        if log_q_N is None:
            raise ValueError("nce needs log_q_N, the noise it contrasts with; take cross_entropy without one")
        if own is not None and own.log_q_BU is None:
            raise ValueError("nce needs log_q_BU of each query's own documents, as of every other negative")
        score_BX, barred_BX = negative_rows(widened(score_BN), excluded_BN, own)
        noise_BX = row_log_q(log_q_N.to(score_BX.dtype), len(score_BX), own)
        odds_BX = score_BX / temperature - self.config.log_partition - noise_BX
        negatives_B = softplus(odds_BX).masked_fill(barred_BX, 0).sum(1)
        return weighted_mean(softplus(-odds_BX.diagonal()) + negatives_B, weight_B)
