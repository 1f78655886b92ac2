"""Reading an index file: with faiss's deserialization limits set, and a look at everything a search follows.

faiss takes sizes, links and numbers in a file at their word. `read_faiss` bounds what reading may allocate;
`check_faiss` then finds what would crash or mislead a search that happens to reach it: a link or a row
outside the index, lists kept in another file, a number that is not finite.

Shapes: N vectors, D embedding.
"""

import threading
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from features.errors import BundleError

LARGEST = 1e6
"""As `serving.vectors.MAX_NORM`: beyond it one vector wins every search."""

_DERIVED_BYTES = 2**31  # the largest table that faiss derives from product-quantiser codes by itself
_UNIT = (0.999, 1.001)  # norms, as `serving.vectors.check_similarity` lets them through
_ANY = (0.0, LARGEST)
_LARGEST_LATTICE = 1_024
_LARGEST_REFINE_FACTOR = 10_000
_PROBES = 16
_limits = threading.Lock()  # the limits are globals of faiss


def read_faiss(path: Path) -> Any:
    """Read an index whose file was verified, bounded by the file's own size.

    No vector of a file is longer than the file, and no list or link in it takes less than 8 bytes; tables
    that faiss derives while reading stay below its own limit of 2 GiB.

    Raises:
        RuntimeError: If faiss cannot read it within the limits.
    """
    size = path.stat().st_size
    with _limits:
        faiss.set_deserialization_vector_byte_limit(size + _DERIVED_BYTES)
        faiss.set_deserialization_loop_limit(max(64, size // 8))
        faiss.set_deserialization_lattice_r2_limit(_LARGEST_LATTICE)
        return faiss.read_index(str(path))


def check_faiss(index: Any, *, unit: bool) -> None:
    """Assert that every part of an index stays inside it, and search it once.

    Args:
        index: As `read_faiss` gives it.
        unit: Whether vectors have a length of 1, or of 0.

    Raises:
        BundleError: If a part does not.
    """
    _check_part(index, int(index.ntotal), _UNIT if unit else _ANY)
    query_BD = np.random.default_rng(0).standard_normal((_PROBES, index.d)).astype(np.float32)
    query_BD /= np.linalg.norm(query_BD, axis=1, keepdims=True)
    score_Bk, row_Bk = index.search(query_BD, max(1, min(10, int(index.ntotal))))
    if row_Bk.min(initial=-1) < -1 or row_Bk.max(initial=-1) >= index.ntotal:
        raise BundleError("its index answers with rows that it does not have")
    if not np.isfinite(score_Bk[row_Bk >= 0]).all():
        raise BundleError("its index answers with scores that are not finite")


def _check_part(part: Any, rows: int, norms: tuple[float, float]) -> None:
    """Check an index and what it is made of; `rows` is N, `norms` the least and largest of a whole vector."""
    part = faiss.downcast_index(part)
    if int(part.ntotal) != rows:
        raise BundleError(f"a part of its index has {part.ntotal} vectors, the index {rows}")
    if isinstance(part, faiss.IndexPreTransform):
        chain: Any = part.chain
        for place in range(chain.size()):
            step = faiss.downcast_VectorTransform(chain.at(place))
            if isinstance(step, faiss.LinearTransform):
                _require_usable(faiss.vector_to_array(step.A), faiss.vector_to_array(step.b))
        _check_part(part.index, rows, _ANY)  # whitening makes vectors longer
    elif isinstance(part, faiss.IndexRefine):
        if not 1 <= part.k_factor <= _LARGEST_REFINE_FACTOR:
            raise BundleError(f"its index refines {part.k_factor} times as many as are asked for")
        _check_part(part.base_index, rows, norms)
        _check_part(part.refine_index, rows, norms)
    elif isinstance(part, faiss.IndexHNSW):
        _check_graph(part.hnsw, rows)
        _check_part(part.storage, rows, norms)
    elif isinstance(part, faiss.IndexNSG):
        spread_out: Any = part
        graph = spread_out.nsg.get_final_graph()
        _require_links(faiss.rev_swig_ptr(graph.data, graph.N * graph.K), spread_out.nsg.enterpoint, rows)
        if int(graph.N) != rows:
            raise BundleError(f"the graph of its index has {graph.N} vectors, the index {rows}")
        _check_part(spread_out.storage, rows, norms)
    elif isinstance(part, faiss.IndexIVF):
        _check_part(part.quantizer, int(part.nlist), (0.0, norms[1]))  # means of vectors are shorter
        _check_numbers(part)
        _check_lists(part, rows, norms)
    elif isinstance(part, faiss.IndexFlatCodes):
        _check_numbers(part)
        codes = faiss.vector_to_array(part.codes)
        if len(codes) != rows * int(part.sa_code_size()):
            raise BundleError(f"its index has {len(codes)} bytes of codes for {rows} vectors")
        _check_codes(part, codes, norms)
    elif not isinstance(part, faiss.IndexFastScan):  # whose codes the probes read to the last
        raise BundleError(f"its index is of a kind whose parts cannot be checked: {type(part).__name__}")


def _check_graph(graph: Any, rows: int) -> None:
    """Assert that every link of an HNSW graph leads to a vector, and every vector has its links."""
    links = faiss.vector_to_array(graph.neighbors)
    offsets = faiss.vector_to_array(graph.offsets)
    levels = faiss.vector_to_array(graph.levels)
    widths = faiss.vector_to_array(graph.cum_nneighbor_per_level).astype(np.int64)
    _require_links(links, graph.entry_point, rows)
    whole = (
        len(levels) == rows
        and len(offsets) == rows + 1
        and (rows == 0 or (levels.min() >= 1 and levels.max() < len(widths)))
        and np.array_equal(np.diff(offsets.astype(np.int64)), widths[levels])
        and int(offsets[0]) == 0
        and int(offsets[-1]) == len(links)
    )
    if whole and rows:
        top = int(levels.max()) - 1
        whole = int(graph.max_level) == top and levels[graph.entry_point] - 1 == top
    if not whole:
        raise BundleError("the levels of its index's graph do not fit its links")


def _require_links(links: npt.NDArray[np.int32], entry: int, rows: int) -> None:
    """Assert that links, and where a search begins, are rows; -1 is no link."""
    if rows and not (links.min(initial=-1) >= -1 and links.max(initial=-1) < rows and 0 <= entry < rows):
        raise BundleError("the graph of its index has links that lead out of it")


def _check_lists(lists: Any, rows: int, norms: tuple[float, float]) -> None:
    """Assert that inverted lists lie in the index file and hold every row once."""
    inverted = faiss.downcast_InvertedLists(lists.invlists)
    if type(inverted).__name__ not in ("ArrayInvertedLists", "BlockInvertedLists"):
        raise BundleError(f"its index keeps its lists elsewhere ({type(inverted).__name__})")
    seen = np.zeros(rows, dtype=bool)
    for place in range(int(lists.nlist)):
        count = int(inverted.list_size(place))
        if not count:
            continue
        ids = faiss.rev_swig_ptr(inverted.get_ids(place), count)
        if ids.min() < 0 or ids.max() >= rows or seen[ids].any():
            raise BundleError("a list of its index holds a row that the index does not have, or has twice")
        seen[ids] = True
        if isinstance(inverted, faiss.ArrayInvertedLists):
            codes = faiss.rev_swig_ptr(inverted.get_codes(place), count * int(inverted.code_size))
            _check_codes(lists, codes, norms)
    if not seen.all():
        raise BundleError(f"the lists of its index lack {rows - int(seen.sum())} rows")


def _check_numbers(part: Any) -> None:
    """Check the numbers by which codes are read: centroids of product quantisers, ranges of scalar ones."""
    quantiser = getattr(part, "pq", None)
    if quantiser is not None and hasattr(quantiser, "centroids"):
        _require_usable(faiss.vector_to_array(quantiser.centroids))
    scalar = getattr(part, "sq", None)
    if scalar is not None:
        _require_usable(faiss.vector_to_array(scalar.trained))


def _check_codes(part: Any, codes: npt.NDArray[np.uint8], norms: tuple[float, float]) -> None:
    """Check codes that are numbers themselves."""
    scalar = getattr(part, "sq", None)
    if isinstance(part, faiss.IndexFlat | faiss.IndexIVFFlat):
        vector_ND = codes.view(np.float32).reshape(-1, part.d)
        with np.errstate(over="ignore", invalid="ignore"):
            norm = np.sqrt(np.einsum("ij,ij->i", vector_ND, vector_ND))
        shortest, longest = norms
        if not np.all((norm <= longest) & ((norm >= shortest) | (norm == 0))):  # NaN compares false
            raise BundleError("its index holds a vector that is not finite, too long or too short")
    elif scalar is not None and scalar.qtype == faiss.ScalarQuantizer.QT_fp16:
        _require_usable(codes.view(np.float16))
    elif scalar is not None and scalar.qtype == faiss.ScalarQuantizer.QT_bf16:
        _require_usable((codes.view(np.uint16).astype(np.uint32) << 16).view(np.float32))


def _require_usable(*numbers: npt.NDArray[np.floating[Any]]) -> None:
    for values in numbers:
        if len(values) and not max(-float(values.min()), float(values.max())) <= LARGEST:
            raise BundleError("its index holds a number that is not finite or beyond 1e6")
