"""Stages of a training: an objective, a batch size, negatives, a learning rate, and when to leave."""

import math
from collections.abc import Iterable
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from features.config import Config
from features.errors import ConfigError
from towers.guard import GuardConfig
from towers.leaving import EnterConfig, LeaveConfig, ProbeConfig
from towers.losses import CrossEntropyConfig, LossConfig, asks_lists, is_hinge
from towers.metrics import LIST_AUC, parse_metric
from towers.negatives import Scope
from towers.sources import NegativesConfig
from towers.tiled import require_tiled_form

WAITING_RATE = 0.1
"""Share of its peak rate at which a stage goes on while the next one waits for a measured separation."""


TILED_FROM = 4096
"""Batch size from which on a score matrix is not made as a whole, unless a stage says otherwise."""


class StageConfig(Config):
    """One stage. It ends after its epochs or steps; earlier by its `leave` or when validation stalls."""

    name: str = Field(min_length=1, description="What curves and errors call the stage.")
    loss: LossConfig = Field(default_factory=CrossEntropyConfig, description="The objective, by its `kind`.")
    batch_size: int = Field(256, ge=2, description="Queries in a batch; the others' positives are negatives.")
    unclicked_per_query: int = Field(
        0, ge=0, description="At most so many shown and skipped documents of each example become negatives."
    )
    unclicked_scope: Scope = Field(
        "own", description="Whether an unclicked document is a negative for its own query or the whole batch."
    )
    negatives: NegativesConfig = Field(
        default_factory=NegativesConfig, description="Further sources of negatives: uniform, mined, queue."
    )
    encode_rows: int | None = Field(
        None,
        ge=1,
        description="Distinct rows encoded at once, with their gradients cached; null encodes all at once, "
        "or a rank its share, so that dropout is then drawn otherwise with another number of ranks.",
    )
    tiled: bool | Literal["auto"] = Field(
        "auto",
        description=f"Whether the loss is computed in tiles; auto: from batch_size {TILED_FROM} on.",
    )
    learning_rate: float = Field(1e-3, gt=0, description="Peak learning rate of AdamW, before `scale_rule`.")
    scale_rule: Literal["none", "sqrt", "linear"] = Field(
        "none",
        description="How the learning rate follows the batch: times batch_size / the first stage's, or "
        "the root of that.",
    )
    enter: EnterConfig | Literal["auto"] | None = Field(
        "auto",
        description="What must be measured before this stage starts; null: nothing; auto: a hinge after "
        "another objective waits for the default `gap`, others for nothing.",
    )
    leave: LeaveConfig | None = Field(
        None, description="What ends the stage before its length, by `kind`: plateau or separation."
    )
    epochs: float | None = Field(
        None, gt=0, description="Length in passes over the examples; or set `steps`."
    )
    steps: int | None = Field(None, gt=0, description="Length in optimiser steps; or set `epochs`.")
    warmup_steps: int = Field(0, ge=0, description="Steps over which the learning rate rises from 0.")
    decay: Literal["none", "linear", "cosine"] = Field(
        "cosine", description="How the learning rate falls from its peak to 0 at the stage's end."
    )

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(f"stage {self.name!r} needs exactly one of epochs and steps")
        return self

    @model_validator(mode="after")
    def _has_tiled_form(self) -> Self:
        if self.uses_tiles:
            try:
                require_tiled_form(self.loss)
            except ConfigError as error:
                raise ValueError(f"stage {self.name!r}: {error} (tiled: false)") from None
        return self

    @model_validator(mode="after")
    def _lists_hold_what_was_shown(self) -> Self:
        if not asks_lists(self.loss):
            return self
        if self.unclicked_per_query == 0 or self.unclicked_scope != "own":
            raise ValueError(
                f"stage {self.name!r}: list_weight compares a positive with the unclicked documents of its "
                "own query; set unclicked_per_query to at least 1 and unclicked_scope to own"
            )
        if self.negatives.mined is not None:
            raise ValueError(
                f"stage {self.name!r}: list_weight asks what was shown, and mined documents were not; "
                "drop one of list_weight and negatives.mined"
            )
        return self

    @property
    def uses_tiles(self) -> bool:
        """Whether the loss is computed in tiles."""
        return self.batch_size >= TILED_FROM if self.tiled == "auto" else self.tiled

    def length(self, steps_per_epoch: int) -> int:
        """Return the number of optimiser steps, at least 1."""
        if self.steps is not None:
            return self.steps
        return max(1, round((self.epochs or 0) * steps_per_epoch))

    def learning_rate_at(self, step: int, length: int, first_batch: int | None = None) -> float:
        """Return the learning rate of a step counted from 0 in a stage of `length` steps.

        It rises linearly over the warm-up (the first step already moves), then falls as `decay` says; it
        would reach 0 at step `length`, one after the last. From there on it is `WAITING_RATE` of the peak.

        Args:
            step: Counted from 0.
            length: Of the stage, in steps.
            first_batch: The first stage's batch size, for `scale_rule`; `None` scales nothing.
        """
        peak = self.learning_rate * self._scale(first_batch or self.batch_size)
        if step >= length:
            return peak * WAITING_RATE
        if step < self.warmup_steps:
            return peak * (step + 1) / (self.warmup_steps + 1)
        done = (step - self.warmup_steps) / max(1, length - self.warmup_steps)
        match self.decay:
            case "none":
                return peak
            case "linear":
                return peak * (1 - done)
            case "cosine":
                return peak * (1 + math.cos(math.pi * done)) / 2

    def _scale(self, first_batch: int) -> float:
        ratio = self.batch_size / first_batch
        return {"none": 1.0, "sqrt": math.sqrt(ratio), "linear": ratio}[self.scale_rule]


class EarlyStoppingConfig(Config):
    """When validation decides that a stage is over; the best weights are the result."""

    metric: str = Field(
        "nDCG@10", description="What to maximise: an ir_measures name such as R@100, or ListAUC."
    )
    every: int = Field(
        100, ge=1, description="Optimiser steps between validations; each stage also ends with one."
    )
    patience: int = Field(5, ge=1, description="Validations without a new best after which a stage is left.")
    max_queries: int = Field(2000, ge=1, description="At most so many validation queries, evenly spaced.")

    @model_validator(mode="after")
    def _known_metric(self) -> Self:
        if self.metric != LIST_AUC:
            parse_metric(self.metric)
        return self


class OptimizerConfig(Config):
    """AdamW, and what its weight decay touches: weight matrices, never biases and norms."""

    weight_decay: float = Field(0.01, ge=0, description="Decay of weight matrices.")
    embedding_weight_decay: float = Field(0.0, ge=0, description="Decay of embedding tables.")
    beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the mean of gradients.")
    beta2: float = Field(0.999, ge=0, lt=1, description="Decay of the mean of squared gradients.")


def _default_stages() -> tuple[StageConfig, ...]:
    return (
        StageConfig(name="warm-up", batch_size=128, epochs=1, warmup_steps=20),
        StageConfig(name="wide", batch_size=512, epochs=4, warmup_steps=20),
    )


class TrainConfig(Config):
    """A training: its stages in order and what holds for all of them."""

    stages: tuple[StageConfig, ...] = Field(
        default_factory=_default_stages, min_length=1, description="In order; batch sizes may not shrink."
    )
    allow_cold_hinge: bool = Field(
        False, description="Permit a hinge as the first stage, which tends to collapse."
    )
    early_stopping: EarlyStoppingConfig | None = Field(
        default_factory=EarlyStoppingConfig, description="Validation during training; null trains to the end."
    )
    guard: GuardConfig | None = Field(
        default_factory=GuardConfig, description="The alarm on a collapse and the way back; null is off."
    )
    probe: ProbeConfig = Field(
        default_factory=ProbeConfig, description="The fixed batch by which stages are left and entered."
    )
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig, description="AdamW.")
    gradient_clip: float | None = Field(1.0, gt=0, description="Largest gradient norm; null clips nothing.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where to train; auto takes a GPU if any."
    )
    ranks: int = Field(
        1,
        ge=1,
        description="Processes on this machine that share the work of each batch, started by torchrun: one "
        "for each GPU (NCCL), or several on a CPU's cores (gloo). The batch is as large as with one.",
    )
    num_threads: int | None = Field(
        None,
        ge=1,
        description="CPU threads of a rank; null: torch's number, shared out over the ranks. Equal weights "
        "need an equal number.",
    )
    log_every: int = Field(20, ge=1, description="Optimiser steps between points of the training curve.")
    checkpoint_seconds: float = Field(
        60.0, ge=0, description="Least time between checkpoints; 0: every step."
    )

    @model_validator(mode="after")
    def _sensible_order(self) -> Self:
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stage names must differ; they are {names}")
        sizes = [stage.batch_size for stage in self.stages]
        if sizes != sorted(sizes):
            raise ValueError(f"batch sizes may not shrink from stage to stage; they are {sizes}")
        if is_hinge(self.stages[0].loss) and not self.allow_cold_hinge:
            raise ValueError(
                "the first stage is a hinge, which collapses on fresh towers; put a cross_entropy stage "
                "before it, or set allow_cold_hinge: true"
            )
        return self

    def entered_by(self, number: int) -> EnterConfig | None:
        """Return what stage `number` waits for; the first stage, and one past the last, wait for nothing."""
        if not 0 < number < len(self.stages):
            return None
        stage = self.stages[number]
        if stage.enter != "auto":
            return stage.enter
        hinge_before = is_hinge(self.stages[number - 1].loss, 1.0)
        return EnterConfig() if is_hinge(stage.loss) and not hinge_before else None


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Return AdamW over every parameter once, in groups by what decays."""
    groups: dict[str, list[nn.Parameter]] = {"matrices": [], "embeddings": [], "others": []}
    for kind, parameter in _kinds(model.modules()):
        groups[kind].append(parameter)
    decay = {"matrices": config.weight_decay, "embeddings": config.embedding_weight_decay, "others": 0.0}
    return torch.optim.AdamW(
        [{"params": groups[kind], "weight_decay": decay[kind]} for kind in groups if groups[kind]],
        betas=(config.beta1, config.beta2),
        fused=True,
    )


def _kinds(modules: Iterable[nn.Module]) -> Iterable[tuple[str, nn.Parameter]]:
    """Yield each trainable parameter once; an embedding table is one of torch's, or is named `embedding`."""
    seen: set[int] = set()
    for module in modules:
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen or not parameter.requires_grad:
                continue
            seen.add(id(parameter))
            if isinstance(module, nn.Embedding | nn.EmbeddingBag) or name == "embedding":
                yield "embeddings", parameter
            else:
                yield ("matrices" if parameter.ndim > 1 else "others"), parameter
