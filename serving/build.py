"""Building an index from vectors, as configured.

Shapes: N documents, D embedding.
"""

import re
from typing import Any, Literal, Self

import faiss
from pydantic import ByteSize, Field, PositiveInt, field_validator, model_validator

from features.config import Config
from features.errors import ConfigError
from serving.devices import place, reason
from serving.index import Index, SearchParameter
from serving.vectors import Vectors, check_similarity

_CHANGES_MEANING = re.compile(r"(^|,)(L2norm|IDMap2?)(,|$)")


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
        description="faiss factory string, such as Flat or IVF256,SQ8; none: chosen by measurement where "
        "target_recall is set, else Flat",
    )
    search: dict[SearchParameter, PositiveInt] = Field(
        default_factory=dict,
        description="search parameters that are fixed instead of tuned, such as nprobe: 16; needs a factory",
    )
    device: Literal["auto", "cpu", "gpu"] = Field("auto", description="auto takes a GPU where faiss sees one")

    @field_validator("factory")
    @classmethod
    def _keeps_ids_and_metric(cls, factory: str | None) -> str | None:
        if factory is not None and _CHANGES_MEANING.search(factory):
            raise ValueError(
                f"{factory!r} would change ids or similarity; leave L2norm and IDMap out of the factory"
            )
        return factory

    @model_validator(mode="after")
    def _fixed_parameters_belong_to_a_factory(self) -> Self:
        if self.search and self.automatic:
            raise ValueError("search fixes parameters of one family; name its factory or remove search")
        return self

    @property
    def automatic(self) -> bool:
        """Whether family and settings are chosen by measurement."""
        return self.factory is None and self.target_recall is not None

    @property
    def named_factory(self) -> str:
        """The factory to build where nothing is chosen: the configured one, or Flat."""
        return "Flat" if self.factory is None else self.factory


def build(document_ND: Vectors, config: IndexConfig, similarity: str) -> Index:
    """Train the configured index on the documents, add them in row order, and set `config.search`.

    Raises:
        ConfigError: If faiss cannot read the factory string, or there are too few documents to train it.
        BundleError: If the vectors are not what `similarity` promises.
    """
    check_similarity(document_ND, similarity)
    count, dimension = document_ND.shape
    factory = config.named_factory
    try:
        index = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ConfigError(f"index.factory {factory!r} at dimension {dimension}: {reason(error)}") from None
    _quieten(index)
    placed, device, _ = place(index, config.device)
    try:
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


def _quieten(index: Any) -> None:
    """Keep faiss from printing a line per sub-quantiser; too few points for training still raise."""
    lists = faiss.try_extract_index_ivf(index)
    for owner in (index, lists, getattr(index, "pq", None), getattr(lists, "pq", None)):
        if owner is not None and hasattr(owner, "cp"):
            owner.cp.min_points_per_centroid = 1
