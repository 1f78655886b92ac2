"""Where a bundle comes from: the artifacts behind it, their digests, the data window, library versions."""

import importlib.metadata
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pandas as pd

from features.artifact import Artifact
from features.errors import ArtifactError
from serving.canary import spread

MEASURED_QUERIES = 1_000
_QUERY_COLUMNS = ["query_text", "history", "user_id"]
_LIBRARIES = ("twotower", "torch", "transformers", "numpy", "pandas", "pyarrow", "bm25s")


@dataclass(frozen=True)
class HeldOut:
    """Real queries that an index is tuned on, and others that it is measured on.

    Attributes:
        tuning: Query frame: validation queries, or the next best split.
        measuring: Query frame: test queries, or the next best split.
        measuring_split: Which split `measuring` is.
    """

    tuning: pd.DataFrame
    measuring: pd.DataFrame
    measuring_split: str

    @classmethod
    def read(cls, examples: Path) -> Self:
        """Sample the queries of an `examples` artifact.

        Raises:
            ArtifactError: If no split has a query.
        """
        splits = {name: _queries(examples / f"{name}.parquet") for name in ("test", "validation")}
        if not any(map(len, splits.values())):
            splits = {"train": _queries(examples / "train.parquet")}
        filled = [name for name, queries in splits.items() if len(queries)]
        if not filled:
            raise ArtifactError(f"{examples} has no query in any split; nothing could be measured")
        tuning = splits["validation" if "validation" in filled else filled[0]]
        measuring = spread(splits[filled[0]], MEASURED_QUERIES)
        return cls(spread(tuning, MEASURED_QUERIES), measuring, filled[0])


@dataclass(frozen=True)
class Sources:
    """The artifacts that a bundle is made from, and real queries out of them.

    Attributes:
        examples: Digest, cut and counts of the data.
        checkpoint: Digest of the model.
        evaluation: The evaluation's table and digest; None where none was made.
        window: First and last event of training and evaluation, ISO 8601 UTC, None where there are none.
        tuning: Query frame to tune the index on: validation queries, or the next best split.
        measuring: Query frame to measure ANN recall on: test queries, or the next best split.
        measuring_split: Which split `measuring` is.
    """

    examples: Artifact
    checkpoint: Artifact
    evaluation: Artifact | None
    window: Mapping[str, str | None]
    tuning: pd.DataFrame
    measuring: pd.DataFrame
    measuring_split: str

    @property
    def held_out(self) -> pd.DataFrame:
        """The query frame that canaries are taken from."""
        return self.measuring

    @classmethod
    def read(cls, examples: Path, checkpoint: Path, evaluation: Path | None) -> Self:
        """Open the artifacts and sample their queries.

        Raises:
            ArtifactError: If one is damaged, the evaluation is of something else, or no split has a query.
        """
        data = Artifact.read(examples, "examples", verify=True)
        model = Artifact.read(checkpoint, "checkpoint", verify=True)
        judged = None if evaluation is None else Artifact.read(evaluation, "evaluation", verify=True)
        held_out = HeldOut.read(examples)
        _check_belongs(judged, data, model)
        return cls(
            examples=data,
            checkpoint=model,
            evaluation=judged,
            window=_window(examples),
            tuning=held_out.tuning,
            measuring=held_out.measuring,
            measuring_split=held_out.measuring_split,
        )

    def facts(self) -> dict[str, Any]:
        """Return what the manifest says about the inputs."""
        config = self.examples.content["config"]
        table = [] if self.evaluation is None else _evaluation_table(self.evaluation)
        return {
            "examples": {"digest": self.examples.digest, "cut": self.examples.content.get("cut")},
            "checkpoint": {"digest": self.checkpoint.digest},
            "evaluation_digest": None if self.evaluation is None else self.evaluation.digest,
            "evaluation": table,
            "data_window": dict(self.window),
            "query_inputs": [config["query"]],
            "exclude_seen": config["exclude_seen"],
            "history_length": config["history_length"],
        }


def describe_versions() -> dict[str, str | None]:
    """Return the versions of Python and of the libraries that shape a bundle; None where not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _queries(path: Path) -> pd.DataFrame:
    frame = pd.read_parquet(path, columns=_QUERY_COLUMNS).astype(object)
    frame["history"] = [[] if history is None else list(history) for history in frame["history"]]
    frame["query_text"] = frame["query_text"].where(frame["query_text"].notna(), None)
    frame["user_id"] = frame["user_id"].where(frame["user_id"].notna(), None)
    keys = [
        (text, tuple(history)) for text, history in zip(frame["query_text"], frame["history"], strict=True)
    ]
    return frame[~pd.Series(keys, dtype=object).duplicated().to_numpy()].reset_index(drop=True)


def _window(examples: Path) -> dict[str, str | None]:
    window: dict[str, str | None] = {}
    for split in ("train", "validation", "test"):
        times = pd.read_parquet(examples / f"{split}.parquet", columns=["timestamp"])["timestamp"]
        window[f"{split}_first"] = None if times.empty else times.min().isoformat()
        window[f"{split}_last"] = None if times.empty else times.max().isoformat()
    return window


def _check_belongs(evaluation: Artifact | None, examples: Artifact, checkpoint: Artifact) -> None:
    if evaluation is None:
        return
    for part in (examples, checkpoint):
        if evaluation.content[part.kind] != part.digest:
            raise ArtifactError(f"{evaluation.path} is not of the {part.kind} in {part.path}; evaluate again")


def _evaluation_table(evaluation: Artifact) -> list[dict[str, Any]]:
    try:
        recorded = json.loads((evaluation.path / "evaluation.json").read_text(encoding="utf-8"))
        table: list[dict[str, Any]] = recorded["evaluation"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{evaluation.path} has no readable evaluation.json: {error}") from None
    return table
