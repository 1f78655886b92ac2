"""Prepared inputs of N rows: dense tensors and ragged lists, selected without a Python loop per row.

Shape legend: N rows, V values of all rows together.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ragged:
    """N lists of integers laid end to end: list i is `values[offsets[i]:offsets[i + 1]]`.

    Attributes:
        values: (V,) int64.
        offsets: (N + 1,) int64, non-decreasing, from 0 to V.
        weights: (V,) float32 beside the values; `None` where every value counts the same.
    """

    values: Tensor
    offsets: Tensor
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        if self.offsets.ndim != 1 or len(self.offsets) < 1:
            raise ValueError(f"offsets must hold N + 1 numbers; their shape is {tuple(self.offsets.shape)}")
        if self.weights is not None and self.weights.shape != self.values.shape:
            raise ValueError(f"{len(self.weights)} weights for {len(self.values)} values")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Tensor:
        """(N,) how many values each row has."""
        return self.offsets.diff()

    def rows(self) -> Tensor:
        """Return (V,) the row that each value belongs to."""
        positions = torch.arange(len(self), device=self.offsets.device)
        return torch.repeat_interleave(positions, self.lengths, output_size=len(self.values))

    def take(self, rows: Tensor) -> Self:
        """Return the lists at `rows` (int64, repeats allowed), in that order."""
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        offsets = _offsets(lengths)
        shift = torch.repeat_interleave(starts - offsets[:-1], lengths)
        places = torch.arange(len(shift), device=shift.device) + shift
        weights = None if self.weights is None else self.weights[places]
        return type(self)(self.values[places], offsets, weights)

    def to(self, device: torch.device | str) -> Self:
        """Return the same lists on another device."""
        weights = None if self.weights is None else self.weights.to(device)
        return type(self)(self.values.to(device), self.offsets.to(device), weights)

    @classmethod
    def from_lengths(cls, values: Tensor, lengths: Tensor, weights: Tensor | None = None) -> Self:
        """Build from the values laid end to end and (N,) how many belong to each row."""
        return cls(values, _offsets(lengths), weights)

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Return the lists of all parts, in order.

        Raises:
            ValueError: If there are no parts, or some have weights and others have none.
        """
        if not parts:
            raise ValueError("nothing to concatenate")
        weights = [part.weights for part in parts if part.weights is not None]
        if len(weights) not in (0, len(parts)):
            raise ValueError(f"{len(weights)} of {len(parts)} parts have weights; all or none must")
        return cls.from_lengths(
            torch.cat([part.values for part in parts]),
            torch.cat([part.lengths for part in parts]),
            torch.cat(weights) if weights else None,
        )


@dataclass(frozen=True)
class Features:
    """What an encoder reads of N queries or N documents.

    Attributes:
        dense: Tensors whose first dimension is N.
        ragged: Lists of integers, N of them under each name.
    """

    dense: dict[str, Tensor] = field(default_factory=dict)
    ragged: dict[str, Ragged] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lengths = {name: len(tensor) for name, tensor in self.dense.items()}
        lengths |= {name: len(ragged) for name, ragged in self.ragged.items()}
        if not lengths:
            raise ValueError("features need at least one tensor; none was given")
        if len(set(lengths.values())) > 1:
            raise ValueError(f"features disagree on the number of rows: {lengths}")

    def __len__(self) -> int:
        if self.dense:
            return len(next(iter(self.dense.values())))
        return len(next(iter(self.ragged.values())))

    def take(self, rows: Tensor) -> Self:
        """Return the rows at `rows` (int64 positions, repeats allowed), in that order."""
        return type(self)(
            {name: tensor[rows] for name, tensor in self.dense.items()},
            {name: ragged.take(rows) for name, ragged in self.ragged.items()},
        )

    def to(self, device: torch.device | str) -> Self:
        """Return the same features on another device."""
        return type(self)(
            {name: tensor.to(device) for name, tensor in self.dense.items()},
            {name: ragged.to(device) for name, ragged in self.ragged.items()},
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Return the rows of all parts, in order.

        Raises:
            ValueError: If there are no parts, or they do not hold the same names.
        """
        if not parts:
            raise ValueError("nothing to concatenate")
        for part in parts:
            if part.dense.keys() != parts[0].dense.keys() or part.ragged.keys() != parts[0].ragged.keys():
                raise ValueError("features to concatenate must hold the same names")
        return cls(
            {name: torch.cat([part.dense[name] for part in parts]) for name in parts[0].dense},
            {name: Ragged.concatenate([part.ragged[name] for part in parts]) for name in parts[0].ragged},
        )


def _offsets(lengths: Tensor) -> Tensor:
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
