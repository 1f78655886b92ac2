"""Which form of the query tower a bundle serves with: the tower, its graph, or its graph with int8 weights.

A graph in float32 gives the tower's vectors, in about half the time for a transformer and one query
(benchmarks/serving.py). int8 weights halve it again but give other vectors, so they are served only if the
documents found are measured to be as good: nDCG@10 of validation queries against their clicked documents, by
exact search, may be worse by no more than `EQUAL_WITHIN` at the lower end of the paired 95 % interval.

Shapes: Q queries, N documents, D embedding.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from features.errors import ConfigError
from serving.bundle import open_query_encoder
from serving.encode import QueryEncoder
from serving.onnx import FILE, Precision, is_possible, write_graph
from serving.search import Query
from serving.tune import exact_search
from serving.vectors import Vectors
from towers.intervals import Paired, paired
from towers.metrics import Judgements, parse_metric, per_query
from towers.two_tower import TwoTower

GraphSetting = Literal["auto", "off", "float32", "int8"]
EQUAL_WITHIN = 0.002
"""Loss of nDCG@10 that still counts as equal."""

_METRIC = parse_metric("nDCG@10")
_LEAST_QUERIES = 200
_MOST_QUERIES = 2_000
_RESAMPLES = 1_000


@dataclass(frozen=True)
class Judged:
    """What int8 is measured on.

    Attributes:
        queries: Validation queries with their relevant documents (`relevant_doc_ids`).
        doc_ids: The id of each catalogue row.
        document_ND: The catalogue's vectors.
    """

    queries: pd.DataFrame
    doc_ids: list[str]
    document_ND: Vectors


@dataclass(frozen=True)
class QueryForm:
    """What a bundle serves queries with.

    Attributes:
        encoder: It, opened.
        facts: What the manifest says of it: `kind` (torch, float32 or int8), and how int8 was measured.
        graph: The bytes of `query.onnx`; None where the tower itself encodes.
    """

    encoder: QueryEncoder
    facts: dict[str, Any]
    graph: bytes | None = None


def choose_form(towers: TwoTower, setting: GraphSetting, judged: Judged) -> QueryForm:
    """Make the graphs that the setting asks for, measure them and take one.

    Raises:
        ConfigError: If a graph is asked for that cannot be made, or int8 is asked for and measured worse.
    """
    if setting == "off" or (setting == "auto" and not is_possible(towers)):
        return QueryForm(QueryEncoder(towers), {"kind": "torch"})
    plain, graph = _made(towers, "float32")
    if setting == "float32" or (setting == "auto" and len(judged.queries) < _LEAST_QUERIES):
        return QueryForm(plain, {"kind": "float32"}, graph)
    rounded, rounded_graph = _made(towers, "int8")
    difference = _difference(rounded, plain, judged)
    equal = difference.low >= -EQUAL_WITHIN
    if setting == "int8" and not equal:
        raise ConfigError(
            f"index.query_onnx: int8 changes {_METRIC} by {difference.difference:+.4f} "
            f"[{difference.low:+.4f}, {difference.high:+.4f}] on {difference.n} validation queries, "
            f"more than {EQUAL_WITHIN}; use auto or float32"
        )
    measured = {
        "metric": str(_METRIC),
        "difference": difference.difference,
        "low": difference.low,
        "high": difference.high,
        "queries": difference.n,
        "equal_within": EQUAL_WITHIN,
    }
    if equal:
        return QueryForm(rounded, {"kind": "int8", "int8": measured}, rounded_graph)
    return QueryForm(plain, {"kind": "float32", "int8": measured}, graph)


def _made(towers: TwoTower, precision: Precision) -> tuple[QueryEncoder, bytes]:
    with tempfile.TemporaryDirectory(prefix="twotower-graph-") as folder:
        path = Path(folder) / FILE
        write_graph(towers, path, precision)
        return open_query_encoder(Path(folder), towers), path.read_bytes()


def _difference(rounded: QueryEncoder, plain: QueryEncoder, judged: Judged) -> Paired:
    """Return nDCG@10 with int8 weights minus that with float32."""
    rows = {doc_id: row for row, doc_id in enumerate(judged.doc_ids)}
    frame = judged.queries.head(_MOST_QUERIES)
    pairs = [
        (place, rows[doc_id])
        for place, relevant in enumerate(frame["relevant_doc_ids"])
        for doc_id in relevant
        if doc_id in rows
    ]
    query, document = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    judgements = Judgements(len(frame), query, document, np.ones(len(pairs)))
    asked = [
        Query(text, tuple(history), None)
        for text, history in zip(frame["query_text"], frame["history"], strict=True)
    ]

    def gains(encoder: QueryEncoder) -> Any:
        found = exact_search(encoder.encode(asked), judged.document_ND, _METRIC.cutoff)
        ranked_QK = np.stack([neighbours.rows for neighbours in found])
        return per_query(_METRIC, judgements.gains(ranked_QK), judgements)[:, None]

    return paired(gains(rounded), gains(plain), resamples=_RESAMPLES, seed=0)[0]
