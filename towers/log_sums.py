"""Log-sums of exponentials over the rows and columns of a score matrix that never exists as a whole.

The matrix is visited in tiles twice: forward for the sums, backward for the gradients. One `E = exp(logit)` a
tile serves both directions: with a_i what arrives at row i's log-sum over its sum, b_j the same of column j,
the gradient with respect to a logit is `E_ij (a_i / Q_j + b_j)`. That holds while exponentials of all logits
fit float32; past that rows and columns are summed apart, each relative to its own running maximum.

Shapes: B queries, N documents, N ≥ B, D embedding; column i < B is the positive of row i; R × C a tile.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from towers.exclusions import Exclusions
from towers.tiles import Tile, Tiles, TilingConfig, products_in, strips


@dataclass(frozen=True)
class Matrix:
    """What a walk over the tiles needs beside the embeddings.

    Attributes:
        exclusions: Pairs that may not be negatives.
        log_q: (N,) subtracted from the row direction's logits.
        tiling: Size and precision of the tiles.
    """

    exclusions: Exclusions
    log_q: Tensor
    tiling: TilingConfig


def log_sums(
    query_BD: Tensor, document_ND: Tensor, temperature: Tensor, matrix: Matrix
) -> tuple[Tensor, Tensor, Tensor]:
    """Reduce the matrix to three vectors of length B, with gradients to embeddings and temperature.

    Returns:
        The positives' raw scores `s_ii`; `log Σ_j exp(s_ij / t - log q_j)` of each row i;
        `log Σ_i exp(s_ij / t)` of each column j < B. The sums run over allowed pairs i ≠ j; -∞ where there
        is none.
    """
    reduced: tuple[Tensor, Tensor, Tensor] = _LogSums.apply(  # type: ignore[no-untyped-call]
        query_BD, document_ND, temperature, matrix
    )
    return reduced


class _LogSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query_BD: Tensor, document_ND: Tensor, temperature: Tensor, matrix: Matrix
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows = len(query_BD)
        tiles = Tiles(query_BD, document_ND, matrix.exclusions, matrix.tiling)
        with products_in(matrix.tiling.precision, query_BD.device):
            row_B, column_N = _sums_for(tiles, temperature.item(), matrix.log_q).log_sums()
        ctx.save_for_backward(query_BD, document_ND, temperature, row_B, column_N)
        ctx.matrix, ctx.room = matrix, tiles.room  # freed and taken again, it would be held twice at times
        return torch.linalg.vecdot(query_BD, document_ND[:rows]), row_B, column_N[:rows].clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, positive_B: Tensor, row_B: Tensor, column_B: Tensor) -> tuple[Tensor | None, ...]:
        query_BD, document_ND, temperature, row_sum_B, column_sum_N = ctx.saved_tensors
        matrix, rows = ctx.matrix, len(query_BD)
        column_N = torch.nn.functional.pad(column_B, (0, len(document_ND) - rows))
        tiles = Tiles(query_BD, document_ND, matrix.exclusions, matrix.tiling, ctx.room)
        sums = _sums_for(tiles, temperature.item(), matrix.log_q)
        sums.expect(_Arriving(row_B, row_sum_B), _Arriving(column_N, column_sum_N))
        with products_in(matrix.tiling.precision, query_BD.device):
            query_gradient, document_gradient, slope = _gradients(tiles, sums)
        query_gradient.addcmul_(document_ND[:rows], positive_B[:, None])
        document_gradient[:rows].addcmul_(query_BD, positive_B[:, None])
        return query_gradient, document_gradient, temperature.new_tensor(slope), None


def _gradients(tiles: Tiles, sums: "_Sums") -> tuple[Tensor, Tensor, float]:
    """Return the gradients of queries, documents and temperature t.

    Every logit is `s / t`, so the last is `-Σ_i query_i · its gradient / t`.
    """
    query_BD, document_ND = torch.zeros_like(tiles.query), torch.zeros_like(tiles.document)
    slope = 0.0
    for rows in tiles.row_blocks():
        scaled_RD, gradient_RD = tiles.query[rows] / sums.temperature, query_BD[rows]
        for tile in tiles.of(rows, scaled_RD):
            gradient_RC = sums.logit_gradient(tile)
            gradient_RD.addmm_(gradient_RC, tiles.document[tile.columns])
            document_ND[tile.columns].addmm_(gradient_RC.T, scaled_RD)
        gradient_RD.div_(sums.temperature)
        slope -= (gradient_RD * tiles.query[rows]).sum().item() / sums.temperature
    return query_BD, document_ND, slope


@dataclass(frozen=True)
class _Arriving:
    """The gradient that arrives at the log-sums of one direction, and these log-sums."""

    gradient: Tensor
    log_sum: Tensor

    def finite_log_sum(self) -> Tensor:
        """Return the log-sums, 0 for those of nothing: exponentials of -∞ are 0 relative to any number."""
        return self.log_sum.masked_fill(self.log_sum == -torch.inf, 0.0)


class _Sums(Protocol):
    """How tiles become log-sums, and log-sums' gradients become tiles of logits' gradients."""

    temperature: float

    def log_sums(self) -> tuple[Tensor, Tensor]:
        """Return those of the B rows and N columns."""
        ...

    def expect(self, row: _Arriving, column: _Arriving) -> None:
        """Take what arrives at the log-sums, before the first `logit_gradient`."""
        ...

    def logit_gradient(self, tile: Tile) -> Tensor:
        """Return a tile's (R, C) gradient; the tile's buffer is used up."""
        ...


def _sums_for(tiles: Tiles, temperature: float, log_q_N: Tensor) -> _Sums:
    """Return the cheaper kind where every exponential and every sum of them fits the floating type."""
    lengths = [float(side.norm(dim=1).max()) for side in (tiles.query, tiles.document)]
    correction = float(log_q_N.max() - log_q_N.min())  # half in a sum, all of it in a gradient's factor
    largest = math.prod(lengths) / temperature + correction
    fits = largest + math.log(len(log_q_N)) < -math.log(torch.finfo(tiles.query.dtype).tiny) - 4
    return (_SharedExponential if fits else _RunningMaxima)(tiles, temperature, log_q_N)


class _SharedExponential:
    """One exponential for both directions, relative to nothing."""

    def __init__(self, tiles: Tiles, temperature: float, log_q_N: Tensor) -> None:
        self.tiles, self.temperature = tiles, temperature
        self._middle = (log_q_N.max() + log_q_N.min()) / 2
        self._weight_N = (self._middle - log_q_N).exp()
        self._uniform = bool((self._weight_N == 1).all())

    def log_sums(self) -> tuple[Tensor, Tensor]:
        row_B = self.tiles.query.new_zeros(len(self.tiles.query))
        column_N = self.tiles.query.new_zeros(len(self.tiles.document))
        one_B = torch.ones_like(row_B)
        for rows in self.tiles.row_blocks():
            for tile in self.tiles.of(rows, self.tiles.query[rows] / self.temperature):
                logit_RC, row_R = tile.exclude(-torch.inf), row_B[rows]
                for strip in strips(logit_RC):
                    exponential_rC = logit_RC[strip].exp_()
                    row_R[strip].addmv_(exponential_rC, self._weight_N[tile.columns])
                    column_N[tile.columns].addmv_(exponential_rC.T, one_B[rows][strip])
        return row_B.log() - self._middle, column_N.log()

    def expect(self, row: _Arriving, column: _Arriving) -> None:
        # a sum of nothing has a = 0 · exp(0) and meets exponentials that are 0
        self._row_B = row.gradient * (-(row.finite_log_sum() + self._middle)).exp()
        self._column_N = column.gradient * (-column.finite_log_sum()).exp()

    def logit_gradient(self, tile: Tile) -> Tensor:
        gradient_RC = tile.exclude(-torch.inf)
        row_R1, column_C = self._row_B[tile.rows, None], self._column_N[tile.columns]
        for strip in strips(gradient_RC):
            gradient_rC = gradient_RC[strip]
            factor_rC = self.tiles.like(gradient_rC)
            if self._uniform:
                torch.add(row_R1[strip], column_C, out=factor_rC)
            else:
                torch.mul(row_R1[strip], self._weight_N[tile.columns], out=factor_rC).add_(column_C)
            gradient_rC.exp_().mul_(factor_rC)
        return gradient_RC


class _RunningMaxima:
    """Exponentials of each direction relative to its maximum so far, as large as that may be."""

    def __init__(self, tiles: Tiles, temperature: float, log_q_N: Tensor) -> None:
        self.tiles, self.temperature, self._log_q_N = tiles, temperature, log_q_N

    def log_sums(self) -> tuple[Tensor, Tensor]:
        row = _Online(len(self.tiles.query), like=self.tiles.query)
        column = _Online(len(self.tiles.document), like=self.tiles.query)
        for rows in self.tiles.row_blocks():
            for tile in self.tiles.of(rows, self.tiles.query[rows] / self.temperature):
                logit_RC = tile.exclude(-torch.inf)
                scratch_RC = self.tiles.like(logit_RC)
                column.add(tile.columns, logit_RC, 0, scratch_RC)
                row.add(rows, logit_RC.sub_(self._log_q_N[tile.columns]), 1, scratch_RC)
        return row.log_sum(), column.log_sum()

    def expect(self, row: _Arriving, column: _Arriving) -> None:
        self._row, self._row_sum_B = row, row.finite_log_sum()
        self._column, self._column_sum_N = column, column.finite_log_sum()

    def logit_gradient(self, tile: Tile) -> Tensor:
        logit_RC, gradient_RC = tile.exclude(-torch.inf), self.tiles.like(tile.score)
        torch.sub(logit_RC, self._column_sum_N[tile.columns], out=gradient_RC)
        gradient_RC.exp_().mul_(self._column.gradient[tile.columns])
        logit_RC.sub_(self._log_q_N[tile.columns]).sub_(self._row_sum_B[tile.rows, None])
        return gradient_RC.addcmul_(logit_RC.exp_(), self._row.gradient[tile.rows, None])


class _Online:
    """Sums of exponentials that grow tile by tile, each relative to the largest logit so far."""

    def __init__(self, length: int, like: Tensor) -> None:
        self._maximum = like.new_full((length,), -torch.inf)
        self._total = like.new_zeros(length)

    def add(self, places: slice, logit_RC: Tensor, dim: int, scratch_RC: Tensor) -> None:
        """Take a tile's logits into the sums at `places`, which run along its other dimension."""
        before = self._maximum[places]
        maximum = torch.maximum(before, logit_RC.amax(dim))
        finite = maximum.masked_fill(maximum == -torch.inf, 0.0)
        torch.sub(logit_RC, finite.unsqueeze(dim), out=scratch_RC)
        self._total[places] = self._total[places] * (before - finite).exp() + scratch_RC.exp_().sum(dim)
        self._maximum[places] = maximum

    def log_sum(self) -> Tensor:
        """Return the log of each sum; -∞ of nothing."""
        return self._total.log() + self._maximum.masked_fill(self._maximum == -torch.inf, 0.0)
