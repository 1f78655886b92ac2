"""Several evaluations of one configuration that differ by the training seed, as one table.

The interval counts queries and seeds, see `towers.intervals.combine_seeds`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from features.artifact import Artifact
from towers.intervals import combine_seeds
from towers.metrics import EvaluationError, Floats

RESAMPLES = 1000
"""Draws behind an interval."""


def combine_evaluations(evaluations: Sequence[Path], *, seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """Average evaluations of the same queries over the training seeds.

    Args:
        evaluations: `evaluation` artifacts, one a seed.
        seed: Of the resamples.

    Returns:
        `evaluation` (rows `system, slice, metric, value, low, high, n`) and `paired` (towers against each
        baseline: `a, b, slice, metric, difference, low, high, n`), for the slice `all`.

    Raises:
        ArtifactError: If one is not a finished evaluation.
        EvaluationError: If they are not of the same queries, systems and metrics.
    """
    tables = _read(evaluations)
    names = _names(tables[0])
    rows = []
    for system, metric in names:
        found = combine_seeds(_stack(tables, system, metric), resamples=RESAMPLES, seed=seed)
        rows.append(
            {"system": system, "slice": "all", "metric": metric}
            | {"value": found.value, "low": found.low, "high": found.high, "n": found.n}
        )
    others = [
        (system, metric) for system, metric in names if system != "towers" and ("towers", metric) in names
    ]
    paired = []
    for system, metric in others:
        difference_SQ = _stack(tables, "towers", metric) - _stack(tables, system, metric)
        paired.append(_difference("towers", system, metric, difference_SQ, seed))
    return {"evaluation": rows, "paired": paired}


def compare_evaluations(
    a: Sequence[Path], b: Sequence[Path], *, labels: tuple[str, str] = ("a", "b"), seed: int = 0
) -> list[dict[str, Any]]:
    """Compare the towers of two configurations, each trained with the same seeds in the same order: a - b.

    Args:
        a: `evaluation` artifacts of the first configuration, one a seed.
        b: Those of the second.
        labels: What the rows call them.
        seed: Of the resamples.

    Returns:
        Rows `a, b, slice, metric, difference, low, high, n`; an interval without 0 tells them apart.

    Raises:
        ArtifactError: If one is not a finished evaluation.
        EvaluationError: If the counts of seeds differ, or they are not of the same queries and metrics.
    """
    if len(a) != len(b):
        raise EvaluationError(
            f"{len(a)} and {len(b)} evaluations cannot be paired by seed; give as many of each"
        )
    tables = _read([*a, *b])
    metrics = [metric for system, metric in _names(tables[0]) if system == "towers"]
    rows = []
    for metric in metrics:
        value_SQ = _stack(tables, "towers", metric)
        rows.append(_difference(*labels, metric, value_SQ[: len(a)] - value_SQ[len(a) :], seed))
    return rows


def _difference(a: str, b: str, metric: str, difference_SQ: Floats, seed: int) -> dict[str, Any]:
    found = combine_seeds(difference_SQ, resamples=RESAMPLES, seed=seed)
    row = {"a": a, "b": b, "slice": "all", "metric": metric, "difference": found.value}
    return row | {"low": found.low, "high": found.high, "n": found.n}


def _read(evaluations: Sequence[Path]) -> list[pd.DataFrame]:
    """Return for each evaluation a table of queries × (system, metric), NaN where a metric is not defined."""
    if not evaluations:
        raise EvaluationError("no evaluation to combine; give one for each seed")
    tables = []
    for path in evaluations:
        Artifact.read(path, "evaluation")
        values = pd.read_parquet(path / "per_query.parquet")
        tables.append(values.pivot(index="query_id", columns=["system", "metric"], values="value"))
    first = tables[0]
    for path, table in zip(evaluations, tables, strict=True):
        same = table.index.equals(first.index) and set(table.columns) == set(first.columns)
        if not same or not (table[first.columns].isna() == first.isna()).all(axis=None):
            raise EvaluationError(
                f"{path} and {evaluations[0]} are not of the same queries, systems and metrics; "
                "evaluate both on the same data with the same configuration"
            )
    return tables


def _names(table: pd.DataFrame) -> list[tuple[str, str]]:
    systems, metrics = (table.columns.get_level_values(level).tolist() for level in ("system", "metric"))
    return list(zip(systems, metrics, strict=True))


def _stack(tables: Sequence[pd.DataFrame], system: str, metric: str) -> Floats:
    return np.stack([table[system, metric].dropna().to_numpy(dtype=np.float64) for table in tables])
