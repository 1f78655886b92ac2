"""Two evaluations side by side: on the same queries where they have them, by intervals where they do not."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from features.artifact import Artifact
from features.errors import ArtifactError
from pipelines.stored import no_champion, open_store
from pipelines.workspace import Workspace
from serving.store import Store
from towers.intervals import paired

TOWERS = "towers"
_RESAMPLES = 2000
_SEED = 0


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation and the values of its single queries.

    Attributes:
        label: What the user called it.
        rows: The evaluation list.
        verdict: Whether the towers beat the baselines, in a sentence.
        paired: Its own paired comparisons of systems.
        per_query: query_id, system, metric, value.
        data: Identifies the test queries and judgements; equal data can be compared query by query.
    """

    label: str
    rows: list[dict[str, Any]]
    verdict: str
    paired: list[dict[str, Any]]
    per_query: pd.DataFrame
    data: str

    def value(self, metric: str, system: str = TOWERS) -> dict[str, Any] | None:
        """Return a system's row of slice `all`, or none if it was not measured."""
        wanted = (system, "all", metric)
        found = [row for row in self.rows if (row["system"], row["slice"], row["metric"]) == wanted]
        return found[0] if found else None

    def against(self, baseline: str, metric: str) -> dict[str, Any] | None:
        """Return the paired difference of the towers and a baseline over all queries, or none."""
        for row in self.paired:
            if (row["a"], row["b"], row["slice"], row["metric"]) == (TOWERS, baseline, "all", metric):
                return row
        return None

    @property
    def metrics(self) -> list[str]:
        """Metrics of the towers over all queries, in their order."""
        return [str(row["metric"]) for row in self.rows if (row["system"], row["slice"]) == (TOWERS, "all")]


def read_evaluation(path: Path, label: str | None = None) -> Evaluation:
    """Open an evaluation artifact.

    Raises:
        ArtifactError: If it is absent, damaged, or holds something else.
    """
    artifact = Artifact.read(path, "evaluation")
    document = json.loads((path / "evaluation.json").read_text(encoding="utf-8"))
    per_query = pd.read_parquet(path / "per_query.parquet")
    data = json.dumps([artifact.content["examples"], artifact.content["qrels"]], sort_keys=True)
    return Evaluation(
        label or path.name,
        document["evaluation"],
        document["verdict"]["sentence"],
        document["paired"],
        per_query,
        data,
    )


def compare(a: Evaluation, b: Evaluation, metrics: list[str] | None = None) -> list[dict[str, Any]]:
    """Compare the towers of two evaluations, metric by metric: difference is b − a.

    Returns:
        Rows of `metric, a, b, difference, low, high, p, n`. Evaluated on the same data, the interval and p
        are of the paired differences over the common queries; otherwise the interval is the sum of both
        intervals, p is None and n is the smaller count of queries.
    """
    shared = [name for name in (metrics or a.metrics) if name in a.metrics and name in b.metrics]
    if a.data != b.data:
        return [_by_interval(a, b, name) for name in shared]
    return [row for name in shared if (row := _paired(a, b, name)) is not None]


def _paired(a: Evaluation, b: Evaluation, metric: str) -> dict[str, Any] | None:
    both = pd.concat([_values(a, metric), _values(b, metric)], axis=1, join="inner", keys=["a", "b"])
    if both.empty:
        return None
    first, second = (both[name].to_numpy(dtype=np.float64)[:, None] for name in ("a", "b"))
    result = paired(second, first, resamples=_RESAMPLES, seed=_SEED)[0]
    return {
        "metric": metric,
        "a": float(first.mean()),
        "b": float(second.mean()),
        "difference": result.difference,
        "low": result.low,
        "high": result.high,
        "p": result.p,
        "n": result.n,
    }


def _values(evaluation: Evaluation, metric: str) -> "pd.Series[float]":
    frame = evaluation.per_query
    chosen = frame[(frame["system"] == TOWERS) & (frame["metric"] == metric)]
    return chosen.set_index("query_id")["value"]


def _by_interval(a: Evaluation, b: Evaluation, metric: str) -> dict[str, Any]:
    first, second = a.value(metric), b.value(metric)
    if first is None or second is None:  # `compare` asks for shared metrics only
        raise ArtifactError(f"{metric} was not measured in both {a.label} and {b.label}")
    return {
        "metric": metric,
        "a": first["value"],
        "b": second["value"],
        "difference": second["value"] - first["value"],
        "low": second["low"] - first["high"],
        "high": second["high"] - first["low"],
        "p": None,
        "n": min(first["n"], second["n"]),
    }


def find_evaluation(name: str, store: Path | None) -> Path:
    """Return the evaluation that a user means.

    Args:
        name: The path of an evaluation or bundle directory, or of a store for its champion; or, with a
            store, a bundle id, the id of an MLflow run of the pipeline, or `champion`.
        store: The store to look in.

    Raises:
        ArtifactError: If nothing is found.
    """
    path = Path(name)
    if (path / "champion.json").is_file() or (path / "bundles").is_dir():
        return evaluation_of_bundle(Workspace(path), champion_id(path))
    if path.is_dir():
        artifact = Artifact.read(path)
        if artifact.kind == "evaluation":
            return path
        if artifact.kind == "bundle":
            return evaluation_of_bundle(Workspace(path.resolve().parent.parent), path.resolve().name)
        raise ArtifactError(f"{path} holds a {artifact.kind!r}; give an evaluation or a bundle")
    if store is None:
        raise ArtifactError(
            f"{name} is not a directory; to name a run or a bundle by its id, add --store STORE"
        )
    workspace = Workspace(store)
    if name == "champion":
        return evaluation_of_bundle(workspace, champion_id(store))
    if re.fullmatch(r"[0-9a-f]{32}", name):
        record = workspace.read_record("runs", name)
        if record is None:
            raise ArtifactError(f"{store} has no run {name}; `ls {store / 'runs'}` lists them")
        for stage in record.get("stages", []):
            if stage["stage"] == "evaluate":
                return Path(stage["path"])
        raise ArtifactError(f"run {name} has no evaluation; `twotower run` makes one")
    return evaluation_of_bundle(workspace, name)


def champion_id(store: Path) -> str:
    """Return the bundle id of the champion.

    Raises:
        ArtifactError: If the store has none, or is none.
    """
    champion = Store(store).champion()
    if champion is None:
        raise ArtifactError(no_champion(open_store(store)))
    return champion.bundle_id


def evaluation_of_bundle(workspace: Workspace, bundle_id: str) -> Path:
    """Return the evaluation that was made before a bundle was exported.

    Raises:
        ArtifactError: If the store does not know the bundle.
    """
    for record in workspace.records("exports"):
        if record.get("bundle") == bundle_id:
            return Path(record["evaluation"])
    raise ArtifactError(
        f"{workspace.store} has no bundle {bundle_id!r}, or it was not exported by `twotower run`"
    )
