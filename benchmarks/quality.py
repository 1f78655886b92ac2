r"""Train variants of one configuration over several seeds and report them with intervals.

    python benchmarks/quality.py configs/ranklens.yaml --seeds 0 1 2
    python benchmarks/quality.py configs/shop.yaml --seeds 0 1 2 \
        --variant base --variant "in-batch only: train.stages.1.unclicked_per_query=0"

Each variant is a name and, after a colon, assignments as of `twotower run --set`, separated by `;`. Stages
that are in the store already are not run again. The result is a dated Markdown file with the data, the
command and the hardware, and a JSON file beside it.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

from features.artifact import Artifact
from pipelines.config import RunConfig, load_config
from pipelines.report import markdown, results_grid
from pipelines.stage import Stage
from pipelines.stages import Evaluate, Examples, Ingest, Train
from pipelines.workspace import StageResult
from towers.record import NoRecorder
from towers.seeds import combine_evaluations, compare_evaluations

RESULTS = Path(__file__).parent / "results"


def finish(stage: Stage) -> StageResult:
    """Return the stage's result, doing the work if the store does not hold it."""
    outcome = stage.find()
    cached = outcome is not None
    outcome = outcome or stage.run(NoRecorder())
    print(f"  {stage.name}{' (in the store)' if cached else ''}: {outcome.summary}", flush=True)
    return StageResult(stage.name, str(outcome.path), outcome.digest, cached, 0.0, outcome.summary)


@dataclass(frozen=True)
class Trained:
    """One training: its evaluation, and what it cost."""

    evaluation: Path
    steps: int
    seconds: float


def train_and_evaluate(config: RunConfig) -> Trained:
    """Bring one configuration to its evaluation."""
    lake = finish(Ingest(config))
    examples = finish(Examples(config, lake))
    checkpoint = finish(Train(config, examples))
    evaluation = finish(Evaluate(config, examples, checkpoint))
    content = Artifact.read(Path(checkpoint.path), "checkpoint").manifest["content"]
    return Trained(Path(evaluation.path), content["steps"], content["seconds"])


def parse_variant(text: str) -> tuple[str, list[str]]:
    """Split `name: a.b=1; c.d=2` into the name and its assignments."""
    name, _, assignments = text.partition(":")
    return name.strip(), [item.strip() for item in assignments.split(";") if item.strip()]


def differences(rows: Sequence[dict[str, Any]]) -> str:
    """Return paired differences as a Markdown table; those whose interval excludes 0 are bold."""
    lines = []
    for row in rows:
        text = f"{row['difference']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]"
        apart = row["low"] > 0 or row["high"] < 0
        lines.append([f"{row['a']} - {row['b']}", row["metric"], f"**{text}**" if apart else text])
    return markdown(["paired difference", "metric", "mean over seeds [95% interval]"], lines)


def costs(runs: Mapping[str, Sequence[Trained]]) -> list[dict[str, Any]]:
    """Return each variant's optimiser steps and wall-clock seconds of training: means over the seeds."""
    return [
        {
            "system": name,
            "steps": mean(run.steps for run in seeds),
            "seconds": mean(run.seconds for run in seeds),
        }
        for name, seeds in runs.items()
    ]


def hardware() -> str:
    """Name the machine: processor, cores, memory, threads, versions."""
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "faiss-cpu", "duckdb"))
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    return f"{cpu}, {os.cpu_count()} cores ({threads} threads used), {memory:.0f} GiB, no GPU; {versions}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variant", action="append", help="'name: a.b=c; d.e=f'; the first is the reference")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="for every variant")
    parser.add_argument("--name", help="of the result files; default the configuration's")
    arguments = parser.parse_args()

    runs: dict[str, list[Trained]] = {}
    for text in arguments.variant or ["base"]:
        name, assignments = parse_variant(text)
        for seed in arguments.seeds:
            print(f"{name}, seed {seed}", flush=True)
            config = load_config(arguments.config, [*arguments.overrides, *assignments, f"seed={seed}"])
            runs.setdefault(name, []).append(train_and_evaluate(config))
    write(arguments, runs)


def write(arguments: argparse.Namespace, runs: Mapping[str, Sequence[Trained]]) -> None:
    """Write the result files and print the Markdown."""
    evaluations = {name: [run.evaluation for run in seeds] for name, seeds in runs.items()}
    date = datetime.now(UTC).date().isoformat()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    name = arguments.name or arguments.config.stem
    reference, *others = evaluations
    tables, paired = {}, []
    for variant, paths in evaluations.items():
        combined = combine_evaluations(paths)
        tables[variant] = combined["evaluation"]
        if variant == reference:
            name_of = reference if len(evaluations) > 1 else "towers"
            paired += [row | {"a": name_of} for row in combined["paired"]]
    for variant in others:
        labels = (reference, variant)
        paired += compare_evaluations(evaluations[reference], evaluations[variant], labels=labels)
    rows = list(tables[reference])
    for variant in others:
        rows += [row | {"system": variant} for row in tables[variant] if row["system"] == "towers"]
    if others:
        rows = [row | {"system": reference} if row["system"] == "towers" else row for row in rows]
    header, lines = results_grid(rows, "all")
    queries = max(int(row["n"]) for row in rows)
    spent = costs(runs)
    spent_lines = [[str(row["system"]), f"{row['steps']:.0f}", f"{row['seconds']:.0f}"] for row in spent]
    command = "python " + " ".join(shlex.quote(word) for word in sys.argv)
    text = (
        f"# {name}: {date}\n\nMean over seeds {arguments.seeds}, 95% intervals over queries "
        f"and seeds; {queries:,} queries.\n\n{markdown(header, lines)}\n\n{differences(paired)}\n\n"
        f"{markdown(['training', 'steps', 'seconds'], spent_lines)}\n\n"
        f"Command: `{command}` at commit {commit}.\n\nHardware: {hardware()}.\n"
    )
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{date}-{name}.md"
    path.write_text(text, encoding="utf-8")
    document = {"date": date, "commit": commit, "command": command, "tables": tables, "paired": paired}
    document["training"] = spent
    path.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"\n{text}\nwritten to {path}")


if __name__ == "__main__":
    main()
