"""The way back from a collapse.

When the guard's alarm rings, the training goes back to the last healthy weights with their optimiser state
and runs a gentler phase: cross-entropy, one batch stage down, at a lower learning rate, with more uniform
negatives, until positives beat their hardest negatives again. Then the collapsed stage is tried again from
its start, at that lower rate and with its own negatives. After a bounded number of ways back in one stage the
training fails.

What runs now is a function of the configuration and three numbers of `Progress` (stage, retries, recovering),
so that an interrupted recovery resumes like anything else.
"""

from features.errors import TrainingError
from towers.checkpoint import Healthy, Progress, load_weights, optimizer_state, restore_optimizer, weights_of
from towers.guard import GuardConfig, Signs, look_at, relative_spread, signs_of, watched
from towers.leaving import EnterConfig, Leaving, SeparationConfig
from towers.losses import CrossEntropyConfig, build_loss
from towers.schedule import StageConfig, TrainConfig, build_optimizer
from towers.step import Step
from towers.training import Training


def phase_of(config: TrainConfig, progress: Progress) -> StageConfig:
    """Return the stage as it runs now: as configured, gentler after a collapse, or the way back from one."""
    stage, guard = config.stages[progress.stage], config.guard
    if guard is None or progress.retries == 0:
        return stage
    rate = stage.learning_rate * guard.learning_rate_factor**progress.retries
    if not progress.recovering:
        return stage.model_copy(update={"learning_rate": rate})
    enter = config.entered_by(progress.stage) or EnterConfig()
    batch_size = smaller_batch(config, progress.stage, progress.retries)
    added = round(guard.uniform_negatives * batch_size * progress.retries)
    return stage.model_copy(
        update={
            "name": f"{stage.name}, recovery {progress.retries}",
            "loss": CrossEntropyConfig(),
            "batch_size": batch_size,
            "negatives": stage.negatives.with_more_uniform(added),
            "learning_rate": rate,
            "decay": "none",
            "epochs": None,
            "steps": guard.recovery_steps,
            "leave": SeparationConfig(gap=enter.gap, measurements=enter.measurements),
        }
    )


def smaller_batch(config: TrainConfig, number: int, down: int) -> int:
    """Return the batch size `down` batch stages below a stage's; below the smallest, each step halves it."""
    own = config.stages[number].batch_size
    below = sorted({stage.batch_size for stage in config.stages if stage.batch_size < own}, reverse=True)
    if down <= len(below):
        return below[down - 1]
    smallest = below[-1] if below else own
    return max(2, smallest >> (down - len(below)))


def keep_healthy(training: Training) -> None:
    """Remember the weights and the optimiser's state as worth going back to."""
    moments = optimizer_state(training.model, training.optimizer)
    training.healthy = Healthy(training.progress.total, weights_of(training.model), moments)


def watch(
    training: Training, guard: GuardConfig, stage: StageConfig, step: Step, share: float
) -> Signs | None:
    """Look at a step; returns the signs when the alarm rings.

    Args:
        training: Its count of suspicious steps and its healthy state change.
        guard: When to ring.
        stage: The phase that runs; only an objective with a margin is watched, and only while it counts.
        step: What was just computed.
        share: Of the stage's steps that were done before it.
    """
    progress = training.progress
    if not watched(stage.loss):
        return None
    look = look_at(step, training.model.temperature, guard.rows)
    relative = relative_spread(look)
    if relative >= guard.spread:
        progress.suspicious = 0
        if relative >= guard.healthy_spread and progress.step % guard.healthy_every == 0:
            keep_healthy(training)
        return None
    if not watched(stage.loss, share):
        progress.suspicious = 0
        return None
    signs = signs_of(look, build_loss(stage.loss, share), relative)
    progress.suspicious = progress.suspicious + 1 if signs.collapsed(guard) else 0
    return signs if progress.suspicious >= guard.steps else None


def recover(training: Training, guard: GuardConfig, stage: StageConfig, signs: Signs) -> None:
    """Turn to the way back: the current stage begins again as its recovery.

    Raises:
        TrainingError: If the stage has used up its ways back.
    """
    progress = training.progress
    found = {
        "stage": stage.name,
        "step": progress.total,
        "loss": signs.loss,
        "loss_of_equal_scores": signs.equal,
    }
    found |= {"gap": signs.gap, "relative_spread": signs.spread, "retries": progress.retries}
    training.record.event("collapse_alarm", found)
    progress.collapses.append(found)
    progress.stages.append({"name": stage.name, "steps": progress.step, "reason": "collapsed"})
    if progress.retries >= guard.retries:
        training.record.event("recovery_given_up", {"stage": stage.name, "retries": progress.retries})
        raise TrainingError(
            f"stage {stage.name!r} collapsed at step {progress.total}: its loss is {signs.loss:.4g}, equal "
            f"scores have {signs.equal:.4g}, positives beat their hardest negatives by {signs.gap:.2g}, "
            f"vectors spread {signs.spread:.1%} of the possible; {progress.retries} ways back did not help; "
            "warm up longer with cross_entropy, lower its learning_rate, or grow the batch in smaller steps"
        )
    progress.retries += 1
    progress.recovering = True
    _begin(progress)


def roll_back(training: Training) -> None:
    """Load the last healthy weights and the optimiser's state of that moment."""
    healthy = training.healthy
    if healthy is None:
        raise ValueError("no healthy state was kept; every stage keeps one at its start")
    load_weights(training.model, healthy.weights)
    training.optimizer = build_optimizer(training.model, training.config.optimizer)
    restore_optimizer(training.model, training.optimizer, healthy.moments)
    training.record.event("rolled_back", {"from": training.progress.total, "to": healthy.step})


def next_phase(progress: Progress) -> None:
    """Move on: from the way back to the stage that collapsed, else to the next stage."""
    if progress.recovering:
        progress.recovering = False
    else:
        progress.stage, progress.retries = progress.stage + 1, 0
    _begin(progress)


def _begin(progress: Progress) -> None:
    """Forget what the last phase counted."""
    progress.step = progress.stale = progress.suspicious = 0
    progress.leaving = Leaving()
