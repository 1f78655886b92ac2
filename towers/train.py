"""The training loop, as functions that take objects.

1. `_prepare`    read the examples, build the towers from them, prepare every query and document once;
2. `_resume`     go on from the last whole state of the same configuration, if there is one;
3. `_run_stage`  for each stage, start from the best weights so far with a fresh optimiser, and
     a. `take_step`  encode each distinct query and document of a batch once, score B × N under the one mask,
                     compute the objective, update (`towers.step`);
     b. `_log`       every few steps: loss, gap, spread, gradient norm, learning rate → curve and recorder;
     c. `_validate`  every so often: rank the corpus, keep the best weights, leave the stage when it stalls;
     d. `_save`      every so often: publish the state;
4. `_finish`     publish the best weights as a `checkpoint` artifact and remove the states.

With one seed, one configuration and one number of threads the weights are the same, bit for bit, on a CPU,
whether or not the training was interrupted.
"""

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from features.artifact import Artifact, digest_of, publish, write_json
from features.errors import ConfigError, TrainingError
from towers.batch import Features
from towers.checkpoint import Checkpoints, Progress, Weights, load_weights, restore_optimizer, weights_of
from towers.collate import Batches, distinct_rows
from towers.data import TrainingData, read_training_data
from towers.determinism import reproducible
from towers.losses import build_loss
from towers.record import ListRecorder, NoRecorder, Recorder
from towers.schedule import EarlyStoppingConfig, StageConfig, TrainConfig, build_optimizer
from towers.step import Inputs, Step, measure, take_step
from towers.two_tower import TowersConfig, TwoTower, build_two_tower
from towers.validation import Validation

__all__ = ["ListRecorder", "NoRecorder", "Recorder", "StageConfig", "TrainConfig", "train"]


@dataclass(frozen=True)
class Held:
    """The validation of a training: its metric and queries, with those queries prepared."""

    config: EarlyStoppingConfig
    validation: Validation
    queries: Features


@dataclass
class Training:
    """Everything a training works on; `progress`, `best`, `optimizer` and the weights change as it goes."""

    config: TrainConfig
    seed: int
    record: Recorder
    device: torch.device
    data: TrainingData
    inputs: Inputs
    held: Held | None
    model: TwoTower
    optimizer: torch.optim.Optimizer
    checkpoints: Checkpoints
    progress: Progress = field(default_factory=Progress)
    best: Weights | None = None
    saved_at: float = field(default_factory=time.monotonic)
    logged_at: float = field(default_factory=time.monotonic)


def train(
    examples: Path,
    target: Path,
    towers: TowersConfig,
    config: TrainConfig,
    *,
    seed: int,
    record: Recorder,
) -> Artifact:
    """Train two towers on an examples artifact and publish them as a checkpoint artifact.

    Args:
        examples: The `examples` artifact.
        target: The directory to publish; states lie beside it in `<target>.progress` until then.
        towers: What the towers are.
        config: How they learn.
        seed: ≥ 0; decides initial weights, order, negatives and dropout.
        record: Told of every measurement and event.

    Returns:
        The published artifact, of kind `checkpoint`.

    Raises:
        ConfigError: If the configuration does not fit the data or this machine.
        SchemaError: If the examples do not hold what they should.
        TrainingError: If the loss or gradient stops being finite.
    """
    started = time.monotonic()
    if seed < 0:
        raise ConfigError(f"seed must be at least 0; it is {seed}")
    source = Artifact.read(examples, "examples")
    settings = {
        "towers": towers.model_dump(mode="json"),
        "train": config.model_dump(mode="json"),
        "seed": seed,
        "examples": source.digest,
    }
    with reproducible(config, seed) as device:
        settings |= {
            "device": device.type,
            "threads": torch.get_num_threads(),
            "torch": str(torch.__version__),
        }
        checkpoints = Checkpoints(target, digest_of(settings), record)
        training = _prepare(examples, towers, config, seed, device, checkpoints)
        resumed = _resume(training)
        if training.held and not resumed:
            _measure_validation(training, training.held)
        while training.progress.stage < len(config.stages):
            _run_stage(training)
        return _finish(training, target, settings, started)


def _prepare(
    examples: Path,
    towers: TowersConfig,
    config: TrainConfig,
    seed: int,
    device: torch.device,
    checkpoints: Checkpoints,
) -> Training:
    data = read_training_data(examples)
    for number in range(len(config.stages)):
        _batches(data, config, number, seed)  # a batch larger than the data is refused before any work
    model = build_two_tower(towers, data.documents, data.queries)
    held = None
    if config.early_stopping:
        limit, metric = config.early_stopping.max_queries, config.early_stopping.metric
        validation = Validation(examples, data.documents, limit, metric)
        held = Held(config.early_stopping, validation, model.prepare_queries(validation.frame))
    queries = model.prepare_queries(data.queries)
    first, group = distinct_rows(queries)
    data = replace(data, query=group[data.query])
    inputs = Inputs(queries.take(torch.from_numpy(first)), model.prepare_documents(data.documents))
    model.to(device).train()
    optimizer = build_optimizer(model, config.optimizer)
    record = checkpoints.record
    record.event("prepared", {"examples": len(data), "queries": len(first), "documents": len(data.documents)})
    return Training(config, seed, record, device, data, inputs, held, model, optimizer, checkpoints)


def _resume(training: Training) -> bool:
    """Load the last whole state, if any; returns whether there was one."""
    state = training.checkpoints.resume(training.model)
    if state is None:
        return False
    training.progress, training.best, optimizer = state
    restore_optimizer(training.model, training.optimizer, optimizer)
    return True


def _batches(data: TrainingData, config: TrainConfig, number: int, seed: int) -> Batches:
    stage = config.stages[number]
    try:
        return Batches(
            data, stage.batch_size, stage.unclicked_per_query, stage.unclicked_scope, (seed, number)
        )
    except ConfigError as error:
        raise ConfigError(f"train.stages, stage {stage.name!r}: {error}") from None


def _run_stage(training: Training) -> None:
    """Run the current stage from where it stands to its end, and move on to the next."""
    config, progress = training.config, training.progress
    stage = config.stages[progress.stage]
    batches = _batches(training.data, config, progress.stage, training.seed)
    length = stage.length(batches.per_epoch)
    if progress.step == 0:
        _begin_stage(training, stage, length)
    loss = build_loss(stage.loss)
    reason = "finished"
    while progress.step < length:
        rate = stage.learning_rate_at(progress.step, length)
        for group in training.optimizer.param_groups:
            group["lr"] = rate
        batch = batches.batch(progress.step)
        try:
            step = take_step(
                training.model, training.inputs, batch, loss, training.optimizer, config.gradient_clip
            )
        except TrainingError as error:
            where = f"stage {stage.name!r}, step {progress.step + 1} of {length}"
            raise TrainingError(f"{where}: {error}; lower its learning_rate or set gradient_clip") from None
        progress.step += 1
        progress.total += 1
        if progress.step % config.log_every == 0 or progress.step == length:
            _log(training, stage, step, rate)
        if training.held and (progress.step % training.held.config.every == 0 or progress.step == length):
            _validate(training, training.held)
            if progress.stale >= training.held.config.patience:
                reason = "stalled"
                break
        _save_if_due(training)
    details = {"name": stage.name, "steps": progress.step, "reason": reason}
    progress.stages.append(details)
    training.record.event("stage_finished", details)
    progress.stage, progress.step, progress.stale = progress.stage + 1, 0, 0


def _begin_stage(training: Training, stage: StageConfig, length: int) -> None:
    if training.best is not None:
        load_weights(training.model, training.best)
    training.optimizer = build_optimizer(training.model, training.config.optimizer)
    training.logged_at = time.monotonic()
    training.record.event(
        "stage_started",
        {"name": stage.name, "loss": stage.loss.kind, "batch_size": stage.batch_size, "steps": length},
    )


def _log(training: Training, stage: StageConfig, step: Step, rate: float) -> None:
    progress, config = training.progress, training.config
    measured = {**measure(step), "learning_rate": rate, "temperature": float(training.model.temperature)}
    progress.curve.append({"stage": stage.name, "step": progress.total, **measured})
    now = time.monotonic()
    steps = progress.step % config.log_every or config.log_every
    speed = steps * stage.batch_size / max(now - training.logged_at, 1e-9)
    training.logged_at = now
    for name, value in {**measured, "batch_size": stage.batch_size, "examples_per_second": speed}.items():
        training.record.metric(f"train/{name}", value, progress.total)


def _measure_validation(training: Training, held: Held) -> dict[str, float]:
    training.model.eval()
    measured = held.validation.measure(
        training.model, held.queries, training.inputs.documents, training.device
    )
    training.model.train()
    if held.config.metric not in measured:
        raise ConfigError(
            f"early_stopping.metric is {held.config.metric}, which no validation query defines; take another"
        )
    training.progress.validations.append({"step": training.progress.total, **measured})
    for name, value in measured.items():
        training.record.metric(f"validation/{name}", value, training.progress.total)
    return measured


def _validate(training: Training, held: Held) -> None:
    """Measure; a value as good as the best keeps the later weights, but only a better one resets patience."""
    progress = training.progress
    value = _measure_validation(training, held)[held.config.metric]
    before = None if progress.best is None else progress.best["value"]
    progress.stale = 0 if before is None or value > before else progress.stale + 1
    if before is None or value >= before:
        stage = training.config.stages[progress.stage].name
        progress.best = {
            "metric": held.config.metric,
            "value": value,
            "stage": stage,
            "step": progress.total,
        }
        training.best = weights_of(training.model)
    training.logged_at = time.monotonic()


def _save_if_due(training: Training) -> None:
    if time.monotonic() - training.saved_at >= training.config.checkpoint_seconds:
        training.checkpoints.save(training.progress, training.model, training.optimizer, training.best)
        training.saved_at = time.monotonic()


def _finish(training: Training, target: Path, settings: dict[str, Any], started: float) -> Artifact:
    """Publish the best weights, or the last ones where nothing was validated."""
    progress = training.progress
    if training.best is not None:
        load_weights(training.model, training.best)
    content: dict[str, Any] = {**settings, "best": progress.best, "steps": progress.total}
    with publish(target, "checkpoint", content) as staging:
        training.model.cpu().eval().save(staging / "two_tower")
        kept = {
            name: value for name, value in asdict(progress).items() if name not in ("stage", "step", "stale")
        }
        write_json(staging / "training.json", {"settings": settings, **kept})
        content["seconds"] = round(time.monotonic() - started, 3)
    training.checkpoints.remove()
    return Artifact.read(target, "checkpoint")
