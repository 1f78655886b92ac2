from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from features.artifact import publish
from features.errors import ArtifactError
from towers.intervals import combine_seeds
from towers.metrics import EvaluationError
from towers.seeds import combine_evaluations, compare_evaluations

QUERIES = 40


def write_evaluation(path: Path, towers: np.ndarray, *, shift: int = 0, metric: str = "R@10") -> Path:
    """An evaluation whose baseline has 0.5 everywhere, and whose ListAUC is there for half of the queries."""
    query_id = [f"q{n + shift:02}" for n in range(len(towers))]
    parts = [("towers", metric, towers), ("bm25", metric, np.full(len(towers), 0.5))]
    half = len(towers) // 2
    parts.append(("towers", "ListAUC", towers[:half]))
    frames = [
        pd.DataFrame({"query_id": query_id[: len(v)], "system": s, "metric": m, "value": v})
        for s, m, v in parts
    ]
    with publish(path, "evaluation", {}) as staging:
        pd.concat(frames).sample(frac=1.0, random_state=0).to_parquet(
            staging / "per_query.parquet", index=False
        )
    return path


def three(folder: Path, name: str, gain: float) -> tuple[list[Path], np.ndarray]:
    rng = np.random.default_rng(0)
    values = rng.random(QUERIES) + gain + rng.normal(0, 0.01, (3, QUERIES))
    return [write_evaluation(folder / f"{name}{s}", values[s]) for s in range(3)], values


def test_the_value_is_the_mean_over_seeds_and_queries_with_the_interval_of_both(tmp_path):
    paths, values = three(tmp_path, "a", 0.0)
    combined = combine_evaluations(paths)
    rows = {(row["system"], row["metric"]): row for row in combined["evaluation"]}
    expected = combine_seeds(values, resamples=1000, seed=0)
    found = rows["towers", "R@10"]
    assert found["value"] == pytest.approx(values.mean())
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high))
    assert rows["towers", "ListAUC"]["n"] == QUERIES // 2
    assert rows["bm25", "R@10"]["value"] == 0.5


def test_the_towers_are_paired_with_each_baseline_on_the_metrics_that_both_have(tmp_path):
    paths, values = three(tmp_path, "a", 0.0)
    (pair,) = combine_evaluations(paths)["paired"]
    assert (pair["a"], pair["b"], pair["metric"], pair["slice"]) == ("towers", "bm25", "R@10", "all")
    assert pair["difference"] == pytest.approx(values.mean() - 0.5)


def test_two_configurations_are_compared_query_by_query_and_seed_by_seed(tmp_path):
    better, first = three(tmp_path, "a", 0.1)
    worse, second = three(tmp_path, "b", 0.0)
    row = compare_evaluations(better, worse, labels=("hinge", "softmax"))[0]
    assert (row["a"], row["b"]) == ("hinge", "softmax")
    assert row["difference"] == pytest.approx(first.mean() - second.mean())
    assert 0.05 < row["low"] <= row["difference"] <= row["high"] < 0.15


def test_evaluations_of_other_queries_or_metrics_are_refused(tmp_path):
    values = np.random.default_rng(1).random(QUERIES)
    first = write_evaluation(tmp_path / "first", values)
    others = [
        write_evaluation(tmp_path / "shifted", values, shift=1),
        write_evaluation(tmp_path / "renamed", values, metric="R@100"),
        write_evaluation(tmp_path / "fewer", values[:-1]),
    ]
    for other in others:
        with pytest.raises(EvaluationError, match=r"not of the same queries"):
            combine_evaluations([first, other])
        with pytest.raises(EvaluationError, match=r"not of the same queries"):
            compare_evaluations([first], [other])


def test_unequal_numbers_of_seeds_and_none_at_all_are_refused(tmp_path):
    path = write_evaluation(tmp_path / "only", np.ones(4))
    with pytest.raises(EvaluationError, match=r"2 and 1 evaluations"):
        compare_evaluations([path, path], [path])
    with pytest.raises(EvaluationError, match=r"no evaluation"):
        combine_evaluations([])


def test_a_directory_that_is_no_evaluation_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match=r"not a finished artifact"):
        combine_evaluations([tmp_path])
