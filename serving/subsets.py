"""Searching some rows of a faiss index only, for every family of index in use.

faiss takes the rows as an `IDSelector` inside search parameters, which then replace all parameters that are
set on the index: each must be passed again. Three ways:

- `exhaustive`: score every allowed row as it is stored in full, which finds all of them whatever the family;
- `adaptive`: search as usual but keep allowed rows only, with nprobe or efSearch raised query by query as far
  as allowed rows are rare near the query, and exhaustively where they are too rare there;
- `overfetched`: search as usual for more and drop the rest, where few rows are forbidden.

How rare is looked up, not guessed from the share of all rows: filters follow what the vectors say (a brand,
a price), and around a query far from its filter the share may be 0 (`benchmarks/filters.py`).

Shapes: B queries, N rows, D embedding, k neighbours.
"""

from functools import cached_property
from typing import Any, Literal, NamedTuple

import faiss
import numpy as np
import numpy.typing as npt

from features.errors import BundleError
from serving.vectors import Vectors

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_faiss: Any = faiss  # whose type stubs lack what its Python wrappers add
_CHUNK = 65_536
_LOOK = 64  # nearest rows of any kind among which the allowed are counted
_MOST_EFFORT = 32  # times the usual; beyond it scoring every allowed row is as fast
_EXPONENT = 0.75  # f times deeper needs so much of f in lists for the same recall; a graph needs all of f


class Found(NamedTuple):
    """faiss's answer: (B, k) scores and rows, best first, row -1 where there were fewer than k."""

    scores: Vectors
    rows: Rows


class Allowed:
    """The rows of an index that a search may return.

    Args:
        mask: (N,) over index rows.
    """

    def __init__(self, mask: Mask) -> None:
        self.mask = mask
        self.count = int(np.count_nonzero(mask))

    @cached_property
    def rows(self) -> Rows:
        """The same as ascending row numbers."""
        return np.flatnonzero(self.mask)

    @cached_property
    def bitmap(self) -> Any:
        """The same as faiss takes it."""
        return _faiss.IDSelectorBitmap(np.packbits(self.mask, bitorder="little"))

    @property
    def share(self) -> float:
        """Allowed rows out of all."""
        return self.count / max(1, len(self.mask))


def tunable(index: Any) -> tuple[Literal["nprobe", "efSearch"] | None, int]:
    """Return the parameter that trades time for ANN recall, and beyond which value search gains nothing.

    Where search is a full scan there is none.
    """
    lists = _faiss.try_extract_index_ivf(index)
    if lists is not None:
        return "nprobe", int(lists.nlist)
    core = _faiss.downcast_index(index)
    while isinstance(core, _faiss.IndexPreTransform | _faiss.IndexRefine):
        core = _faiss.downcast_index(
            core.index if isinstance(core, _faiss.IndexPreTransform) else core.base_index
        )
    return ("efSearch", max(1, int(index.ntotal))) if isinstance(core, _faiss.IndexHNSW) else (None, 1)


def can_select(index: Any) -> bool:
    """Return whether this family searches by selector; faiss says so only when asked to."""
    nothing = Allowed(np.zeros(index.ntotal, dtype=bool))
    try:
        index.search(np.zeros((1, index.d), dtype=np.float32), 1, params=_parameters(index, 1, nothing, 1.0))
    except RuntimeError:
        return False
    return True


def adaptive(index: Any, query_BD: Vectors, k: int, allowed: Allowed) -> Found:
    """Return the k nearest allowed rows, of k or more, as found at the effort that each query needs."""
    if allowed.share * _MOST_EFFORT < 1:
        return exhaustive(index, query_BD, k, allowed)
    near_BL = index.search(query_BD, max(_LOOK, k))[1]
    known = (near_BL >= 0) & allowed.mask[near_BL]
    effort_B = 2.0 ** np.ceil(np.log2((near_BL.shape[1] + 1) / (known.sum(axis=1) + 0.5)))
    found = Found(
        np.empty((len(query_BD), k), dtype=np.float32), np.empty((len(query_BD), k), dtype=np.int64)
    )
    for effort in np.unique(effort_B):
        part = np.flatnonzero(effort_B == effort)
        if effort > _MOST_EFFORT:
            found.scores[part], found.rows[part] = exhaustive(index, query_BD[part], k, allowed)
        else:
            found.scores[part], found.rows[part] = selective(index, query_BD[part], k, allowed, effort)
    short = np.flatnonzero((found.rows < 0).any(axis=1))  # it ended before it met k of them
    if len(short):
        found.scores[short], found.rows[short] = exhaustive(index, query_BD[short], k, allowed)
    return found


def selective(index: Any, query_BD: Vectors, k: int, allowed: Allowed, effort: float) -> Found:
    """Return the k nearest allowed rows at `effort` times the usual depth.

    Raises:
        RuntimeError: If this family has no selectors; see `can_select`.
    """
    return Found(*index.search(query_BD, k, params=_parameters(index, k, allowed, effort)))


def exhaustive(index: Any, query_BD: Vectors, k: int, allowed: Allowed) -> Found:
    """Return the k allowed rows of largest stored score."""
    core = _faiss.downcast_index(index)
    if isinstance(core, _faiss.IndexPreTransform):
        return exhaustive(core.index, _transformed(core, query_BD), k, allowed)
    if isinstance(core, _faiss.IndexRefine):
        return exhaustive(core.refine_index, query_BD, k, allowed)
    if isinstance(core, _faiss.IndexHNSW | _faiss.IndexNSG):
        return exhaustive(core.storage, query_BD, k, allowed)
    if isinstance(core, _faiss.IndexIVF):
        every = _faiss.SearchParametersIVF(sel=allowed.bitmap, nprobe=core.nlist)
        return Found(*core.search(query_BD, k, params=every))
    if isinstance(core, _faiss.IndexFlat):  # an array of rows lets faiss visit these rows alone
        selector = _faiss.IDSelectorArray(allowed.rows)
        return Found(*core.search(query_BD, k, params=_faiss.SearchParameters(sel=selector)))
    if isinstance(core, _faiss.IndexScalarQuantizer):
        return Found(*core.search(query_BD, k, params=_faiss.SearchParameters(sel=allowed.bitmap)))
    return _scored(core, query_BD, k, allowed.rows)


def overfetched(found: Found, k: int, allowed: Allowed) -> Found:
    """Return the first k allowed rows of a deeper search."""
    kept = (found.rows >= 0) & allowed.mask[found.rows]
    order = np.argsort(~kept, axis=1, kind="stable")[:, :k]
    rows = np.where(kept, found.rows, -1)
    return Found(np.take_along_axis(found.scores, order, 1), np.take_along_axis(rows, order, 1))


def stored_vectors(index: Any, rows: Rows) -> Vectors:
    """Return (n, D) vectors as the index holds them, rounded where it stores codes.

    Raises:
        BundleError: If this family cannot give vectors back.
    """
    core = _faiss.downcast_index(index)
    lists = _faiss.try_extract_index_ivf(core)
    lists = None if lists is None else _faiss.downcast_index(lists)
    if isinstance(core, _faiss.IndexRefine):
        return stored_vectors(core.refine_index, rows)
    if isinstance(lists, _faiss.IndexIVFFastScan):  # once read from a file, faiss 1.15.1 crashes
        raise BundleError("vectors cannot be read back from fast-scan lists without refinement; encode again")
    if lists is not None:
        lists.make_direct_map()
    try:
        return np.asarray(core.reconstruct_batch(rows), dtype=np.float32)
    except RuntimeError:
        raise BundleError(f"vectors cannot be read back from a {type(core).__name__}; encode again") from None
    finally:
        if lists is not None:  # else it would be written with the index
            lists.set_direct_map_type(_faiss.DirectMap.NoMap)


def is_scan(index: Any) -> bool:
    """Return whether a usual search scores every row."""
    core = _faiss.downcast_index(index)
    if isinstance(core, _faiss.IndexPreTransform):
        return is_scan(core.index)
    return isinstance(core, _faiss.IndexFlatCodes)


def is_lossless(index: Any) -> bool:
    """Return whether `stored_vectors` gives the very vectors that were added."""
    core = _faiss.downcast_index(index)
    if isinstance(core, _faiss.IndexRefine):
        return is_lossless(core.refine_index)
    if isinstance(core, _faiss.IndexHNSW | _faiss.IndexNSG):
        return is_lossless(core.storage)
    return isinstance(core, _faiss.IndexFlat | _faiss.IndexIVFFlat)


def _parameters(index: Any, k: int, allowed: Allowed, effort: float) -> Any:
    """Return what is set on the index as search parameters, with the selector and more effort."""
    core = _faiss.downcast_index(index)
    if isinstance(core, _faiss.IndexPreTransform):
        return _faiss.SearchParametersPreTransform(index_params=_parameters(core.index, k, allowed, effort))
    if isinstance(core, _faiss.IndexRefine):
        base = _parameters(core.base_index, int(k * core.k_factor), allowed, effort)
        return _faiss.IndexRefineSearchParameters(k_factor=core.k_factor, base_index_params=base)
    if isinstance(core, _faiss.IndexIVF):
        nprobe = min(core.nlist, int(np.ceil(core.nprobe * effort**_EXPONENT)))
        return _faiss.SearchParametersIVF(sel=allowed.bitmap, nprobe=nprobe, max_codes=core.max_codes)
    if isinstance(core, _faiss.IndexHNSW):
        usual = max(core.hnsw.efSearch, k)  # as faiss has it
        wanted = int(np.ceil(usual * effort))
        return _faiss.SearchParametersHNSW(sel=allowed.bitmap, efSearch=min(max(1, core.ntotal), wanted))
    return _faiss.SearchParameters(sel=allowed.bitmap)


def _transformed(index: Any, query_BD: Vectors) -> Vectors:
    for place in range(index.chain.size()):
        query_BD = _faiss.downcast_VectorTransform(index.chain.at(place)).apply(query_BD)
    return query_BD


def _scored(index: Any, query_BD: Vectors, k: int, rows: Rows) -> Found:
    """Score rows read back from an index that can do nothing better."""
    found = Found(
        np.empty((len(query_BD), 0), dtype=np.float32), np.empty((len(query_BD), 0), dtype=np.int64)
    )
    for start in range(0, len(rows), _CHUNK):
        part = rows[start : start + _CHUNK]
        score_Bk, place_Bk = _faiss.knn(
            query_BD, stored_vectors(index, part), min(k, len(part)), metric=_faiss.METRIC_INNER_PRODUCT
        )
        scores = np.concatenate([found.scores, score_Bk], axis=1)
        both = np.concatenate([found.rows, part[place_Bk]], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        found = Found(np.take_along_axis(scores, order, 1), np.take_along_axis(both, order, 1))
    return found
