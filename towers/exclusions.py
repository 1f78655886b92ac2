"""The one mask, as lists: which columns may not be negatives of each row.

Few pairs of a large batch are excluded, so what a B × N matrix would say fits in memory linear in B.

Shapes: B rows, N columns, N ≥ B; column i < B is the positive of row i; P excluded pairs.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Exclusions:
    """For each row the columns that may not be its negatives, in either direction.

    Row i's are `columns[offsets[i]:offsets[i + 1]]`, ascending and distinct; i itself, the positive, is never
    listed.

    Attributes:
        offsets: (B + 1,) int64, non-decreasing, from 0 to P.
        columns: (P,) int64.
        width: N.
    """

    offsets: Tensor
    columns: Tensor
    width: int

    def __post_init__(self) -> None:
        if self.offsets.dim() != 1 or len(self.offsets) < 1 or self.columns.dim() != 1:
            raise ValueError(
                "offsets must hold B + 1 numbers and columns one for each pair; "
                f"their shapes are {tuple(self.offsets.shape)} and {tuple(self.columns.shape)}"
            )
        if self.width < len(self):
            raise ValueError(f"width must be at least the number of rows; {self.width} < {len(self)}")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> Tensor:
        """(B,) how many columns each row excludes."""
        return self.offsets.diff()

    @classmethod
    def from_pairs(cls, row: Tensor, column: Tensor, rows: int, width: int) -> Self:
        """Build from pairs in any order, repeated or not; those on the diagonal are left out.

        Args:
            row: (P,) int64 in [0, rows).
            column: (P,) int64 in [0, width).
            rows: B.
            width: N.
        """
        kept = row != column
        code = torch.unique(row[kept] * width + column[kept])
        counts = torch.bincount(code // width, minlength=rows)
        return cls(torch.cat([counts.new_zeros(1), counts.cumsum(0)]), code % width, width)

    @classmethod
    def from_mask(cls, mask_BN: Tensor) -> Self:
        """Build from a bool matrix; its diagonal does not matter."""
        row, column = mask_BN.nonzero(as_tuple=True)
        return cls.from_pairs(row, column, *mask_BN.shape)

    @classmethod
    def none(cls, rows: int, width: int) -> Self:
        """Build the one that excludes nothing."""
        return cls(torch.zeros(rows + 1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), width)

    def block(self, first: int, end: int) -> tuple[Tensor, Tensor]:
        """Return the pairs of the rows first ≤ i < end, in row order.

        Returns:
            Rows counted from `first`, so that they index a tile of these rows, and columns.
        """
        offsets = self.offsets[first : end + 1]
        start, stop = int(offsets[0]), int(offsets[-1])
        places = torch.arange(end - first, device=offsets.device)
        row = torch.repeat_interleave(places, offsets.diff(), output_size=stop - start)
        return row, self.columns[start:stop]

    def pairs(self) -> tuple[Tensor, Tensor]:
        """Return the row and the column of every pair, in row order."""
        return self.block(0, len(self))

    def dense(self) -> Tensor:
        """Return the (B, N) bool matrix; only for batches where that fits."""
        mask_BN = torch.zeros(len(self), self.width, dtype=torch.bool, device=self.columns.device)
        mask_BN[self.pairs()] = True
        return mask_BN

    def to(self, device: torch.device | str) -> Self:
        """Return the same lists on another device."""
        return type(self)(self.offsets.to(device), self.columns.to(device), self.width)
