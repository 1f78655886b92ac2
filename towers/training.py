"""What a training works on, and its validation."""

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from features.errors import ConfigError
from towers.batch import Features
from towers.checkpoint import Checkpoints, Healthy, Progress, Weights, weights_of
from towers.data import TrainingData
from towers.distributed import Ranks
from towers.probe import Probe
from towers.record import Recorder
from towers.schedule import EarlyStoppingConfig, TrainConfig
from towers.step import Inputs
from towers.two_tower import TwoTower
from towers.validation import Validation


@dataclass(frozen=True)
class Held:
    """The validation of a training: its metric and queries, with those queries prepared."""

    config: EarlyStoppingConfig
    validation: Validation
    queries: Features


@dataclass
class Training:
    """Everything a training works on.

    `progress`, `best`, `healthy`, `optimizer` and the weights change as it goes. `supplied` is the state of
    the sources of negatives from which an interrupted stage goes on.
    """

    config: TrainConfig
    seed: int
    record: Recorder
    device: torch.device
    data: TrainingData
    inputs: Inputs
    held: Held | None
    probe: Probe
    model: TwoTower
    optimizer: torch.optim.Optimizer
    checkpoints: Checkpoints
    progress: Progress = field(default_factory=Progress)
    best: Weights | None = None
    healthy: Healthy | None = None
    supplied: dict[str, Tensor] = field(default_factory=dict)
    saved_at: float = field(default_factory=time.monotonic)
    logged_at: float = field(default_factory=time.monotonic)


def measure_validation(training: Training, held: Held) -> dict[str, float]:
    """Rank the corpus for the held-out queries, and record every metric."""
    training.model.eval()
    measured = held.validation.measure(
        training.model, held.queries, training.inputs.documents, training.device
    )
    training.model.train()
    measured = Ranks.of_group().agreed(measured)
    if held.config.metric not in measured:
        raise ConfigError(
            f"early_stopping.metric is {held.config.metric}, which no validation query defines; take another"
        )
    training.progress.validations.append({"step": training.progress.total, **measured})
    for name, value in measured.items():
        training.record.metric(f"validation/{name}", value, training.progress.total)
    return measured


def validate(training: Training, held: Held, stage: str) -> None:
    """Measure; a value as good as the best keeps the later weights, but only a better one resets patience."""
    progress = training.progress
    value = measure_validation(training, held)[held.config.metric]
    before = None if progress.best is None else progress.best["value"]
    progress.stale = 0 if before is None or value > before else progress.stale + 1
    if before is None or value >= before:
        progress.best = {
            "metric": held.config.metric,
            "value": value,
            "stage": stage,
            "step": progress.total,
        }
        training.best = weights_of(training.model)
    training.logged_at = time.monotonic()
