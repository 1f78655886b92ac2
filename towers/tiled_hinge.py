"""Hardest-negative hinge with memory linear in B.

The score matrix is visited once, for the largest score of each row and column. Where that stands is looked up
in the one tile that holds it, and the gradient touches nothing else.

Shapes: B queries, N documents, N ≥ B, D embedding; column i < B is the positive of row i; U documents of each
query's own; X rows or columns, Y what they are compared with.
"""

from typing import Any

import torch
from torch import Tensor

from features.errors import ConfigError
from towers.exclusions import Exclusions
from towers.losses import HingeConfig, OwnScores
from towers.losses.matrix import weighted_mean, widened
from towers.tiles import Tiles, TilingConfig, blocks_of, check_tiled, products_in


def tiled_hinge(
    config: HingeConfig,
    query_BD: Tensor,
    document_ND: Tensor,
    exclusions: Exclusions,
    *,
    weight_B: Tensor | None = None,
    own: OwnScores | None = None,
    tiling: TilingConfig | None = None,
) -> Tensor:
    """Compute what `towers.losses.Hinge` with the hardest negative computes of `query_BD @ document_ND.T`.

    Of several equally hard columns (or rows) one takes the whole gradient, where the plain loss shares it.
    Embeddings that are equal for being of one input pass the same on to it either way.

    Args:
        config: Margin and weight of the column direction.
        query_BD: Floating; computed in float32 or wider.
        document_ND: Like `query_BD`.
        exclusions: Pairs that may not be negatives, in either direction.
        weight_B: Weight of each row's pair, > 0.
        own: Negatives of one query each; they enter its row.
        tiling: Size and precision of the tiles.

    Returns:
        Scalar, in units of the score.

    Raises:
        ValueError: If the shapes do not fit.
        ConfigError: If other negatives than the hardest are wanted, or the processor lacks the precision.
    """
    require_hardest(config)
    check_tiled(query_BD, document_ND, exclusions)
    query_BD, document_ND = widened(query_BD), widened(document_ND)
    positive_B, row_B, column_B = _Hardest.apply(  # type: ignore[no-untyped-call]
        query_BD, document_ND, exclusions, tiling or TilingConfig()
    )
    if own is not None:
        own_BU = own.score_BU.to(row_B.dtype).masked_fill(own.excluded_BU, -torch.inf)
        row_B = torch.cat([row_B[:, None], own_BU], dim=1).amax(1)
    loss = weighted_mean((config.margin - positive_B + row_B).clamp(min=0), weight_B)
    if config.column_weight == 0:
        return loss
    columns = weighted_mean((config.margin - positive_B + column_B).clamp(min=0), weight_B)
    return (loss + config.column_weight * columns) / (1 + config.column_weight)


def require_hardest(config: HingeConfig) -> None:
    """Refuse a hinge whose negatives a running maximum does not find.

    Raises:
        ConfigError: If it is over other negatives than the hardest.
    """
    if config.negative != "hardest":
        raise ConfigError(
            f"the hinge over {config.negative!r} negatives has no tiled form; set negative to 'hardest', or "
            "train it with the plain loss in batches whose score matrix fits into memory"
        )


class _Hardest(torch.autograd.Function):
    """Scores of the positives, and the largest of each row's and each column's (j < B) allowed negatives."""

    @staticmethod
    def forward(
        ctx: Any, query_BD: Tensor, document_ND: Tensor, exclusions: Exclusions, tiling: TilingConfig
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows = len(query_BD)
        tiles = Tiles(query_BD, document_ND, exclusions, tiling)
        with products_in(tiling.precision, query_BD.device):
            row, column = _maxima(tiles)
            pairs = exclusions.pairs()
            row_place_B = row.places(query_BD, document_ND, pairs)
            column_place_B = column.first(rows).places(document_ND[:rows], query_BD, pairs[::-1])
        ctx.save_for_backward(query_BD, document_ND, row_place_B, column_place_B)
        positive_B = torch.linalg.vecdot(query_BD, document_ND[:rows])
        return positive_B, row.maximum, column.first(rows).maximum

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, positive_B: Tensor, row_B: Tensor, column_B: Tensor) -> tuple[Tensor | None, ...]:
        query_BD, document_ND, row_place_B, column_place_B = ctx.saved_tensors
        rows = torch.arange(len(query_BD), device=query_BD.device)
        query_P = torch.cat([rows, rows, column_place_B])
        document_P = torch.cat([rows, row_place_B, rows])
        weight_P = torch.cat([positive_B, row_B, column_B])
        query_gradient = _weighted_sums(query_P, document_P, weight_P, document_ND, len(query_BD))
        document_gradient = _weighted_sums(document_P, query_P, weight_P, query_BD, len(document_ND))
        return query_gradient, document_gradient, None, None


def _weighted_sums(to_P: Tensor, from_P: Tensor, weight_P: Tensor, vector_XD: Tensor, length: int) -> Tensor:
    """Return (length, D): for each place the sum of the weighted vectors that pairs bring there."""
    kept = weight_P.nonzero().view(-1)
    to_p, order = to_P[kept].sort(stable=True)
    starts = torch.searchsorted(to_p, torch.arange(length, device=to_p.device))
    chosen = kept[order]
    return torch.nn.functional.embedding_bag(
        from_P[chosen], vector_XD, starts, mode="sum", per_sample_weights=weight_P[chosen]
    )


_PART = 1024  # vectors gathered at once


class _Maxima:
    """The largest score of each of X rows (or columns), and which block of columns (or rows) holds it."""

    def __init__(self, maximum: Tensor, block: Tensor, blocks: list[slice]) -> None:
        self.maximum, self._block, self._blocks = maximum, block, blocks

    @classmethod
    def nothing(cls, length: int, blocks: list[slice], like: Tensor) -> "_Maxima":
        """Return -∞ for each."""
        return cls(like.new_full((length,), -torch.inf), torch.zeros_like(like[:length, 0]).long(), blocks)

    def first(self, length: int) -> "_Maxima":
        """Return those of the first rows (or columns)."""
        return _Maxima(self.maximum[:length], self._block[:length], self._blocks)

    def add(self, here: slice, maximum_Kx: Tensor, first: int) -> None:
        """Take the maxima within K blocks, the first of which is number `first`."""
        maximum_x, block_x = maximum_Kx.max(0)
        block_x = torch.where(maximum_x > self.maximum[here], block_x + first, self._block[here])
        self._block[here] = block_x
        torch.maximum(self.maximum[here], maximum_x, out=self.maximum[here])

    def places(self, left_XD: Tensor, right_YD: Tensor, pairs: tuple[Tensor, Tensor]) -> Tensor:
        """Return in which column (or row) each maximum stands, from the products of its block alone.

        Args:
            left_XD: Embeddings whose maxima these are.
            right_YD: The other embeddings.
            pairs: (P,) excluded places in X and in Y.
        """
        place_X = torch.zeros_like(self._block)
        number_X = torch.full_like(place_X, -1)
        excluded = _Within(pairs, len(place_X), self._blocks)
        for block, columns in enumerate(self._blocks):
            for x in torch.split((self._block == block).nonzero().view(-1), _PART):
                score_xC = left_XD[x] @ right_YD[columns].T
                number_X[x] = torch.arange(len(x), device=x.device)
                for row, column in (excluded.of(block), (x, x)):
                    here = (number_X[row] >= 0) & (column >= columns.start) & (column < columns.stop)
                    score_xC[number_X[row[here]], column[here] - columns.start] = -torch.inf
                number_X[x] = -1
                place_X[x] = score_xC.max(1).indices + columns.start
        return place_X


class _Within:
    """Excluded pairs by the block that their second place is in."""

    def __init__(self, pairs: tuple[Tensor, Tensor], first: int, blocks: list[slice]) -> None:
        kept = pairs[0] < first
        row, column = pairs[0][kept], pairs[1][kept]
        block, order = (column // (blocks[0].stop - blocks[0].start)).sort()
        self._row, self._column = row[order], column[order]
        places = torch.arange(len(blocks) + 1, device=block.device)
        self._bounds = torch.searchsorted(block, places).tolist()

    def of(self, block: int) -> tuple[Tensor, Tensor]:
        """Return the first and the second place of the pairs of a block."""
        here = slice(self._bounds[block], self._bounds[block + 1])
        return self._row[here], self._column[here]


def _maxima(tiles: Tiles) -> tuple[_Maxima, _Maxima]:
    """Return those of the B rows and of the N columns."""
    height, width = (_piece(blocks[0]) for blocks in (tiles.row_blocks(), tiles.column_blocks()))
    row = _Maxima.nothing(len(tiles.query), blocks_of(len(tiles.document), width), tiles.query)
    column = _Maxima.nothing(len(tiles.document), blocks_of(len(tiles.query), height), tiles.document)
    for rows in tiles.row_blocks():
        row_KR = tiles.query.new_empty(-(-len(tiles.document) // width), rows.stop - rows.start)
        column_KN = tiles.query.new_empty(-(-(rows.stop - rows.start) // height), len(tiles.document))
        for tile in tiles.of(rows, tiles.query[rows]):
            score_RC = tile.exclude(-torch.inf)
            _piecewise_maxima(score_RC.T, width, row_KR[tile.columns.start // width :])
            _piecewise_maxima(score_RC, height, column_KN[:, tile.columns])
        row.add(rows, row_KR, 0)
        column.add(slice(None), column_KN, rows.start // height)
    return row, column


def _piece(block: slice) -> int:
    """Return the size of the blocks in which a maximum is looked up: a quarter of a tile where that goes."""
    size: int = block.stop - block.start
    return size // 4 if size % 4 == 0 else size


def _piecewise_maxima(score_XY: Tensor, size: int, out_KY: Tensor) -> None:
    """Put the maxima over each `size` of X into the first rows of `out_KY`."""
    whole = len(score_XY) // size
    if whole > 0:
        score_KXY = torch.unflatten(score_XY[: whole * size], 0, (whole, size))
        torch.amax(score_KXY, 1, out=out_KY[:whole])
    if whole * size < len(score_XY):
        torch.amax(score_XY[whole * size :], 0, out=out_KY[whole])
