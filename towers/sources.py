"""Where a stage's negatives come from beside the batch and its unclicked documents: how many, how fresh."""

from typing import Self

from pydantic import Field, model_validator

from features.config import Config


class UniformSource(Config):
    """Documents drawn uniformly over the corpus, with replacement, as columns that the whole batch sees."""

    per_batch: int = Field(ge=1, description="Documents drawn for each batch.")


class MinedSource(Config):
    """Hard negatives: what the current model ranks high for a query, without what was clicked for it.

    They are negatives of that query only. Before every window of `refresh_every` steps the window's queries
    are searched in an index of the corpus as the weights of that moment encode it; equal weights are not
    indexed twice. A query whose candidates are all refused has no mined negative.
    """

    per_query: int = Field(1, ge=1, description="Documents drawn at each step from a query's pool.")
    pool: int = Field(10, ge=1, description="Best candidates kept for a query; at least per_query.")
    refresh_every: int = Field(200, ge=1, description="Optimiser steps between minings, within a stage.")
    depth: int = Field(100, ge=1, le=10_000, description="Ranks searched; at most the corpus.")
    skip_top: int = Field(
        0, ge=0, description="Best candidates passed over, which tend to be positives nobody clicked."
    )
    score_share: float | None = Field(
        0.95,
        gt=0,
        le=1,
        description="A candidate scoring more than this share of the positive's score is refused as a likely "
        "positive; needs cosine. A positive that scores below 0 caps at its score. null refuses none.",
    )
    factory: str = Field(
        "Flat", min_length=1, description="faiss factory string; Flat is exact, IVF1024,Flat for millions."
    )
    nprobe: int = Field(16, ge=1, description="Lists searched of an IVF index; Flat ignores it.")

    @model_validator(mode="after")
    def _enough(self) -> "MinedSource":
        if self.pool < self.per_query:
            raise ValueError(f"pool is {self.pool}, fewer than per_query, {self.per_query}; raise it")
        if self.depth < self.skip_top + self.per_query:
            raise ValueError(
                f"depth is {self.depth}, too few for skip_top {self.skip_top} and per_query "
                f"{self.per_query}; raise it"
            )
        return self


class QueueSource(Config):
    """The positives of earlier batches, first in first out, as columns that the whole batch sees (MoCo).

    Their vectors come from a momentum tower: a copy of the document tower that follows it slowly, so that
    vectors of many steps ago are comparable with those of now. It starts empty in each stage.
    """

    size: int = Field(4096, ge=1, description="Documents held.")
    momentum: float = Field(
        0.99, ge=0, lt=1, description="Share of itself that the momentum tower keeps at each step."
    )


class NegativesConfig(Config):
    """Further sources of negatives; any of them together."""

    uniform: UniformSource | None = Field(None, description="Drawn uniformly over the corpus; null: none.")
    mined: MinedSource | None = Field(None, description="Mined from the current model; null: none.")
    queue: QueueSource | None = Field(None, description="A queue of earlier batches' documents; null: none.")

    @property
    def uniform_per_batch(self) -> int:
        """Documents drawn uniformly for each batch."""
        return 0 if self.uniform is None else self.uniform.per_batch

    def with_more_uniform(self, count: int) -> Self:
        """Return the same sources with so many more uniform documents for each batch."""
        if count == 0:
            return self
        return self.model_copy(update={"uniform": UniformSource(per_batch=self.uniform_per_batch + count)})
