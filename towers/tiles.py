"""A walk over the score matrix in tiles, so that it never exists as a whole.

Shapes: B queries, N documents, N ≥ B, D embedding; column i < B is the positive of row i; a tile has R rows
and C columns.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from features.config import Config
from features.errors import ConfigError
from towers.exclusions import Exclusions


class TilingConfig(Config):
    """How large a tile is and what its products are computed in."""

    rows: int = Field(2048, ge=1, description="Queries of a tile. 2048 x 2048 floats take 16 MiB.")
    columns: int = Field(2048, ge=1, description="Documents of a tile.")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="What goes into a tile's matrix products; sums are float32 either way. bfloat16 needs a "
        "processor with AVX512_BF16 or AMX.",
    )


@dataclass(frozen=True)
class Tile:
    """One tile; its buffer is overwritten by the next.

    Attributes:
        rows: Where its queries are.
        columns: Where its documents are.
        score: (R, C) scores; the consumer may change them.
        excluded: Positions in the flattened tile that are no negatives: excluded pairs and the positives.
    """

    rows: slice
    columns: slice
    score: Tensor
    excluded: Tensor

    def exclude(self, value: float) -> Tensor:
        """Put `value` where there is no negative; return the scores."""
        if len(self.excluded) > 0:
            self.score.view(-1).index_fill_(0, self.excluded, value)
        return self.score


class Tiles:
    """The score matrix of a batch as tiles.

    Attributes:
        query: (B, D).
        document: (N, D).
        room: Of one tile, to be handed to later `Tiles` of the same batch.
    """

    def __init__(
        self,
        query_BD: Tensor,
        document_ND: Tensor,
        exclusions: Exclusions,
        tiling: TilingConfig,
        room: Tensor | None = None,
    ) -> None:
        self.query, self.document, self._exclusions = query_BD, document_ND, exclusions
        self._rows = min(tiling.rows, len(query_BD))
        self._columns = min(tiling.columns, len(document_ND))
        self.room = query_BD.new_empty(self._rows * self._columns) if room is None else room
        self._scratch: Tensor | None = None

    def row_blocks(self) -> list[slice]:
        """Return the rows, block by block."""
        return blocks_of(len(self.query), self._rows)

    def column_blocks(self) -> list[slice]:
        """Return the columns, block by block."""
        return blocks_of(len(self.document), self._columns)

    def of(self, rows: slice, query_RD: Tensor) -> Iterator[Tile]:
        """Visit the tiles of a block of rows from left to right.

        Args:
            rows: One of `row_blocks`.
            query_RD: The queries of these rows, scaled as the scores shall be.
        """
        height = rows.stop - rows.start
        excluded, bounds = self._excluded(rows)
        for number, columns in enumerate(self.column_blocks()):
            width = columns.stop - columns.start
            score_RC = self.room[: height * width].view(height, width)
            torch.mm(query_RD, self.document[columns].T, out=score_RC)
            yield Tile(rows, columns, score_RC, excluded[bounds[number] : bounds[number + 1]])

    def like(self, score_RC: Tensor) -> Tensor:
        """Return room of this shape, which is that of a tile or of a part of it; all calls share the room."""
        if self._scratch is None or len(self._scratch) < score_RC.numel():
            self._scratch = self.room.new_empty(score_RC.numel())
        return self._scratch[: score_RC.numel()].view_as(score_RC)

    def _excluded(self, rows: slice) -> tuple[Tensor, list[int]]:
        """Return where in its tile each excluded or positive pair is, tile by tile, and each tile's first."""
        row, column = self._exclusions.block(rows.start, rows.stop)
        places = torch.arange(rows.stop - rows.start, device=row.device)
        row, column = torch.cat([row, places]), torch.cat([column, places + rows.start])
        number, order = (column // self._columns).sort(stable=True)
        width = self._columns
        widths = torch.where(number < len(self.document) // width, width, len(self.document) % width)
        excluded = row[order] * widths + column[order] - number * width
        tiles = torch.arange(len(self.column_blocks()) + 1, device=row.device)
        return excluded, torch.searchsorted(number, tiles).tolist()


@contextmanager
def products_in(precision: Literal["float32", "bfloat16"], device: torch.device) -> Iterator[None]:
    """Compute the matrix products inside with operands rounded to `precision` and sums in float32.

    Raises:
        ConfigError: If this processor has no instructions for bfloat16 products.
    """
    if precision == "float32":
        yield
        return
    capabilities = torch.cpu.get_capabilities()
    if device.type != "cpu" or not (capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")):
        raise ConfigError(
            "precision is bfloat16, but products in it need a processor with AVX512_BF16 or AMX; "
            f"this is {device.type} {capabilities.get('cpu_name', '')}: set precision to float32"
        )
    products = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = products.fp32_precision
    products.fp32_precision = "bf16"
    try:
        yield
    finally:
        products.fp32_precision = before


def check_tiled(query_BD: Tensor, document_ND: Tensor, exclusions: Exclusions) -> None:
    """Refuse inputs that do not belong together.

    Raises:
        ValueError: If the shapes do not fit.
    """
    rows, columns = len(query_BD), len(document_ND)
    if query_BD.dim() != 2 or document_ND.dim() != 2 or query_BD.shape[1] != document_ND.shape[1]:
        raise ValueError(
            "query_BD and document_ND must be matrices of equal width; "
            f"their shapes are {tuple(query_BD.shape)} and {tuple(document_ND.shape)}"
        )
    if not 1 <= rows <= columns or (len(exclusions), exclusions.width) != (rows, columns):
        raise ValueError(
            f"N >= B >= 1 and exclusions of B x N are needed; B is {rows}, N is {columns}, "
            f"the exclusions are {len(exclusions)} x {exclusions.width}"
        )


def positive_temperature(temperature: float | Tensor, like: Tensor) -> Tensor:
    """Return it as a scalar of the type and place of `like`.

    Raises:
        ValueError: If it is not positive.
    """
    scalar = torch.as_tensor(temperature, dtype=like.dtype, device=like.device)
    if not scalar.item() > 0:
        raise ValueError(f"temperature must be > 0; it is {scalar.item()}")
    return scalar


def blocks_of(length: int, size: int) -> list[slice]:
    """Return slices of `size`, the last of what is left, that cover `length`."""
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def strips(score_RC: Tensor) -> list[slice]:
    """Return the rows of a tile, as many at once as stay in the cores' caches between operations on them."""
    return blocks_of(len(score_RC), max(1, _STRIP // score_RC.shape[1]))


_STRIP = 2**20  # numbers; 4 MiB of float32
