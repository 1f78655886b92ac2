"""The FAISS index of a bundle, searched only with vectors that were checked.

Shapes: B queries, N documents, D embedding, k neighbours. Scores are inner products, so the index answers
with the similarity the towers were trained with (`cosine` towers give unit vectors, `dot` towers do not).
"""

import threading
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np

from features.errors import BundleError
from serving.devices import on_cpu, place, reason, search_on_gpu, set_on_gpu, stored_bytes
from serving.faiss_file import read_faiss
from serving.filters import Mask, Selection
from serving.search_engine import Neighbours as Neighbours
from serving.search_engine import SearchEngine as SearchEngine
from serving.search_engine import SearchParameter as SearchParameter
from serving.subsets import (
    Allowed,
    Found,
    Rows,
    adaptive,
    can_select,
    exhaustive,
    is_lossless,
    is_scan,
    overfetched,
    selective,
    stored_vectors,
    tunable,
)
from serving.ties import past_ties
from serving.vectors import Vectors, check_vectors

Way = Literal["whole", "overfetched", "exhaustive", "selective", "adaptive"]
"""How allowed rows are searched: `serving.subsets`."""

_GPU_MAX_K = 2048
_FEW_FORBIDDEN = 64
_EXHAUSTIVE_ROWS = 5_000


class Index:
    """A trained, filled faiss index that refuses unsafe queries.

    Args:
        faiss_index: A CPU index with the inner-product metric.
        device: `auto`, `cpu` or `gpu`; `auto` falls back to the CPU.
        alive: Which of its rows are documents; the others are tombstones, which no search returns. None: all.

    Attributes:
        alive: As above; None where every row is a document.
        device: Where it is searched: `cpu` or `gpu`.
        note: The same in words, with the faiss version and the reason.
        lost: Why a GPU that was there is not used, at once or since a search failed there; None: nothing was.
        tunable: The parameter that trades time for ANN recall; None where search is a full scan.
        largest_setting: The value of `tunable` beyond which search gains nothing.

    Raises:
        BundleError: If the index does not use the inner product, or `alive` is of another index.
        ConfigError: If a GPU was required and there is none, or it cannot hold this kind of index.
    """

    file = "index.faiss"

    def __init__(self, faiss_index: Any, device: str = "auto", alive: Mask | None = None) -> None:
        if faiss_index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise BundleError(
                f"the index has faiss metric {faiss_index.metric_type}; inner product is required"
            )
        if alive is not None and len(alive) != faiss_index.ntotal:
            raise BundleError(f"ids for {len(alive)} vectors; the index has {faiss_index.ntotal}")
        self.tunable, self.largest_setting = tunable(faiss_index)
        self._host = faiss_index  # searched for selections also where all else is searched on a GPU
        self._searched, self.device, self.note, self.lost = place(faiss_index, device)
        # a GPU index shares one StandardGpuResources: one searching thread at a time
        self._lock = threading.Lock()
        self._bury(np.ones(faiss_index.ntotal, dtype=bool) if alive is None else alive)

    @property
    def dimension(self) -> int:
        """D: length of a vector."""
        return int(self._host.d)

    @property
    def size(self) -> int:
        """N: number of documents."""
        return len(self._row_of_place)

    def set_parameters(self, parameters: dict[SearchParameter, int]) -> None:
        """Fix search parameters for every later search; not to be called while searches run.

        Raises:
            ValueError: If this kind of index has no such parameter.
        """
        for name, value in parameters.items():
            try:
                faiss.ParameterSpace().set_index_parameter(self._host, name, value)
                if self.device == "gpu":
                    set_on_gpu(self._searched, name, value)
            except RuntimeError:
                raise ValueError(f"this index has no search parameter {name!r}") from None

    def search(self, query_BD: Vectors, k: int, selection: Selection | None = None) -> list[Neighbours]:
        """Return the k nearest documents of each query; fewer where the index has or finds fewer.

        Rows are catalogue rows: those of the documents, in the order of the index. Among selected documents
        k are found where there are k, as well as without a selection (`serving.subsets`).

        Args:
            query_BD: Finite float32.
            k: At least 1.
            selection: Documents that may be returned; None: all.

        Raises:
            ValueError: If `check_vectors` refuses the queries, k < 1, or it selects from another catalogue.
        """
        checked_BD = check_vectors(query_BD, self.dimension)
        if k < 1:
            raise ValueError(f"k = {k}; it must be at least 1")
        if len(checked_BD) == 0:
            return []
        allowed = self._alive if selection is None else self._selected(selection)
        if allowed is None:
            return self._best(self.whole, checked_BD, k, self.size, self._scans)
        if allowed.count:
            way = self._way(min(k, allowed.count), allowed)
            scans = way == "exhaustive" or (way == "overfetched" and self._scans)
            return self._best(partial(self._among, allowed), checked_BD, k, allowed.count, scans)
        return [Neighbours(self._row_of_place[:0], checked_BD[0, :0]) for _ in checked_BD]

    def vectors(self, rows: Rows) -> Vectors:
        """Return (n, D) vectors of catalogue rows as the index holds them, rounded where it stores codes.

        Raises:
            BundleError: If this kind of index cannot give them back.
        """
        with self._lock:
            return stored_vectors(self._host, self._row_of_place[rows])

    @property
    def is_lossless(self) -> bool:
        """Whether `vectors` are the very vectors that were added."""
        return is_lossless(self._host)

    @property
    def tombstones(self) -> int:
        """How many rows are no documents."""
        return len(self._place_of_row) - self.size

    def replace(self, dead: Rows, document_ND: Vectors) -> None:
        """Make tombstones of catalogue rows and append documents; not to be called while searches run.

        Later catalogue rows count the remaining documents in their order, then the new ones.

        Raises:
            ValueError: If `check_vectors` refuses the vectors.
        """
        added_ND = check_vectors(document_ND, self.dimension)
        if self.device == "gpu":
            raise ValueError("an index on a GPU cannot be changed; open it with device cpu")
        alive = np.zeros(self._host.ntotal + len(added_ND), dtype=bool)
        alive[np.delete(self._row_of_place, dead)] = True
        alive[self._host.ntotal :] = True
        self._host.add(added_ND)
        self._bury(alive)

    def _bury(self, alive: Mask) -> None:
        self._alive = None if alive.all() else Allowed(alive)
        self._row_of_place: Rows = np.flatnonzero(alive)
        self._place_of_row: Rows = np.cumsum(alive) - 1
        self.alive = None if self._alive is None else alive

    def _selected(self, selection: Selection) -> Allowed | None:
        if len(selection.mask) != self.size:
            raise ValueError(f"a selection of {len(selection.mask)} documents; the index has {self.size}")
        if selection.count == self.size:
            return self._alive
        if self._alive is None:
            return Allowed(selection.mask)
        mask = np.zeros(self._host.ntotal, dtype=bool)
        mask[self._row_of_place[selection.mask]] = True
        return Allowed(mask)

    def whole(self, query_BD: Vectors, k: int) -> Found:
        """Return what faiss alone gives for checked queries: its own rows, tombstones among them."""
        if self.device == "cpu" or k > _GPU_MAX_K:
            return Found(*self._host.search(query_BD, k))
        with self._lock:
            try:
                return Found(*search_on_gpu(self._searched, self._host, query_BD, k))
            except RuntimeError as error:  # out of memory, as a rule
                why = f"a search on the GPU failed: {reason(error)}"
                self._searched, self.device, self.note, self.lost = on_cpu(self._host, why)
        return Found(*self._host.search(query_BD, k))

    def _among(self, allowed: Allowed, query_BD: Vectors, k: int) -> Found:
        way = self._way(k, allowed)
        if way == "overfetched":
            depth = k + len(allowed.mask) - allowed.count
            return overfetched(self.whole(query_BD, depth), k, allowed)
        if way == "exhaustive":
            return exhaustive(self._host, query_BD, k, allowed)
        if way == "selective":
            return selective(self._host, query_BD, k, allowed, 1.0 / allowed.share)
        return adaptive(self._host, query_BD, k, allowed)

    def way(self, selection: Selection, k: int = 10) -> Way:
        """Return how a selection is searched; see `serving.subsets`."""
        allowed = self._selected(selection)
        return "whole" if allowed is None else self._way(k, allowed)

    def _way(self, k: int, allowed: Allowed) -> Way:
        if allowed.count <= _EXHAUSTIVE_ROWS:
            return "exhaustive"
        most = _FEW_FORBIDDEN if self.device == "cpu" else _GPU_MAX_K - k
        if self.tunable is None and len(allowed.mask) - allowed.count <= most:
            return "overfetched"  # a full scan, whose k + forbidden nearest hold the k allowed
        if self.tunable is None or not self._selects:
            return "exhaustive"
        return "selective" if allowed is self._alive else "adaptive"

    @cached_property
    def _scans(self) -> bool:
        return is_scan(self._host)

    @cached_property
    def _selects(self) -> bool:
        return can_select(self._host)

    def _best(
        self, find: Callable[[Vectors, int], Found], query_BD: Vectors, k: int, size: int, scans: bool
    ) -> list[Neighbours]:
        """Return the k best of `size` documents that `find` finds; `scans`: it looks at all of them."""
        k = min(k, size)
        found = find(query_BD, min(k + 1, size) if scans else k)
        scores_BK, rows_BK = found
        if (rows_BK >= 0).all() and (scores_BK[:, 1:] < scores_BK[:, :-1]).all():  # k found each, no ties
            return list(map(Neighbours, self._place_of_row[rows_BK[:, :k]], scores_BK[:, :k]))
        deep = past_ties(find, query_BD, found, k, size) if scans else zip(scores_BK, rows_BK, strict=True)
        return [self._ordered(scores, rows, k) for scores, rows in deep]

    def _ordered(self, scores: Vectors, rows: Rows, k: int) -> Neighbours:
        kept = rows >= 0  # faiss pads with -1 where it found fewer than k
        places, scores = self._place_of_row[rows[kept]], scores[kept]
        order = np.lexsort((places, -scores))[:k]
        return Neighbours(places[order], scores[order])

    @property
    def stored_bytes(self) -> int:
        """Size of the file that `write` makes, which is also about what the index takes in memory."""
        return stored_bytes(self._host)

    def write(self, path: Path) -> None:
        """Write the index as a CPU index, wherever it was built."""
        faiss.write_index(self._host, str(path))


def read(path: Path, device: str = "auto", alive: Mask | None = None) -> Index:
    """Read an index file whose digest has been verified; `alive` as in `Index`.

    Raises:
        BundleError: If faiss cannot read it.
    """
    try:
        return Index(read_faiss(path), device, alive)
    except RuntimeError as error:
        raise BundleError(f"{path} is not a readable faiss index: {reason(error)}") from None
