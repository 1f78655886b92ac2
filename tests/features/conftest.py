"""A lake made of a few lists, and the examples built from it."""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.artifact import Artifact, publish
from features.examples import ExamplesConfig, build_examples
from features.tables import DOCUMENTS, IMPRESSIONS

T0 = datetime(2024, 1, 1, tzinfo=UTC)
CUT = T0 + timedelta(hours=24)
DAY = {"test_from": T0 + timedelta(hours=48), "validation_from": CUT}
Row = dict[str, Any]


def rows_of_list(impression: str, hour: float, docs: str, clicked: str = "", **columns: Any) -> list[Row]:
    """Return the rows of one list; each character of `docs` is a document."""
    row: Row = {
        "impression_id": impression,
        "query_id": impression,
        "query_text": "shoe",
        "user_id": "u",
        "timestamp": T0 + timedelta(hours=hour),
        "dwell_ms": None,
    } | columns
    return [
        {"position": place, "clicked": doc in clicked} | row | {"doc_id": doc}
        for place, doc in enumerate(docs, 1)
    ]


def held_out_lists() -> list[Row]:
    """Return a validation and a test list of two queries, so that every split has its parts."""
    return [
        *rows_of_list("v1", 30, "ab", "a", query_text="shoe", user_id="v"),
        *rows_of_list("v2", 31, "ab", "b", query_text="hat", user_id="w"),
        *rows_of_list("t1", 50, "ab", "a", query_text="shoe", user_id="v"),
        *rows_of_list("t2", 51, "ab", "b", query_text="hat", user_id="w"),
    ]


def write_lake(path: Path, rows: Iterable[Row], documents: Iterable[Row] | None = None) -> Path:
    rows = list(rows)
    documents = [{"doc_id": doc} for doc in "abcdefgh"] if documents is None else list(documents)
    extra = [pa.field("session_id", pa.string())] if any("session_id" in row for row in rows) else []
    features = [pa.field("brand", pa.string())] if any("brand" in row for row in documents) else []
    days: dict[str, list[Row]] = {}
    for row in rows:
        days.setdefault(row["timestamp"].date().isoformat(), []).append(row)
    with publish(path, "lake", {}) as staging:
        for day, of_day in days.items():
            folder = staging / "impressions" / f"date={day}"
            folder.mkdir(parents=True)
            pq.write_table(
                pa.Table.from_pylist(of_day, pa.schema([*IMPRESSIONS, *extra])), folder / "0.parquet"
            )
        if documents:
            (staging / "documents").mkdir()
            full = [{"title": f"title {row['doc_id']}", "text": ""} | row for row in documents]
            pq.write_table(
                pa.Table.from_pylist(full, pa.schema([*DOCUMENTS, *features])),
                staging / "documents" / "0.parquet",
            )
    return path


class Built:
    """An examples artifact and its files as lists of rows."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.counts = artifact.content["counts"]

    def __getattr__(self, name: str) -> list[Row]:
        rows: list[Row] = pq.read_table(self.artifact.path / f"{name}.parquet").to_pylist()
        return rows


@pytest.fixture(scope="session")
def shown() -> Callable[..., list[Row]]:
    """`rows_of_list`."""
    return rows_of_list


@pytest.fixture(scope="session")
def later() -> Callable[[], list[Row]]:
    """`held_out_lists`."""
    return held_out_lists


@pytest.fixture(scope="session")
def cut() -> datetime:
    """The first moment of validation, where nothing else is said."""
    return CUT


@pytest.fixture(scope="session")
def build_in() -> Callable[..., Built]:
    """Return a function that writes a lake of rows into a folder, and beside it the examples."""

    def from_rows(
        folder: Path, rows: Iterable[Row], *, documents: Iterable[Row] | None = None, **config: Any
    ) -> Built:
        lake = write_lake(folder / "lake", rows, documents)
        settings = ExamplesConfig(**({"query": "text", "split": DAY} | config))
        return Built(build_examples(lake, folder / "examples", settings))

    return from_rows


@pytest.fixture
def build(tmp_path: Path, build_in: Callable[..., Built]) -> Callable[..., Built]:
    """Return a function that builds the examples of rows, where the test has its files."""

    def from_rows(rows: Iterable[Row], **options: Any) -> Built:
        return build_in(tmp_path, rows, **options)

    return from_rows
