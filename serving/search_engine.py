"""What a bundle's vectors are searched with, whichever engine it is, and what it finds.

Shapes: B queries, N documents, D embedding.
"""

from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from serving.filters import Selection
from serving.subsets import Rows
from serving.vectors import Vectors

SearchParameter = Literal["nprobe", "efSearch", "k_factor_rf", "ht"]


class Neighbours(NamedTuple):
    """What one query found: `rows` (int64) and `scores` (float32), best first, ties by ascending row.

    Of documents that share the last score, the first ones in that order come where all were scored
    (`serving.ties`). An approximate index returns those that it met.
    """

    rows: npt.NDArray[np.int64]
    scores: Vectors


class SearchEngine(Protocol):
    """What a bundle's vectors are searched with: FAISS here, or a service elsewhere.

    Attributes:
        file: What `write` writes, in a bundle's folder `index/`.
        note: Where it searches, in words.
    """

    file: str
    note: str

    @property
    def dimension(self) -> int:
        """D: length of a vector."""

    @property
    def size(self) -> int:
        """N: number of documents that can be found."""

    @property
    def is_lossless(self) -> bool:
        """Whether `vectors` are the very vectors that were added."""

    @property
    def stored_bytes(self) -> int:
        """Size of the file that `write` makes."""

    def set_parameters(self, parameters: dict[SearchParameter, int]) -> None:
        """Fix search parameters for every later search."""

    def search(self, query_BD: Vectors, k: int, selection: Selection | None = None) -> list[Neighbours]:
        """Return the k nearest documents of each query among the selected ones, as catalogue rows."""

    def way(self, selection: Selection) -> str:
        """Return how a selection is searched."""

    def vectors(self, rows: Rows) -> Vectors:
        """Return (n, D) vectors of catalogue rows."""

    def write(self, path: Path) -> None:
        """Write what opens it again."""
