"""Building an index from vectors, as configured.

Shapes: N documents, D embedding.
"""

import re
from typing import Any, Literal

import faiss
from pydantic import Field, PositiveInt, field_validator

from features.config import Config
from features.errors import ConfigError
from serving.devices import place, reason
from serving.index import Index, SearchParameter
from serving.vectors import Vectors, check_similarity

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
            f"index.factory {config.factory!r} at dimension {dimension}: {reason(error)}"
        ) from None
    _quieten(index)
    placed, device, _ = place(index, config.device)
    try:
        if not placed.is_trained:
            placed.train(document_ND)
        placed.add(document_ND)
    except RuntimeError as error:
        raise ConfigError(
            f"index.factory {config.factory!r} cannot be built from {count} documents: {reason(error)}; "
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
