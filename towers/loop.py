"""One stage of a training, step by step, from wherever it stands to its end.

A stage ends with its length, by its `leave` rule or when validation stalls, but not before what the next
stage waits for is measured (`towers.leaving`); or it ends by the guard's alarm, and the way back begins
(`towers.recovery`).
"""

import time

from features.errors import ConfigError, TrainingError
from towers.checkpoint import load_weights
from towers.collate import Batches
from towers.data import TrainingData
from towers.distributed import Ranks
from towers.leaving import EnterConfig
from towers.losses import build_loss
from towers.objective import build_objective
from towers.recovery import keep_healthy, next_phase, phase_of, recover, roll_back, watch
from towers.schedule import StageConfig, build_optimizer
from towers.shares import loss_shares
from towers.step import Means, Step, measure, take_step
from towers.supply import Supply
from towers.training import Training, validate


def stage_batches(data: TrainingData, stage: StageConfig, seed: tuple[int, ...]) -> Batches:
    """Return the batches of a stage.

    Raises:
        ConfigError: If there are fewer examples than one batch needs; names the stage.
    """
    try:
        return Batches(data, stage.batch_size, stage.unclicked_per_query, stage.unclicked_scope, seed)
    except ConfigError as error:
        raise ConfigError(f"train.stages, stage {stage.name!r}: {error}") from None


def run_stage(training: Training) -> None:
    """Run the current phase from where it stands to its end, and move on to the next."""
    config, progress = training.config, training.progress
    stage = phase_of(config, progress)
    again = (progress.retries, int(progress.recovering)) if progress.retries > 0 else ()
    batches = stage_batches(training.data, stage, (training.seed, progress.stage, *again))
    length = stage.length(batches.per_epoch)
    if progress.step == 0:
        _begin(training, stage, length)
    supply = Supply(stage.negatives, training.model, training.data, training.inputs, batches)
    if progress.step > 0:
        supply.load_state_dict(training.supplied)
    following = None if progress.recovering else config.entered_by(progress.stage + 1)
    reason: str | None = None
    while reason is None:
        step, rate = _step(training, stage, batches, supply, length)
        _log_if_due(training, stage, step, rate, progress.step >= length)
        if config.guard is not None:
            signs = watch(training, config.guard, stage, step, (progress.step - 1) / length)
            if signs is not None:
                recover(training, config.guard, stage, signs)
                return
        reason = _reason_to_leave(training, stage, length, following)
        if reason is None:
            _save_if_due(training, supply)
    details = {"name": stage.name, "steps": progress.step, "reason": reason}
    progress.stages.append(details)
    training.record.event("stage_finished", details)
    if progress.retries > 0 and not progress.recovering and progress.suspicious == 0:
        training.record.event("recovered", {"stage": stage.name, "retries": progress.retries})
    next_phase(progress)


def _begin(training: Training, stage: StageConfig, length: int) -> None:
    """Start from the best weights so far with a fresh optimiser; after a collapse from the healthy state."""
    if training.progress.recovering:
        roll_back(training)
    else:
        if training.best is not None:
            load_weights(training.model, training.best)
        training.optimizer = build_optimizer(training.model, training.config.optimizer)
        if training.config.guard is not None:
            keep_healthy(training)
    training.logged_at = time.monotonic()
    if stage.unclicked_per_query > 0 and len(training.data.unclicked.values) == 0:
        training.record.event("nothing_unclicked", {"name": stage.name})
    details = {"name": stage.name, "loss": stage.loss.kind, "batch_size": stage.batch_size, "steps": length}
    details |= {"learning_rate": stage.learning_rate, "uniform_negatives": stage.negatives.uniform_per_batch}
    training.record.event("stage_started", details)


def _step(
    training: Training, stage: StageConfig, batches: Batches, supply: Supply, length: int
) -> tuple[Step, float]:
    """Take one optimiser step and return it with its learning rate.

    Raises:
        TrainingError: If the loss or the gradient is not finite; says where.
    """
    config, progress = training.config, training.progress
    rate = stage.learning_rate_at(progress.step, length, config.stages[0].batch_size)
    for group in training.optimizer.param_groups:
        group["lr"] = rate
    share = min(1.0, progress.step / length)
    objective = build_objective(stage.loss, tiled=stage.uses_tiles, progress=share)
    means = Means(config.gradient_clip, stage.encode_rows, Ranks.of_group())
    try:
        draws = supply.draws(training.model, progress.step, length, training.record)
        batch = batches.batch(progress.step, draws)
        step = take_step(training.model, training.inputs, batch, objective, training.optimizer, means)
    except TrainingError as error:
        where = f"stage {stage.name!r}, step {progress.step + 1} of {length}"
        raise TrainingError(f"{where}: {error}; lower its learning_rate or set gradient_clip") from None
    supply.learn(training.model, progress.step)
    progress.step += 1
    progress.total += 1
    return step, rate


def _reason_to_leave(
    training: Training, stage: StageConfig, length: int, following: EnterConfig | None
) -> str | None:
    """Measure what is due and return why the stage ends now, or `None`.

    Raises:
        TrainingError: If the stage has waited too long for what the next one needs.
    """
    config, progress, held = training.config, training.progress, training.held
    if progress.step % config.probe.every == 0 or progress.step == length:
        _measure_probe(training, stage, length, following)
    reason = progress.leaving.reason(stage.leave) or ("finished" if progress.step >= length else None)
    may_leave = progress.leaving.may_enter(following)
    over = progress.step == length or (reason is not None and may_leave)
    if held and (progress.step % held.config.every == 0 or over):
        validate(training, held, stage.name)
        if progress.stale >= held.config.patience:
            reason = reason or "stalled"
    if reason is None or may_leave:
        return reason
    if following is not None and progress.step >= length * (1 + following.extend):
        name = config.stages[progress.stage + 1].name
        raise TrainingError(
            f"stage {name!r} waits until positives beat their hardest negatives by over {following.gap}, and "
            f"stage {stage.name!r} has not got there in {progress.step} steps; train that one for longer, or "
            f"set `enter` of {name!r} to a gap it can reach, or to null to start all the same"
        )
    return None


def _measure_probe(
    training: Training, stage: StageConfig, length: int, following: EnterConfig | None
) -> None:
    """Measure the fixed batch, record it, and let the rules for leaving see it."""
    progress = training.progress
    loss = build_loss(stage.loss, min(1.0, progress.step / length))
    measured = Ranks.of_group().agreed(training.probe.measure(training.model, loss))
    progress.probes.append({"stage": stage.name, "step": progress.total, **measured})
    for name, value in measured.items():
        training.record.metric(f"probe/{name}", value, progress.total)
    progress.leaving.take(measured["loss"], measured.get("gap"), stage.leave, following)


def _log_if_due(training: Training, stage: StageConfig, step: Step, rate: float, last: bool) -> None:
    progress, config = training.progress, training.config
    if progress.step % config.log_every != 0 and not last:
        return
    temperature = training.model.temperature
    measured = {**measure(step), **loss_shares(step, stage.loss, temperature)}
    measured |= {"learning_rate": rate, "temperature": float(temperature.detach())}
    point = {"stage": stage.name, "step": progress.total, "batch_size": stage.batch_size, **measured}
    progress.curve.append(point)
    now = time.monotonic()
    steps = progress.step % config.log_every or config.log_every
    speed = steps * stage.batch_size / max(now - training.logged_at, 1e-9)
    training.logged_at = now
    for name, value in {**measured, "batch_size": stage.batch_size, "examples_per_second": speed}.items():
        training.record.metric(f"train/{name}", value, progress.total)


def _save_if_due(training: Training, supply: Supply) -> None:
    if time.monotonic() - training.saved_at >= training.config.checkpoint_seconds:
        training.checkpoints.save(
            training.progress,
            training.model,
            training.optimizer,
            training.best,
            training.healthy,
            supply.state_dict(),
        )
        training.saved_at = time.monotonic()
