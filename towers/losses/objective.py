"""What an objective is: a function of a score matrix and the one mask."""

from typing import Protocol

from torch import Tensor

from towers.losses.matrix import OwnScores


class Loss(Protocol):
    """An objective: scores and the one mask in, a scalar out.

    B queries, N documents, N ≥ B; column i < B is the positive of row i, columns ≥ B are extra negatives.
    """

    def __call__(
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
        """Return the scalar loss of a batch.

        Args:
            score_BN: Raw similarities.
            excluded_BN: True where a pair may not be a negative, in either direction; False on the diagonal.
            temperature: Divides scores; > 0.
            log_q_N: Log of the expected number of columns a document takes; `None` corrects nothing.
            weight_B: Weight of each row's pair, > 0.
            own: Negatives of one query each.
            positive_BN: Excluded pairs that are known positives; only a loss with several positives a row
                reads it. `None`: only the diagonal is positive.
        """
        ...
