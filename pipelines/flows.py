"""The flow: six tasks that hand each other paths and digests, each skipped when its work is there already.

The artifacts in the store are the cache (see `pipelines.workspace`), and Prefect is told the outcome: a
task whose artifact was there ends in the state `Cached`. Nothing is remembered that could be gone.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.logging import get_run_logger
from prefect.states import Completed
from rich.console import Console

from features.errors import ConfigError
from pipelines import stages
from pipelines.comparison import read_evaluation
from pipelines.config import RunConfig, load_config
from pipelines.progress import Progress, Recorders
from pipelines.stage import Stage
from pipelines.tracking import Tracking, without_secrets
from pipelines.workspace import STAGES, StageResult, Workspace

_PERMANENT = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)


class RunContext:
    """What the tasks of one run share: configuration, MLflow, the console, and what was done so far."""

    def __init__(self, config: RunConfig, progress: Progress, refresh: Sequence[str]) -> None:
        self.config = config
        self.tracking = Tracking(config)
        self.progress = progress
        self.refresh = frozenset(refresh)
        self.results: dict[str, StageResult] = {}
        self.promotion: dict[str, Any] | None = None


def _may_pass(_task: Any, _run: TaskRun, state: State[Any]) -> bool:
    """Say whether trying again can help: a disk or network that failed, not a mistake in the input."""
    return isinstance(state.data, OSError) and not isinstance(state.data, _PERMANENT)


_COMMON: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False}
_IO: dict[str, Any] = {**_COMMON, "retries": 2, "retry_delay_seconds": 5, "retry_condition_fn": _may_pass}


@task(name="ingest", **_IO)
def ingest(run: RunContext) -> Any:
    """Log files → lake."""
    return _perform(run, stages.Ingest(run.config))


@task(name="examples", **_IO)
def examples(run: RunContext, lake: StageResult) -> Any:
    """Lake → examples."""
    return _perform(run, stages.Examples(run.config, lake))


@task(name="train", **_COMMON)
def train(run: RunContext, data: StageResult) -> Any:
    """Examples → checkpoint; goes on where an interrupted training stopped."""
    return _perform(run, stages.Train(run.config, data))


@task(name="evaluate", **_COMMON)
def evaluate(run: RunContext, data: StageResult, checkpoint: StageResult) -> Any:
    """Examples and checkpoint → evaluation."""
    return _perform(run, stages.Evaluate(run.config, data, checkpoint))


@task(name="export", **_IO)
def export(run: RunContext, data: StageResult, checkpoint: StageResult, evaluation: StageResult) -> Any:
    """Examples, checkpoint and evaluation → bundle, registered in MLflow."""
    return _perform(run, stages.Export(run.config, data, checkpoint, evaluation))


@task(name="promote", **_COMMON)
def promote(run: RunContext, bundle: StageResult, evaluation: StageResult) -> Any:
    """Bundle → champion, if it earns it."""
    return _perform(run, stages.Promote(run.config, bundle, evaluation))


def _perform(run: RunContext, stage: Stage) -> Any:
    """Find the stage's work or do it, and record either in MLflow, in Prefect and on the console."""
    run.progress.start(stage.name)
    started = time.monotonic()
    try:
        with run.tracking.stage(stage.name) as child:
            outcome = None if stage.name in run.refresh else stage.find()
            cached = outcome is not None
            if outcome is None:
                outcome = stage.run(Recorders(run.progress, child))
            seconds = time.monotonic() - started
            child.tags({"cached": str(cached).lower(), "key": stage.key, "path": outcome.path})
            child.tags({"digest": outcome.digest, **{f"input.{k}": v for k, v in stage.inputs.items()}})
            stage.record(run.tracking, child, outcome)
    finally:
        run.progress.stop()
    result = StageResult(stage.name, str(outcome.path), outcome.digest, cached, seconds, outcome.summary)
    run.results[stage.name] = result
    run.progress.done(result)
    get_run_logger().info("%s %s: %s", stage.name, "cached" if cached else "done", outcome.summary)
    if isinstance(stage, stages.Promote):
        run.promotion = dict(outcome.content)
    return (
        Completed(name="Cached", message=f"{outcome.path} is there already", data=result)
        if cached
        else result
    )


def _value(outcome: Any) -> StageResult:
    """Return a task's result; a cached one comes inside its state."""
    result: StageResult = outcome.result() if isinstance(outcome, State) else outcome
    return result


def _run_stages(run: RunContext, until: str) -> None:
    last = STAGES.index(until)
    lake = _value(ingest(run))
    if last >= STAGES.index("examples"):
        data = _value(examples(run, lake))
    if last >= STAGES.index("train"):
        checkpoint = _value(train(run, data))
    if last >= STAGES.index("evaluate"):
        evaluation = _value(evaluate(run, data, checkpoint))
    if last >= STAGES.index("export"):
        bundle = _value(export(run, data, checkpoint, evaluation))
    if last >= STAGES.index("promote"):
        _value(promote(run, bundle, evaluation))


@flow(name="twotower-run", persist_result=False)
def twotower_run(
    config: str,
    overrides: list[str] | None = None,
    until: str = "promote",
    refresh: list[str] | None = None,
    directory: str | None = None,
) -> dict[str, Any]:
    """Run the stages up to one of them; what is there already is not done again.

    Args:
        config: Path of the YAML configuration.
        overrides: Assignments as for `--set`.
        until: Last stage to run.
        refresh: Stages to do again although they are there.
        directory: Folder that relative paths are relative to; none is the working directory.

    Returns:
        JSON-serialisable summary: `run` (MLflow run id), `store`, `stages`, `all_cached`, `config` and
        `overrides` as they were given, and where these stages ran `evaluation`, `decision` (its deciding
        metric), `verdict` and `promotion`.

    Raises:
        TwotowerError: What a user can act on.
    """
    for name in (until, *(refresh or ())):
        if name not in STAGES:
            raise ConfigError(f"{name!r} is not a stage; stages are {', '.join(STAGES)}")
    base = Path(directory) if directory else Path.cwd()
    resolved = load_config(base / config, overrides or (), base=base)
    progress = Progress(Console(stderr=True))
    workspace = Workspace(resolved.store)
    with workspace.lock():
        run = RunContext(resolved, progress, refresh or ())
        with run.tracking.run(resolved, {"config": config, "until": until}) as run_id:
            _run_stages(run, until)
            asked = {"config": config, "overrides": [_without_secrets(one) for one in overrides or ()]}
            summary = _summary(run, run_id) | asked
            workspace.write_record("runs", run_id, summary)
    return summary


def _without_secrets(assignment: str) -> str:
    key, equals, value = assignment.partition("=")
    return f"{key}{equals}{without_secrets(value)}"


def _summary(run: RunContext, run_id: str) -> dict[str, Any]:
    done = list(run.results.values())
    summary: dict[str, Any] = {
        "run": run_id,
        "name": run.config.name,
        "store": str(run.config.store),
        "tracking": {"uri": without_secrets(run.tracking.uri), "experiment_id": run.tracking.experiment_id},
        "stages": [result.as_json() for result in done],
        "all_cached": all(result.cached for result in done),
    }
    if "evaluate" in run.results:
        evaluation = read_evaluation(Path(run.results["evaluate"].path))
        summary["evaluation"] = evaluation.rows
        summary["decision"] = run.config.evaluate.decision
        summary["verdict"] = evaluation.verdict
    if run.promotion is not None:
        summary["promotion"] = run.promotion
    return summary
