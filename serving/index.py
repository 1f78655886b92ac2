"""The FAISS index of a bundle, searched only with vectors that were checked.

Shapes: B queries, N documents, D embedding, k neighbours. Scores are inner products, so the index answers
with the similarity the towers were trained with (`cosine` towers give unit vectors, `dot` towers do not).
"""

import threading
from pathlib import Path
from typing import Any, Literal, NamedTuple

import faiss
import numpy as np
import numpy.typing as npt

from features.errors import BundleError
from serving.devices import place, reason
from serving.faiss_file import read_faiss
from serving.vectors import Vectors, check_vectors

SearchParameter = Literal["nprobe", "efSearch", "k_factor_rf", "ht"]

_GPU_MAX_K = 2048


class Neighbours(NamedTuple):
    """What one query found: `rows` (int64) and `scores` (float32), best first, ties by ascending row."""

    rows: npt.NDArray[np.int64]
    scores: Vectors


class Index:
    """A trained, filled faiss index that refuses unsafe queries.

    Args:
        faiss_index: A CPU index with the inner-product metric.
        device: `auto`, `cpu` or `gpu`; `auto` falls back to the CPU.

    Attributes:
        device: Where it is searched: `cpu` or `gpu`.
        note: The same in words, with the faiss version and the reason.
        tunable: The parameter that trades time for ANN recall; None where search is a full scan.
        largest_setting: The value of `tunable` beyond which search gains nothing.

    Raises:
        BundleError: If the index does not use the inner product.
        ConfigError: If a GPU was required and there is none, or it cannot hold this kind of index.
    """

    def __init__(self, faiss_index: Any, device: str = "auto") -> None:
        if faiss_index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise BundleError(
                f"the index has faiss metric {faiss_index.metric_type}; inner product is required"
            )
        self.tunable, self.largest_setting = _tunable(faiss_index)
        self._searched, self.device, self.note = place(faiss_index, device)
        # a GPU index shares one StandardGpuResources: one searching thread at a time
        self._lock = threading.Lock() if self.device == "gpu" else None

    @property
    def dimension(self) -> int:
        """D: length of a vector."""
        return int(self._searched.d)

    @property
    def size(self) -> int:
        """N: number of documents."""
        return int(self._searched.ntotal)

    def set_parameters(self, parameters: dict[SearchParameter, int]) -> None:
        """Fix search parameters for every later search; not to be called while searches run.

        Raises:
            ValueError: If this kind of index has no such parameter.
        """
        for name, value in parameters.items():
            space = faiss.ParameterSpace() if self.device == "cpu" else faiss.GpuParameterSpace()
            try:
                space.set_index_parameter(self._searched, name, value)
            except RuntimeError:
                raise ValueError(f"this index has no search parameter {name!r}") from None

    def search(self, query_BD: Vectors, k: int) -> list[Neighbours]:
        """Return the k nearest documents of each query; fewer where the index has or finds fewer.

        Raises:
            ValueError: If `check_vectors` refuses the queries, or k < 1.
        """
        checked_BD = check_vectors(query_BD, self.dimension)
        if k < 1:
            raise ValueError(f"k = {k}; it must be at least 1")
        k = min(k, self.size, _GPU_MAX_K if self.device == "gpu" else self.size)
        if len(checked_BD) == 0:
            return []
        if self._lock is None:
            score_Bk, row_Bk = self._searched.search(checked_BD, k)
        else:
            with self._lock:
                score_Bk, row_Bk = self._searched.search(checked_BD, k)
        return [_found(rows, scores) for rows, scores in zip(row_Bk, score_Bk, strict=True)]

    def write(self, path: Path) -> None:
        """Write the index as a CPU index, wherever it was built."""
        faiss.write_index(self._on_cpu(), str(path))

    def _on_cpu(self) -> Any:
        return self._searched if self.device == "cpu" else faiss.index_gpu_to_cpu(self._searched)


def read(path: Path, device: str = "auto") -> Index:
    """Read an index file whose digest has been verified.

    Raises:
        BundleError: If faiss cannot read it.
    """
    try:
        return Index(read_faiss(path), device)
    except RuntimeError as error:
        raise BundleError(f"{path} is not a readable faiss index: {reason(error)}") from None


def _found(rows: npt.NDArray[np.int64], scores: Vectors) -> Neighbours:
    kept = rows >= 0  # faiss pads with -1 where it found fewer than k
    rows, scores = rows[kept], scores[kept]
    order = np.lexsort((rows, -scores))
    return Neighbours(rows[order], scores[order])


def _tunable(index: Any) -> tuple[SearchParameter | None, int]:
    lists = faiss.try_extract_index_ivf(index)
    if lists is not None:
        return "nprobe", int(lists.nlist)
    core = faiss.downcast_index(index)
    while isinstance(core, faiss.IndexPreTransform | faiss.IndexRefine):
        core = faiss.downcast_index(
            core.index if isinstance(core, faiss.IndexPreTransform) else core.base_index
        )
    return ("efSearch", max(1, int(index.ntotal))) if isinstance(core, faiss.IndexHNSW) else (None, 1)
