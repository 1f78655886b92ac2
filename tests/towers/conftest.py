"""A small examples artifact that towers can learn: every query names a colour and a thing."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.artifact import publish

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
