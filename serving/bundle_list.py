"""What a store's bundles say of themselves: the facts of their manifests, and the runs that made them."""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from features.artifact import Artifact
from features.errors import ArtifactError, TwotowerError
from serving.store import Store, made_at

RUNS = "runs"
"""Folder of a store with one JSON file for each run of the pipeline."""

_CHANGES = ("added", "updated", "deleted")
_ID = re.compile(r"[0-9a-f]{16}")


def describe(artifact: Artifact) -> dict[str, Any]:
    """Return the facts of a bundle that a list of bundles shows."""
    content = artifact.content
    index = content["index"]
    recall = index.get("ann_recall") or {}
    return {
        "bundle_id": artifact.path.name,
        "created_at": _created(content),
        "documents": int(content["documents"]),
        "dimension": int(content["dimension"]),
        "similarity": str(content["similarity"]),
        "query_inputs": list(content["query_inputs"]),
        "data_window": dict(content.get("data_window") or {}),
        "evaluation": [row for row in content.get("evaluation") or [] if row.get("slice") == "all"],
        "update": update_of(artifact),
        "index": {
            "factory": str(index["factory"]),
            "search": dict(index.get("search") or {}),
            "note": index.get("note"),
            "ann_recall": recall.get("value"),
            "k": recall.get("k"),
            "target": recall.get("target"),
            "target_met": recall.get("target_met_when_tuned"),
            "curve": curve_of(content),
        },
    }


def _created(content: Mapping[str, Any]) -> str | None:
    """Return when a bundle was made, ISO 8601; None where it does not say."""
    try:
        return datetime.fromtimestamp(made_at(content), UTC).isoformat(timespec="seconds")
    except (KeyError, ValueError, TypeError, OverflowError, OSError):
        return None


def update_of(artifact: Artifact) -> dict[str, Any] | None:
    """Return how an updated bundle came about; None for one that was exported after a training.

    Nothing is trained and nothing evaluated in an update, so `evaluation` is that of the bundle `exported`,
    on its catalogue. `note` says so in words, for whoever shows the evaluation.

    Returns:
        `parent` and `exported` (bundle ids), `added`, `updated` and `deleted` (documents, since the parent),
        `changes` (documents, since `exported`; None where a bundle between is gone), and `note`.
    """
    lineage = artifact.content.get("update")
    if not isinstance(lineage, Mapping):
        return None
    exported, changes = str(lineage["exported"]), _changes_since(artifact, str(lineage["exported"]))
    many = "changes" if changes is None else f"{changes:,} change{'' if changes == 1 else 's'}"
    return {
        "parent": str(lineage["parent"]),
        "exported": exported,
        **{name: int(lineage[name]) for name in _CHANGES},
        "changes": changes,
        "note": f"measured on bundle {exported}, before {many} of documents",
    }


def _changes_since(artifact: Artifact, exported: str) -> int | None:
    """Return how many documents were changed since the export, over all updates between."""
    count, lineage = 0, artifact.content["update"]
    seen: set[str] = set()
    while True:
        count += sum(int(lineage[name]) for name in _CHANGES)
        parent = str(lineage["parent"])
        if parent == exported:
            return count
        if parent in seen or not _ID.fullmatch(parent):
            return None
        seen.add(parent)
        try:
            lineage = _lineage_at(artifact.path.parent / parent)
        except (ArtifactError, KeyError, TypeError, OSError):
            return None


@lru_cache(maxsize=1_000)
def _lineage_at(path: Path) -> Mapping[str, Any]:
    """Return what a bundle's manifest says of its update; bundles never change, so it is read once."""
    lineage: Mapping[str, Any] = Artifact.read(path).content["update"]
    return lineage


def curve_of(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return everything that was measured when the index was chosen, or None where nothing was."""
    curve = (content.get("measured") or {}).get("index_curve")
    if not isinstance(curve, Mapping) or not curve.get("settings"):
        return None
    return {name: curve.get(name) for name in ("target", "k", "queries", "chosen", "settings")}


def listed(store: Store, most: int) -> list[dict[str, Any]]:
    """Return the newest bundles of a store, newest first; a damaged one has only its id and what is wrong."""
    entries = []
    for bundle_id in reversed(store.bundle_ids()[-most:]):
        try:
            entries.append(describe(store.bundle(bundle_id)))
        except (TwotowerError, KeyError, TypeError, ValueError, AttributeError, OSError) as error:
            entries.append({"bundle_id": bundle_id, "damage": " ".join(str(error).split())[:300]})
    return entries


def runs_of(store: Store) -> dict[str, dict[str, str]]:
    """Return, by bundle, the last run of the pipeline that made it: its id, and where MLflow has it."""
    runs: dict[str, dict[str, str]] = {}
    files = [file for file in (store.root / RUNS).glob("*.json") if file.is_file()]
    for file in sorted(files, key=lambda file: file.stat().st_mtime_ns):
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            made = [stage["path"] for stage in record["stages"] if stage["stage"] == "export"]
            tracking = record.get("tracking") or {}
            run = {"run_id": str(record["run"]), "name": str(record["name"])}
            run |= {key: str(tracking[key]) for key in ("uri", "experiment_id") if tracking.get(key)}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
        runs.update({Path(path).name: run for path in made})
    return runs


def page_of(run: Mapping[str, str], mlflow: str | None) -> str | None:
    """Return the address of a run's page in MLflow, or None where MLflow has no pages.

    Args:
        run: As `runs_of` returns it.
        mlflow: Where MLflow's pages are; None takes the tracking server of the run, if it was one.
    """
    base = mlflow or run.get("uri", "")
    if not base.startswith(("http://", "https://")) or "experiment_id" not in run:
        return None
    return f"{base.rstrip('/')}/#/experiments/{run['experiment_id']}/runs/{run['run_id']}"
