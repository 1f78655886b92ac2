"""Building an index from vectors, as configured.

Shapes: N documents, D embedding.
"""

import re
import time
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import faiss
from pydantic import ByteSize, Field, PositiveInt, field_validator, model_validator

from features.config import Config
from features.errors import ConfigError
from serving.devices import build_cagra, place, reason
from serving.index import Index, SearchParameter
from serving.milvus import MilvusConfig
from serving.vectors import Vectors, check_similarity

_POINTS_PER_LIST = 39  # what faiss asks for at least
_ITERATIONS = 6
_CAGRA = re.compile(r"CAGRA(?P<degree>\d{1,3})")
_CHANGES_MEANING = re.compile(r"(^|[,(])(L2norm|IDMap2?|PCA[RW]?\d+|ITQ\d*)([,)]|$)")


class IndexConfig(Config):
    """Which index to build, or what an automatic choice must reach; how to search it, and where.

    `target_recall` without a `factory` chooses family and settings by measurement (`serving.choose`).
    """

    target_recall: float | None = Field(
        None,
        gt=0,
        le=1,
        description="ANN recall@k that the cheapest setting must reach on held-out queries; none: no tuning",
    )
    k: int = Field(100, ge=1, le=10_000, description="depth at which ANN recall is measured")
    memory: ByteSize | None = Field(
        None, gt=0, description="largest index, such as 2GB or 512MiB; none is no limit"
    )
    factory: str | None = Field(
        None,
        min_length=1,
        description="faiss factory string, such as Flat or IVF256,SQ8, or CAGRA32 on a GPU; none: chosen by "
        "measurement where target_recall is set, else Flat",
    )
    search: dict[SearchParameter, PositiveInt] = Field(
        default_factory=dict,
        description="search parameters that are fixed instead of tuned, such as nprobe: 16; needs a factory",
    )
    device: Literal["auto", "cpu", "gpu"] = Field("auto", description="auto takes a GPU where faiss sees one")
    query_onnx: Literal["auto", "off", "float32", "int8"] = Field(
        "auto",
        description="whether queries of a text tower are encoded by an ONNX graph; auto does where the extra "
        "onnx is installed, with int8 weights where nDCG@10 of validation queries is measured equal",
    )
    milvus: MilvusConfig | None = Field(
        None, description="keep the vectors in Milvus, past one machine; none: in a faiss index in the bundle"
    )

    @field_validator("factory")
    @classmethod
    def _keeps_ids_and_metric(cls, factory: str | None) -> str | None:
        if factory is not None and _CHANGES_MEANING.search(factory):
            raise ValueError(
                f"{factory!r} would change ids or similarity (PCA and ITQ subtract the mean); leave L2norm, "
                "IDMap, PCA and ITQ out of the factory"
            )
        return factory

    @model_validator(mode="after")
    def _fixed_parameters_belong_to_a_factory(self) -> Self:
        if self.search and self.automatic:
            raise ValueError("search fixes parameters of one family; name its factory or remove search")
        return self

    @model_validator(mode="after")
    def _milvus_has_settings_of_its_own(self) -> Self:
        if self.milvus is not None and (self.factory is not None or self.memory is not None):
            raise ValueError("factory and memory are of faiss; set index_type, build and search of milvus")
        return self

    @property
    def automatic(self) -> bool:
        """Whether family and settings are chosen by measurement."""
        return self.factory is None and self.target_recall is not None

    @property
    def named_factory(self) -> str:
        """The factory to build where nothing is chosen: the configured one, or Flat."""
        return "Flat" if self.factory is None else self.factory


@dataclass
class SharedLists:
    """Centroids of inverted lists, trained once for all the families that an automatic choice compares.

    They are trained in 6 iterations on 39 points a list, where faiss's defaults are 25 and 256. Measured at
    1,000,000 × 128 with 4,096 lists, 25 iterations on 64 points take six times as long, for an index that is
    at most 8% faster at an ANN recall@10 of 0.955.

    Attributes:
        centroids: By number of lists.
        seconds: What training them took, which belongs to the cost of every index that uses them.
    """

    centroids: dict[int, Vectors] = field(default_factory=dict)
    seconds: float = 0.0

    def train(self, index: Any, document_ND: Vectors) -> None:
        """Give an index with lists its centroids, training them if no index before had as many."""
        lists = faiss.try_extract_index_ivf(index)
        if lists is None:
            return
        if lists.nlist not in self.centroids:
            start = time.perf_counter()
            bare = faiss.IndexIVFFlat(faiss.IndexFlatIP(index.d), index.d, lists.nlist, lists.metric_type)
            bare.cp = lists.cp
            bare.cp.max_points_per_centroid, bare.cp.niter = _POINTS_PER_LIST, _ITERATIONS
            bare.train(document_ND)
            self.centroids[lists.nlist] = bare.quantizer.reconstruct_n(0, lists.nlist)
            self.seconds += time.perf_counter() - start
        faiss.downcast_index(lists.quantizer).add(self.centroids[lists.nlist])


def build(
    document_ND: Vectors, config: IndexConfig, similarity: str, shared: SharedLists | None = None
) -> Index:
    """Train the configured index on the documents, add them in row order, and set `config.search`.

    Args:
        document_ND: The catalogue.
        config: Which index.
        similarity: What the vectors were trained for.
        shared: Centroids to use instead of training them again; filled where they are not there yet.

    Raises:
        ConfigError: If faiss cannot read the factory string, or there are too few documents to train it.
        BundleError: If the vectors are not what `similarity` promises.
    """
    check_similarity(document_ND, similarity)
    count, dimension = document_ND.shape
    factory = config.named_factory
    if cagra := _CAGRA.fullmatch(factory):
        return _built_cagra(document_ND, config, int(cagra["degree"]))
    try:
        index = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ConfigError(f"index.factory {factory!r} at dimension {dimension}: {reason(error)}") from None
    _quieten(index)
    placed, device = index, "cpu"
    try:
        if shared is not None:
            shared.train(index, document_ND)
        placed, device, *_ = place(index, config.device)
        if not placed.is_trained:
            placed.train(document_ND)
        placed.add(document_ND)
    except RuntimeError as error:
        raise ConfigError(
            f"index.factory {factory!r} cannot be built from {count} documents: {reason(error)}; "
            "use Flat or a factory with fewer centroids"
        ) from None
    built = Index(faiss.index_gpu_to_cpu(placed) if device == "gpu" else placed, config.device)
    try:
        built.set_parameters(config.search)
    except ValueError as error:
        raise ConfigError(f"index.search: {error}; remove it") from None
    return built


def _built_cagra(document_ND: Vectors, config: IndexConfig, degree: int) -> Index:
    try:
        return Index(build_cagra(document_ND, degree), config.device)
    except RuntimeError as error:
        raise ConfigError(
            f"index.factory {config.named_factory!r}: {reason(error)}; use IVF or Flat"
        ) from None


def _quieten(index: Any) -> None:
    """Keep faiss from printing a line per sub-quantiser; too few points for training still raise."""
    lists = faiss.try_extract_index_ivf(index)
    for owner in (index, lists, getattr(index, "pq", None), getattr(lists, "pq", None)):
        if owner is not None and hasattr(owner, "cp"):
            owner.cp.min_points_per_centroid = 1
