"""Which negative each query holds closest, without a B × N matrix.

Shapes: B queries, N documents, N ≥ B, U documents of each query's own, D embedding.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from towers.exclusions import Exclusions
from towers.losses.matrix import OwnScores

_TILE = 1 << 22  # scores at once: 16 MiB


@dataclass(frozen=True)
class Hardest:
    """Each row's positive beside its hardest allowed negative.

    Attributes:
        positive_B: Score of the positive.
        negative_B: Score of the hardest allowed negative; -∞ where a row has none.
        column_B: Its column; N + u for a query's own document u.
    """

    positive_B: Tensor
    negative_B: Tensor
    column_B: Tensor


@torch.no_grad()
def hardest_negatives(
    query_BD: Tensor, document_ND: Tensor, excluded: Exclusions, own: OwnScores | None = None
) -> Hardest:
    """Find them, a few rows at a time.

    Args:
        query_BD: Embeddings whose inner products are scores.
        document_ND: The columns; the first B are the positives.
        excluded: What may not be a negative.
        own: Scores of each query's own documents.

    Returns:
        The first of several equally hard ones.
    """
    rows, width = len(query_BD), len(document_ND)
    step = max(1, _TILE // width)
    negative_B, column_B = query_BD.new_empty(rows), excluded.columns.new_empty(rows)
    for first in range(0, rows, step):
        end = min(first + step, rows)
        score_TN = query_BD[first:end] @ document_ND.T
        score_TN[excluded.block(first, end)] = -torch.inf
        score_TN.diagonal(first).fill_(-torch.inf)
        negative_B[first:end], column_B[first:end] = score_TN.max(1)
    if own is not None and own.score_BU.shape[1] > 0:
        best_B, place_B = own.score_BU.masked_fill(own.excluded_BU, -torch.inf).max(1)
        column_B = torch.where(best_B > negative_B, width + place_B, column_B)
        negative_B = torch.maximum(negative_B, best_B)
    positive_B = (query_BD * document_ND[:rows]).sum(1)
    return Hardest(positive_B, negative_B, column_B)
