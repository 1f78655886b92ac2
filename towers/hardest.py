"""Which negative each query holds closest, without a B × N matrix.

Shapes: B queries, N documents, N ≥ B, U documents of each query's own, D embedding.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from towers.exclusions import Exclusions
from towers.losses.matrix import OwnScores
from towers.tiles import Tiles, TilingConfig


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
    query_BD: Tensor,
    document_ND: Tensor,
    excluded: Exclusions,
    own: OwnScores | None = None,
    tiling: TilingConfig | None = None,
) -> Hardest:
    """Find them, tile by tile.

    Args:
        query_BD: Embeddings whose inner products are scores.
        document_ND: The columns; the first B are the positives.
        excluded: What may not be a negative.
        own: Scores of each query's own documents.
        tiling: Size of the tiles.

    Returns:
        The first of several equally hard ones.
    """
    width = len(document_ND)
    negative_B = torch.full_like(query_BD[:, 0], -torch.inf)
    column_B = torch.zeros_like(negative_B, dtype=torch.int64)
    tiles = Tiles(query_BD, document_ND, excluded, tiling or TilingConfig())
    for rows in tiles.row_blocks():
        for tile in tiles.of(rows, query_BD[rows]):
            score_RC = tile.exclude(-torch.inf)
            better = (score_RC.amax(1) > negative_B[rows]).nonzero().view(-1)  # fewer from tile to tile
            best, place = score_RC[better].max(1)
            negative_B[rows.start + better] = best
            column_B[rows.start + better] = tile.columns.start + place
    if own is not None and own.score_BU.shape[1] > 0:
        best_B, place_B = own.score_BU.masked_fill(own.excluded_BU, -torch.inf).max(1)
        column_B = torch.where(best_B > negative_B, width + place_B, column_B)
        negative_B = torch.maximum(negative_B, best_B)
    positive_B = torch.linalg.vecdot(query_BD, document_ND[: len(query_BD)])
    return Hardest(positive_B, negative_B, column_B)
