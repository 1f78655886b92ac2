"""A small examples artifact that towers can learn: every query names a colour and a thing."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from features.artifact import Artifact, publish
from towers.evaluate import EvaluateConfig
from towers.two_tower import TowersConfig, build_two_tower

COLOURS = ("red", "green", "blue", "black", "white", "yellow")
THINGS = ("shoe", "lamp", "chair", "kettle", "scarf")
COPIES = 2
TIMESTAMP = pa.timestamp("us", tz="UTC")


def _documents() -> pd.DataFrame:
    rows = [
        {"doc_id": f"{colour}-{thing}-{copy}", "title": f"{colour} {thing}", "text": f"model {copy}"}
        for colour in COLOURS
        for thing in THINGS
        for copy in range(COPIES)
    ]
    documents = pd.DataFrame(rows).sort_values("doc_id", ignore_index=True)
    documents["content_key"] = documents["title"] + documents["text"]
    documents["impressions"] = documents["clicks"] = 10
    documents["ctr"] = 0.5
    documents["sampling_probability"] = 1 / len(documents)
    documents["cold"] = False
    return documents


def _train(impressions: int) -> pa.Table:
    random = np.random.default_rng(0)
    rows = []
    for number in range(impressions):
        colour, thing = random.choice(COLOURS), random.choice(THINGS)
        other = random.choice([name for name in COLOURS if name != colour])
        rows.append(
            {
                "impression_id": f"i{number:05}",
                "query_key": f"{colour} {thing}",
                "query_text": f"{colour} {thing}",
                "history": [],
                "user_id": f"u{number % 40}",
                "positive_doc_id": f"{colour}-{thing}-{random.integers(COPIES)}",
                "unclicked_doc_ids": [f"{other}-{thing}-{copy}" for copy in range(COPIES)],
                "weight": 1.0,
                "timestamp": pd.Timestamp("2024-01-01", tz="UTC") + pd.Timedelta(minutes=number),
            }
        )
    strings = [(name, pa.string()) for name in ("impression_id", "query_key", "query_text")]
    ids = pa.list_(pa.string())
    schema = pa.schema(
        [
            *strings,
            ("history", ids),
            ("user_id", pa.string()),
            ("positive_doc_id", pa.string()),
            ("unclicked_doc_ids", ids),
            ("weight", pa.float64()),
            ("timestamp", TIMESTAMP),
        ]
    )
    return pa.Table.from_pylist(rows, schema)


def _validation() -> tuple[pa.Table, pa.Table]:
    rows, lists = [], []
    for number, (colour, thing) in enumerate((colour, thing) for colour in COLOURS for thing in THINGS):
        relevant = [f"{colour}-{thing}-{copy}" for copy in range(COPIES)]
        other = COLOURS[(COLOURS.index(colour) + 1) % len(COLOURS)]
        text = f"{colour} {thing}"
        rows.append(
            {"query_id": f"q{number}", "query_key": text, "query_text": text, "history": [], "user_id": None}
            | {"relevant_doc_ids": relevant, "relevance": [1.0] * COPIES, "excluded_doc_ids": []}
            | {"seen_query": True, "frequency": 1, "timestamp": pd.Timestamp("2024-02-01", tz="UTC")}
        )
        shown = [relevant[0], f"{other}-{thing}-0", f"{other}-{thing}-1"]
        lists.append(
            {"impression_id": f"v{number}", "query_id": f"q{number}", "doc_ids": shown}
            | {"clicked": [True, False, False]}
        )
    ids, text_type = pa.list_(pa.string()), pa.string()
    schema = pa.schema(
        [
            *((name, text_type) for name in ("query_id", "query_key", "query_text", "user_id")),
            *((name, ids) for name in ("history", "relevant_doc_ids", "excluded_doc_ids")),
            ("relevance", pa.list_(pa.float64())),
            ("seen_query", pa.bool_()),
            ("frequency", pa.int64()),
            ("timestamp", TIMESTAMP),
        ]
    )
    list_schema = pa.schema(
        [
            ("impression_id", text_type),
            ("query_id", text_type),
            ("doc_ids", ids),
            ("clicked", pa.list_(pa.bool_())),
        ]
    )
    return pa.Table.from_pylist(rows, schema), pa.Table.from_pylist(lists, list_schema)


def write_coloured_things(target: Path, impressions: int) -> Path:
    """Write the artifact with so many impressions, one click each."""
    train = _train(impressions)
    validation, lists = _validation()
    with publish(target, "examples", {"impressions": impressions}) as staging:
        _documents().to_parquet(staging / "documents.parquet", index=False)
        pq.write_table(train, staging / "train.parquet")
        pairs = train.select(["query_key", "positive_doc_id"]).to_pandas().drop_duplicates()
        pairs = pairs.rename(columns={"positive_doc_id": "doc_id"})
        pairs.to_parquet(staging / "known_positives.parquet", index=False)
        for split in ("validation", "test"):
            pq.write_table(validation, staging / f"{split}.parquet")
            pq.write_table(lists, staging / f"{split}_lists.parquet")
    return target


@pytest.fixture(scope="session")
def coloured_things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An examples artifact of 30 text queries over 60 documents, 400 clicks."""
    return write_coloured_things(tmp_path_factory.mktemp("examples") / "coloured", 400)


Rows = Sequence[tuple[Any, ...]]


class FourDocuments:
    """An examples artifact small enough to evaluate by hand, and towers to evaluate on it."""

    config = EvaluateConfig(metrics=("R@2", "nDCG@2", "Success@1"), decision="nDCG@2", bootstrap=200)
    documents = (  # doc_id, title, clicks, ctr, cold
        ("d0", "red shoe", 9, 0.3, False),
        ("d1", "blue shoe", 4, 0.6, False),
        ("d2", "red hat", 2, 0.2, False),
        ("d3", "green tea", 0, 0.1, True),
    )
    queries = (  # query_id, text, relevant, relevance, excluded, frequency
        ("q0", "red shoe", ["d0"], [1.0], [], 6),
        ("q1", "shoe", ["d1", "d0"], [2.0, 1.0], [], 2),
        ("q2", "tea", ["d3"], [1.0], ["d0"], 0),
        ("q3", "nobody clicked", [], [], [], 0),
    )
    lists = (  # impression_id, query_id, doc_ids, clicked
        ("i0", "q0", ["d1", "d0"], [False, True]),
        ("i1", "q2", ["d3", "d2"], [True, False]),
        ("i2", "q0", ["d0", "d3", "d2"], [False, False, True]),
        ("i3", "q3", ["d0", "d3"], [True, False]),
    )
    train = (("red shoe", 6), ("shoe", 2), ("hat", 1))

    def write_examples(
        self,
        path: Path,
        documents: Rows = documents,
        queries: Rows = queries,
        lists: Rows = lists,
        train: Rows = train,
    ) -> Path:
        """Write the artifact of these rows, in the order of the columns above."""
        text = pa.string()
        tables = {
            "documents": pa.table(
                {
                    "doc_id": pa.array([row[0] for row in documents], text),
                    "title": pa.array([row[1] for row in documents], text),
                    "text": pa.array([""] * len(documents), text),
                    "clicks": pa.array([row[2] for row in documents], pa.int64()),
                    "ctr": pa.array([row[3] for row in documents], pa.float64()),
                    "cold": pa.array([row[4] for row in documents], pa.bool_()),
                }
            ),
            "test": pa.table(
                {
                    "query_id": pa.array([row[0] for row in queries], text),
                    "query_key": pa.array([row[1] for row in queries], text),
                    "query_text": pa.array([row[1] for row in queries], text),
                    "history": pa.array([[]] * len(queries), pa.list_(pa.string())),
                    "user_id": pa.array([None] * len(queries), text),
                    "relevant_doc_ids": pa.array([row[2] for row in queries], pa.list_(pa.string())),
                    "relevance": pa.array([row[3] for row in queries], pa.list_(pa.float64())),
                    "excluded_doc_ids": pa.array([row[4] for row in queries], pa.list_(pa.string())),
                    "seen_query": pa.array([row[5] > 0 for row in queries], pa.bool_()),
                    "frequency": pa.array([row[5] for row in queries], pa.int64()),
                    "timestamp": pa.array([pd.Timestamp("2026-01-02", tz="UTC")] * len(queries), TIMESTAMP),
                }
            ),
            "test_lists": pa.table(
                {
                    "impression_id": pa.array([row[0] for row in lists], text),
                    "query_id": pa.array([row[1] for row in lists], text),
                    "doc_ids": pa.array([row[2] for row in lists], pa.list_(pa.string())),
                    "clicked": pa.array([row[3] for row in lists], pa.list_(pa.bool_())),
                }
            ),
            "train": pa.table({"query_key": pa.array([key for key, n in train for _ in range(n)], text)}),
        }
        with publish(path, "examples", {}) as staging:
            for name, table in tables.items():
                pq.write_table(table, staging / f"{name}.parquet")
        return path

    def write_checkpoint(
        self,
        path: Path,
        documents: Rows = documents,
        weight: float | None = None,
        kind: str = "checkpoint",
    ) -> Path:
        """Real, untrained towers; every weight set to `weight` if it is given."""
        torch.manual_seed(0)
        frame = pd.DataFrame(
            {
                "doc_id": [row[0] for row in documents],
                "title": [row[1] for row in documents],
                "text": [""] * len(documents),
                "clicks": [row[2] for row in documents],
                "ctr": [row[3] for row in documents],
            }
        )
        queries = pd.DataFrame(
            {"query_text": ["red shoe", "tea"], "history": [[], []], "user_id": [None, None]}
        )
        model = build_two_tower(TowersConfig(dimension=8), frame, queries)
        if weight is not None:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.fill_(weight)
        with publish(path, kind, {}) as staging:
            model.save(staging if kind == "bundle" else staging / "two_tower")
        return path

    def inputs(self, folder: Path, **tables: Rows) -> tuple[Path, Path]:
        """Write both into a folder; the checkpoint is of all documents."""
        examples = self.write_examples(folder / "examples", **tables)
        return examples, self.write_checkpoint(folder / "checkpoint")

    def result_of(self, artifact: Artifact) -> dict[str, Any]:
        result: dict[str, Any] = json.loads((artifact.path / "evaluation.json").read_text())
        return result

    def cell(self, rows: list[dict[str, Any]], system: str, part: str, metric: str) -> dict[str, Any]:
        wanted = (system, part, metric)
        found = [row for row in rows if (row["system"], row["slice"], row["metric"]) == wanted]
        assert len(found) == 1
        return found[0]


@pytest.fixture(scope="session")
def four() -> FourDocuments:
    """Four documents, four test queries, four shown lists."""
    return FourDocuments()
