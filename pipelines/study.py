"""`twotower study collapse`: when a hinge collapses, when it does not, and what it costs or gains.

Every training is a plain `towers.train` of the configuration's towers on its examples, without early
stopping, so that the last weights speak; the guard is off but for one training that shows it. A finished
training is not done again, so an interrupted study goes on.
"""

import json
import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from features.artifact import digest_of, write_json
from features.errors import ConfigError, TrainingError
from pipelines import stages
from pipelines.config import RunConfig
from pipelines.progress import Recorders
from pipelines.stage import Stage
from pipelines.study_config import CollapseStudyConfig
from pipelines.study_plots import plot_curves, plot_quality
from pipelines.tracking import StageRun, Tracking
from pipelines.workspace import StageResult, Workspace
from towers.guard import GuardConfig
from towers.schedule import StageConfig, TrainConfig

METRICS = ("nDCG@10", "R@100")
_T_975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}


@dataclass(frozen=True)
class Arm:
    """One training of the study, for all seeds."""

    name: str
    stages: list[StageConfig]
    guard: GuardConfig | None


def run_collapse_study(config: RunConfig, progress: Any) -> dict[str, Any]:
    """Train every arm with every seed, and write report, table and plots into the store.

    Args:
        config: With a `study` section.
        progress: Recorder for people.

    Returns:
        The report: `arms`, one entry each with its metrics over seeds; `files`, what was written.

    Raises:
        ConfigError: If the configuration has no study.
    """
    if config.study is None:
        raise ConfigError(
            "study: required by `twotower study collapse`, but not given; `study: {}` has defaults"
        )
    workspace = Workspace(config.store)
    with workspace.lock():
        tracking = Tracking(config)
        with tracking.run(config, {"study": "collapse"}):
            examples = _examples(config)
            runs = [
                _one(config, arm, seed, examples, tracking, progress)
                for seed in config.study.seeds
                for arm in _arms(config.study)
            ]
            report = {"study": config.study.model_dump(mode="json"), "arms": _summarise(runs)}
            report["files"] = _publish(config.store / "study", report, runs, tracking)
    return report


def _arms(study: CollapseStudyConfig) -> list[Arm]:
    arms = [Arm(name, plan, None) for name, plan in study.arms().items()]
    guarded = study.guarded()
    plan = study.arms().get(guarded)
    if plan is None:
        raise ConfigError(f"study.compared must be one of study.batches; it is {study.compared}")
    return [*arms, Arm(f"{guarded}, guarded", plan, GuardConfig())]


def _examples(config: RunConfig) -> StageResult:
    """Return the examples artifact, made now where it is not there."""
    lake = _result("ingest", stages.Ingest(config))
    return _result("examples", stages.Examples(config, lake))


def _result(name: str, stage: Stage) -> StageResult:
    started, found = time.monotonic(), stage.find()
    outcome = found or stage.run(None)
    seconds = time.monotonic() - started
    return StageResult(name, str(outcome.path), outcome.digest, found is not None, seconds, outcome.summary)


def _one(
    config: RunConfig, arm: Arm, seed: int, examples: StageResult, tracking: Tracking, progress: Any
) -> dict[str, Any]:
    """Train one arm with one seed, or find it done; returns what was measured."""
    plan = config.train.model_dump() | {"allow_cold_hinge": True, "early_stopping": None}
    plan |= {"stages": [stage.model_dump() for stage in arm.stages], "guard": arm.guard}
    plan |= {"log_every": 2, "probe": {"rows": 256, "every": 4}, "checkpoint_seconds": 3600.0}
    training = TrainConfig.model_validate(plan)
    identity = {"towers": config.towers.model_dump(mode="json"), "train": training.model_dump(mode="json")}
    key = digest_of(identity | {"seed": seed, "examples": examples.digest})[:16]
    workspace = Workspace(config.store)
    with tracking.stage(f"{arm.name}, seed {seed}") as child:
        told = workspace.read_record("study/runs", key)
        if told is None:
            progress.start(f"{arm.name}, seed {seed}")
            recorder = Recorders(progress, child)
            told = _train(config, training, Path(examples.path), (seed, key), recorder)
            progress.stop()
            workspace.write_record("study/runs", key, told)
        told |= {"arm": arm.name, "seed": seed}
        _record(child, told)
    progress.line(f"{arm.name}, seed {seed}: {_sentence(told)}, {told['seconds']:.0f} s")
    return told


def _sentence(told: Mapping[str, Any]) -> str:
    if "failed" in told:
        return f"FAILED: {told['failed']}"
    how = "COLLAPSED" if told["collapsed"] else "alive"
    return (
        f"{how}, nDCG@10 {told['nDCG@10']:.4f}, loss {told['loss']:.4f}, spread {told['relative_spread']:.3f}"
    )


def _train(
    config: RunConfig, training: TrainConfig, examples: Path, identity: tuple[int, str], recorder: Any
) -> dict[str, Any]:
    from towers.train import train

    seed, key = identity
    target = config.store / "study" / "checkpoints" / key
    started = time.monotonic()
    try:
        artifact = train(examples, target, config.towers, training, seed=seed, record=recorder)
    except TrainingError as error:
        return {"failed": str(error), "seconds": time.monotonic() - started}
    told = json.loads((artifact.path / "training.json").read_text(encoding="utf-8"))
    curve, last = _curve(told["curve"], config.towers.dimension), told["probes"][-1]
    spread = min(last["query_std"], last["document_std"]) * math.sqrt(config.towers.dimension)
    guard = GuardConfig()
    return {
        **_quality(examples, artifact.path),
        "seconds": time.monotonic() - started,
        "loss": told["curve"][-1]["loss"],
        "gap": last["gap"],
        "alignment": last["alignment"],
        "uniformity": last["uniformity"],
        "relative_spread": spread,
        "collapsed": spread < guard.spread and abs(last["gap"]) <= guard.gap_tolerance,
        "alarms": len(told["collapses"]),
        "phases": told["stages"],
        "pairs": curve[-1]["pairs"],
        "curve": curve,
    }


def _curve(points: list[dict[str, Any]], dimension: int) -> list[dict[str, float]]:
    """Return loss, gap and relative spread over the pairs seen."""
    pairs, step, curve = 0, 0, []
    for point in points:
        pairs, step = pairs + (point["step"] - step) * point["batch_size"], point["step"]
        spread = min(point["query_std"], point["document_std"]) * math.sqrt(dimension)
        curve.append({"pairs": pairs, "loss": point["loss"], "gap": point["gap"], "relative_spread": spread})
    return curve


def _quality(examples: Path, checkpoint: Path) -> dict[str, float]:
    """Rank the corpus for every validation query with the last weights."""
    import pandas as pd
    import torch

    from towers.two_tower import TwoTower
    from towers.validation import Validation

    towers = TwoTower.load(checkpoint / "two_tower")
    documents = pd.read_parquet(examples / "documents.parquet")
    validation = Validation(examples, documents, 1_000_000, METRICS[0])
    queries, catalogue = towers.prepare_queries(validation.frame), towers.prepare_documents(documents)
    measured = validation.measure(towers, queries, catalogue, torch.device("cpu"))
    return {name: measured[name] for name in METRICS}


def _record(child: StageRun, told: Mapping[str, Any]) -> None:
    """Put the measurements of a training into its MLflow run."""
    child.tags({"arm": told["arm"], "seed": told["seed"], "collapsed": told.get("collapsed", "failed")})
    for name in (*METRICS, "loss", "gap", "relative_spread", "alignment", "uniformity", "alarms", "seconds"):
        if name in told:
            child.metric(f"final/{name}", float(told[name]), 0)
    child.flush()


def _summarise(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one entry an arm: mean and 95% interval over seeds of each number, collapses, alarms.

    A training that failed counts as such and enters no mean; an arm of which all failed is left out.
    """
    arms: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        if "failed" not in run:
            arms.setdefault(run["arm"], []).append(run)
    return [
        {
            "arm": name,
            "seeds": len(members),
            "failed": sum(run["arm"] == name and "failed" in run for run in runs),
            "collapsed": sum(run["collapsed"] for run in members),
            "alarms": sum(run["alarms"] for run in members),
            "pairs": statistics.mean(run["pairs"] for run in members),
            "seconds": statistics.mean(run["seconds"] for run in members),
            **{
                field: interval([run[field] for run in members])
                for field in (*METRICS, "loss", "gap", "relative_spread", "alignment", "uniformity")
            },
        }
        for name, members in arms.items()
    ]


def interval(values: list[float]) -> dict[str, float]:
    """Return mean, low and high of the 95% interval of Student's t over seeds."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return {"mean": mean, "low": mean, "high": mean}
    quantile = _T_975.get(len(values), 1.96)
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def _publish(
    folder: Path, report: Mapping[str, Any], runs: list[dict[str, Any]], tracking: Tracking
) -> list[str]:
    """Write report, table and plots, and log them to MLflow."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", dict(report))
    (folder / "table.md").write_text(table(report["arms"]), encoding="utf-8")
    plot_curves([run for run in runs if "failed" not in run], folder / "curves.png")
    plot_quality(report["arms"], METRICS[0], folder / "quality.png")
    files = [folder / name for name in ("report.json", "table.md", "curves.png", "quality.png")]
    for file in files:
        tracking.parent.artifact(file)
    return [str(file) for file in files]


def table(arms: list[dict[str, Any]]) -> str:
    """Return the arms as a Markdown table."""
    lines = [
        "| training | collapsed | last loss | gap | spread | nDCG@10 | R@100 | alarms | s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for arm in arms:
        shown = [_shown(arm[field]) for field in ("nDCG@10", "R@100")]
        lines.append(
            f"| {arm['arm']} | {arm['collapsed']} of {arm['seeds']} | {arm['loss']['mean']:.4f} "
            f"| {arm['gap']['mean']:+.4f} | {arm['relative_spread']['mean']:.3f} | {shown[0]} | {shown[1]} "
            f"| {arm['alarms']} | {arm['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def _shown(value: Mapping[str, float]) -> str:
    return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
