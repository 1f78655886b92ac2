"""The FAISS index of a bundle: built from a factory string, searched only with vectors that were checked.

Shapes: B queries, N documents, D embedding, k neighbours. Scores are inner products, so the index answers
with the similarity the towers were trained with (`cosine` towers give unit vectors, `dot` towers do not).
FAISS itself checks nothing: a NaN, a component of 1e30 or a k of 1e8 must be refused before it sees them.
"""

import re
import threading
from pathlib import Path
from typing import Any, Literal, NamedTuple

import faiss
import numpy as np
import numpy.typing as npt
from pydantic import Field, PositiveInt, field_validator

from features.config import Config
from features.errors import BundleError, ConfigError

Vectors = npt.NDArray[np.float32]
SearchParameter = Literal["nprobe", "efSearch", "k_factor_rf", "ht"]
SIMILARITIES = ("cosine", "dot")
MAX_NORM = 1e6
"""Longest vector accepted; trained towers stay below 1e3, and one component of 1e30 wins every search."""

_UNIT_TOLERANCE = 1e-3
_GPU_MAX_K = 2048
_CHANGES_MEANING = re.compile(r"(^|,)(L2norm|IDMap2?)(,|$)")


class IndexConfig(Config):
    """Which index to build, how to search it, and where."""

    factory: str = Field("Flat", min_length=1, description="faiss factory string, such as Flat or IVF256,SQ8")
    search: dict[SearchParameter, PositiveInt] = Field(
        default_factory=dict,
        description="search parameters that are fixed instead of tuned, such as nprobe: 16",
    )
    device: Literal["auto", "cpu", "gpu"] = Field("auto", description="auto takes a GPU where faiss sees one")
    target_ann_recall: float | None = Field(
        None,
        gt=0,
        le=1,
        description="smallest nprobe or efSearch with this ANN recall@k is chosen; None: no tuning",
    )
    k: int = Field(100, ge=1, le=10_000, description="depth at which ANN recall is measured")

    @field_validator("factory")
    @classmethod
    def _keeps_ids_and_metric(cls, factory: str) -> str:
        if _CHANGES_MEANING.search(factory):
            raise ValueError(
                f"{factory!r} would change ids or similarity; leave L2norm and IDMap out of the factory"
            )
        return factory


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
        self._searched, self.device, self.note = _place(faiss_index, device)
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


def build(document_ND: Vectors, config: IndexConfig, similarity: str) -> Index:
    """Train the index of `config.factory` on the documents, add them in row order, and set `config.search`.

    Raises:
        ConfigError: If faiss cannot read the factory string, or there are too few documents to train it.
        BundleError: If the vectors are not what `similarity` promises.
    """
    check_similarity(document_ND, similarity)
    count, dimension = document_ND.shape
    try:
        index = faiss.index_factory(dimension, config.factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ConfigError(
            f"index.factory {config.factory!r} at dimension {dimension}: {_reason(error)}"
        ) from None
    _quieten(index)
    placed, device, _ = _place(index, config.device)
    try:
        if not placed.is_trained:
            placed.train(document_ND)
        placed.add(document_ND)
    except RuntimeError as error:
        raise ConfigError(
            f"index.factory {config.factory!r} cannot be built from {count} documents: {_reason(error)}; "
            "use Flat or a factory with fewer centroids"
        ) from None
    built = Index(faiss.index_gpu_to_cpu(placed) if device == "gpu" else placed, config.device)
    try:
        built.set_parameters(config.search)
    except ValueError as error:
        raise ConfigError(f"index.search: {error}; remove it") from None
    return built


def read(path: Path, device: str = "auto") -> Index:
    """Read an index file whose digest has been verified.

    Raises:
        BundleError: If faiss cannot read it.
    """
    try:
        return Index(faiss.read_index(str(path)), device)
    except RuntimeError as error:
        raise BundleError(f"{path} is not a readable faiss index: {_reason(error)}") from None


def check_vectors(vectors: Vectors, dimension: int) -> Vectors:
    """Return the vectors C-contiguous, or refuse them.

    Raises:
        ValueError: Unless `vectors` is float32 (B, dimension), finite, with norms up to `MAX_NORM`.
    """
    if not isinstance(vectors, np.ndarray) or vectors.dtype != np.float32:
        raise ValueError(
            f"vectors have dtype {getattr(vectors, 'dtype', type(vectors))}; float32 is required"
        )
    if vectors.ndim != 2 or vectors.shape[1] != dimension:
        raise ValueError(f"vectors have shape {vectors.shape}; (B, {dimension}) is required")
    refused = unusable_rows(vectors)
    if refused.size:
        raise ValueError(f"vector {refused[0]} is not finite or longer than {MAX_NORM:g}")
    return np.ascontiguousarray(vectors)


def unusable_rows(vectors: Vectors) -> npt.NDArray[np.int64]:
    """Return the rows that are not finite or whose norm exceeds `MAX_NORM`."""
    with np.errstate(over="ignore", invalid="ignore"):
        norm = np.linalg.norm(vectors, axis=1)
    return np.flatnonzero(~(norm <= MAX_NORM))  # NaN compares false


def check_similarity(vectors: Vectors, similarity: str) -> None:
    """Assert that inner product is the similarity of these vectors.

    Raises:
        BundleError: If the similarity is unknown, or a `cosine` vector has neither unit length nor none.
    """
    if similarity not in SIMILARITIES:
        raise BundleError(
            f"similarity {similarity!r} cannot be indexed by inner product; one of {SIMILARITIES} can"
        )
    if similarity == "cosine" and len(vectors):
        norm = np.linalg.norm(vectors, axis=1)
        worst = float(
            np.where(norm == 0, 0.0, np.abs(norm - 1.0)).max()
        )  # a zero vector is nobody's neighbour
        if not worst <= _UNIT_TOLERANCE:
            raise BundleError(f"cosine vectors must have unit length; one is off by {worst:.3g}")


def require_device(device: str) -> None:
    """Assert that a device that was asked for is there.

    Raises:
        ConfigError: If it is `gpu` and faiss sees none.
    """
    if device == "gpu" and faiss.get_num_gpus() == 0:
        raise ConfigError("device is gpu, but faiss sees none; install faiss-gpu or use device: auto")


def describe_faiss() -> dict[str, str | int]:
    """Return the faiss version, its compile options and the number of GPUs it sees."""
    return {
        "version": str(faiss.__version__),
        "options": str(faiss.get_compile_options()).strip(),
        "gpus": int(faiss.get_num_gpus()),
    }


def _place(index: Any, device: str) -> tuple[Any, Literal["cpu", "gpu"], str]:
    """Move an index to a GPU where asked and possible; index_cpu_to_all_gpus is a trap without one."""
    gpus = int(faiss.get_num_gpus())
    if device == "cpu" or (device == "auto" and gpus == 0):
        return index, "cpu", f"faiss {faiss.__version__} on CPU ({gpus} GPUs seen)"
    require_device(device)
    try:
        moved = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    except RuntimeError as error:
        if device == "gpu":
            raise ConfigError(f"this index cannot be placed on the GPU: {_reason(error)}") from None
        return index, "cpu", f"faiss {faiss.__version__} on CPU, since the GPU refused: {_reason(error)}"
    return moved, "gpu", f"faiss {faiss.__version__} on GPU 0 of {gpus}"


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


def _quieten(index: Any) -> None:
    """Keep faiss from printing a line per sub-quantiser; too few points for training still raise."""
    lists = faiss.try_extract_index_ivf(index)
    for owner in (index, lists, getattr(index, "pq", None), getattr(lists, "pq", None)):
        if owner is not None and hasattr(owner, "cp"):
            owner.cp.min_points_per_centroid = 1


def _reason(error: RuntimeError) -> str:
    """The last sentence of a faiss error, without the C++ signature before it."""
    text = " ".join(str(error).split())
    return re.sub(r"^Error in .*?(?:failed: |\.cpp:\d+: (?:Error: )?)", "", text) or text
