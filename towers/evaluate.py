"""Evaluation of a checkpoint: exact ranking of the full corpus, baselines beside it, slices, intervals.

Shapes: Q queries of a slice, S systems, M metrics.

The unit of every number is the query: a metric's value is its mean over the slice's queries, and `ListAUC` of
a query is the mean over its shown lists. Intervals and tests resample queries.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from features.artifact import Artifact, publish, sha256_of_file, write_json
from features.config import Config
from towers.baselines import SYSTEMS, SystemName, build_system
from towers.evaluation_set import EvaluationSet, ShownLists, read_qrels, read_test
from towers.intervals import bootstrap, paired
from towers.metrics import LIST_AUC, Floats, list_auc, parse_metric, per_query
from towers.ranking import DEFAULT_BLOCK, Ranking, rank
from towers.slices import Slice, build_slices
from towers.verdict import verdict


class EvaluateConfig(Config):
    """What is measured, and how sure one wants to be."""

    metrics: tuple[str, ...] = Field(
        default=("R@10", "R@100", "nDCG@10", "RR@10", "Success@10"),
        min_length=1,
        description="Metrics by ir_measures names; ListAUC is added where shown lists are held out.",
    )
    decision: str = Field(default="nDCG@10", description="The metric that the verdict is about.")
    systems: tuple[SystemName, ...] = Field(
        default=SYSTEMS, min_length=1, description="Systems in the table, in this order."
    )
    bootstrap: int = Field(
        default=1000, ge=100, le=100_000, description="Resamples behind each interval and paired test."
    )
    seed: int = Field(default=0, ge=0, description="Seed of the resamples and of the random baseline.")
    block: int = Field(
        default=DEFAULT_BLOCK, ge=1, description="Scores held at once; about 30 bytes of memory for each."
    )

    @field_validator("metrics")
    @classmethod
    def _metrics_are_known(cls, metrics: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(str(parse_metric(name)) for name in metrics))

    @field_validator("systems")
    @classmethod
    def _systems_are_distinct(cls, systems: tuple[SystemName, ...]) -> tuple[SystemName, ...]:
        return tuple(dict.fromkeys(systems))

    @model_validator(mode="after")
    def _decision_is_measured(self) -> Self:
        if self.decision not in (*self.metrics, LIST_AUC):
            raise ValueError(
                f"decision {self.decision!r} is not measured; metrics are {', '.join(self.metrics)}"
            )
        return self


@dataclass(frozen=True)
class Measured:
    """Per-query values of a slice.

    Attributes:
        name: Of the slice.
        metrics: M names.
        query_id: (Q,) ids.
        value: (Q, S, M); NaN where a metric is not defined for a query, whatever the system.
    """

    name: str
    metrics: tuple[str, ...]
    query_id: NDArray[np.object_]
    value: Floats


def evaluate(
    examples: Path, checkpoint: Path, target: Path, config: EvaluateConfig, *, qrels: Path | None = None
) -> Artifact:
    """Evaluate a checkpoint beside the baselines and write an `evaluation` artifact.

    Args:
        examples: The `examples` artifact: corpus, test queries, and what the baselines counted.
        checkpoint: A `checkpoint` or a `bundle` artifact.
        target: Where to publish.
        config: What is measured.
        qrels: Judged queries to evaluate on in place of the test table; Parquet, see `read_qrels`.

    Raises:
        ArtifactError: If an input is not a finished artifact.
        SchemaError: If a table does not have the shape that it should have.
        EvaluationError: If there is nothing to evaluate, or a system's scores are not finite.
    """
    inputs = Artifact.read(examples, "examples")
    model = Artifact.read(checkpoint)
    data = read_test(examples) if qrels is None else read_qrels(examples, qrels)
    cold = data.documents["cold"].to_numpy(dtype=bool)
    slices = build_slices(data.queries, data.judgements, cold, data.train_frequency)
    folder = checkpoint if model.kind == "bundle" else checkpoint / "two_tower"
    measured = measure(data, slices, folder, config)
    result = summarise(measured, config)
    content: dict[str, Any] = {
        "config": config.model_dump(mode="json"),
        "examples": inputs.digest,
        "checkpoint": model.digest,
        "qrels": None if qrels is None else sha256_of_file(qrels),
        "queries": data.counts,
        "slices": {part.name: len(part.rows) for part in slices},
        "verdict": result["verdict"],
    }
    with publish(target, "evaluation", content) as staging:
        write_json(staging / "evaluation.json", result)
        per_query_table(measured[0], config).to_parquet(staging / "per_query.parquet", index=False)
    return Artifact.read(target, "evaluation")


def measure(
    data: EvaluationSet, slices: Sequence[Slice], model: Path, config: EvaluateConfig
) -> list[Measured]:
    """Rank the corpus with every system and compute every metric of every slice that has a query."""
    depth = max(parse_metric(name).cutoff for name in config.metrics)
    shown = data.lists.by_query(len(data.queries))
    doc_ids = data.documents["doc_id"].tolist()
    values: dict[str, list[Floats]] = {part.name: [] for part in slices if len(part.rows)}
    for name in config.systems:
        system = build_system(name, data.documents, model, config.seed)
        ranking = rank(
            system, data.queries, doc_ids, depth, excluded=data.excluded, shown=shown, block=config.block
        )
        auc = _list_auc(ranking, data.lists)
        for part in slices:
            if len(part.rows):
                values[part.name].append(
                    _measure_slice(part, ranking, auc, _columns(part, data.lists, config))
                )
    query_id = data.queries["query_id"].to_numpy(dtype=object)
    return [
        Measured(
            part.name,
            _columns(part, data.lists, config),
            query_id[part.rows],
            np.stack(values[part.name], axis=1),
        )
        for part in slices
        if part.name in values
    ]


def summarise(measured: Sequence[Measured], config: EvaluateConfig) -> dict[str, Any]:
    """Turn per-query values into the content of `evaluation.json`."""
    evaluation: list[dict[str, Any]] = []
    comparisons: list[dict[str, Any]] = []
    for part in measured:
        evaluation += _intervals(part, config)
        if "towers" in config.systems:
            comparisons += _comparisons(part, config)
    judged = verdict(evaluation, comparisons, config.decision)
    return {"evaluation": evaluation, "paired": comparisons, "verdict": judged}


def per_query_table(measured: Measured, config: EvaluateConfig) -> pd.DataFrame:
    """Return `query_id, system, metric, value`, without the values that are not defined."""
    queries, systems, metrics = measured.value.shape
    table = pd.DataFrame(
        {
            "query_id": pd.Series(np.repeat(measured.query_id, systems * metrics), dtype="str"),
            "system": np.tile(np.repeat(np.array(config.systems, dtype=object), metrics), queries),
            "metric": np.tile(np.array(measured.metrics, dtype=object), queries * systems),
            "value": measured.value.ravel(),
        }
    )
    return table.dropna(subset=["value"], ignore_index=True)


def _columns(part: Slice, lists: ShownLists, config: EvaluateConfig) -> tuple[str, ...]:
    """Name the metrics of a slice: relevance restricted to cold documents says nothing about a shown list."""
    with_lists = len(lists.query) > 0 and part.name != "cold_documents"
    return (*config.metrics, LIST_AUC) if with_lists else config.metrics


def _measure_slice(part: Slice, ranking: Ranking, auc_Q: Floats, metrics: Sequence[str]) -> Floats:
    gain_QK = part.judgements.gains(ranking.documents[part.rows])
    columns = [
        auc_Q[part.rows] if name == LIST_AUC else per_query(parse_metric(name), gain_QK, part.judgements)
        for name in metrics
    ]
    return np.stack(columns, axis=1)


def _list_auc(ranking: Ranking, lists: ShownLists) -> Floats:
    """Return the mean over the lists of each query; NaN for a query without a list that has both."""
    queries = len(ranking.documents)
    value = list_auc(ranking.shown, lists.clicked, lists.documents.offsets)
    defined = np.isfinite(value)
    total = np.bincount(lists.query[defined], weights=value[defined], minlength=queries)
    count = np.bincount(lists.query[defined], minlength=queries)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _by_coverage(measured: Measured) -> list[tuple[list[int], NDArray[np.bool_]]]:
    """Group the metrics that are defined for the same queries; one that is defined for none is left out."""
    defined_QM = np.asarray(np.isfinite(measured.value).any(axis=1))
    groups: dict[bytes, list[int]] = {}
    for column in range(len(measured.metrics)):
        groups.setdefault(defined_QM[:, column].tobytes(), []).append(column)
    masks = ((columns, defined_QM[:, columns[0]]) for columns in groups.values())
    return [(columns, mask) for columns, mask in masks if mask.any()]


def _intervals(measured: Measured, config: EvaluateConfig) -> list[dict[str, Any]]:
    rows = []
    for columns, defined in _by_coverage(measured):
        value_QSM = measured.value[defined][:, :, columns]
        flat = value_QSM.reshape(len(value_QSM), -1)
        names = [(system, measured.metrics[column]) for system in config.systems for column in columns]
        found = bootstrap(flat, resamples=config.bootstrap, seed=config.seed)
        rows += [
            {"system": system, "slice": measured.name, "metric": metric, "value": interval.value}
            | {"low": interval.low, "high": interval.high, "n": interval.n}
            for (system, metric), interval in zip(names, found, strict=True)
        ]
    return sorted(rows, key=lambda row: config.systems.index(row["system"]))


def _comparisons(measured: Measured, config: EvaluateConfig) -> list[dict[str, Any]]:
    towers = config.systems.index("towers")
    others = [place for place in range(len(config.systems)) if place != towers]
    rows: list[dict[str, Any]] = []
    if not others:
        return rows
    for columns, defined in _by_coverage(measured):
        value_QSM = measured.value[defined][:, :, columns]
        other = value_QSM[:, others].reshape(len(value_QSM), -1)
        own = np.tile(value_QSM[:, towers], len(others))
        names = [(config.systems[place], measured.metrics[column]) for place in others for column in columns]
        found = paired(own, other, resamples=config.bootstrap, seed=config.seed)
        rows += [
            {"a": "towers", "b": system, "slice": measured.name, "metric": metric}
            | {"difference": test.difference, "low": test.low, "high": test.high, "p": test.p, "n": test.n}
            for (system, metric), test in zip(names, found, strict=True)
        ]
    return sorted(rows, key=lambda row: config.systems.index(row["b"]))
