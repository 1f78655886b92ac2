from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.artifact import Artifact
from features.engine import EngineConfig
from features.errors import SchemaError
from features.lake import IngestConfig, ingest
from features.readers import TablesSource
from features.tables import IMPRESSIONS

SHOWN = {
    "impression_id": ["l", "l", "l", None],
    "query_id": ["q", "q", None, "q"],
    "timestamp": [datetime(2024, 5, 1, tzinfo=UTC)] * 4,
    "doc_id": ["1", "2", "2", "1"],
    "clicked": [True, False, True, False],
    "device": ["phone", "phone", "phone", "phone"],
}


def lake_of(folder: Path, shown: dict[str, Any], documents: dict[str, Any] | None = None) -> Artifact:
    pq.write_table(pa.table(shown), folder / "impressions.parquet")
    pq.write_table(
        pa.table(documents or {"doc_id": [1.0, 2.0], "title": ["a", None], "price": [3, 4]}),
        folder / "documents.parquet",
    )
    source = TablesSource(
        format="tables", impressions=folder / "impressions.parquet", documents=folder / "documents.parquet"
    )
    return ingest(source, folder / "lake", IngestConfig(engine=EngineConfig(threads=1)))


def test_tables_are_checked_like_every_other_source(tmp_path: Path) -> None:
    lake = lake_of(tmp_path, SHOWN)
    counts = lake.content["impressions"]
    assert (counts["input"], counts["accepted"], counts["duplicates"], counts["clicks"]) == (4, 2, 1, 2)
    assert counts["quarantined"] == {"missing_id": 1}
    written = pq.read_table(lake.path / "impressions" / "date=2024-05-01", partitioning=None)
    assert written.schema.equals(pa.schema([*IMPRESSIONS, pa.field("device", pa.string())]))
    documents = pq.read_table(lake.path / "documents").to_pylist()
    assert [(row["doc_id"], row["title"], row["price"]) for row in documents] == [
        ("1", "a", 3.0),
        ("2", "", 4.0),
    ]


def test_a_lake_can_be_read_as_tables_again(tmp_path: Path) -> None:
    first = lake_of(tmp_path, SHOWN)
    source = TablesSource(
        format="tables",
        impressions=first.path / "impressions" / "*" / "*.parquet",
        documents=first.path / "documents" / "*.parquet",
    )
    second = ingest(source, tmp_path / "again", IngestConfig())
    parts = ("impressions/date=2024-05-01/part-0.parquet", "documents/part-0.parquet")
    for part in parts:
        assert first.manifest["files"][part] == second.manifest["files"][part]


def test_a_missing_column_and_a_wrong_type_are_named(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="no column 'clicked' of impressions"):
        lake_of(tmp_path, {name: column for name, column in SHOWN.items() if name != "clicked"})
    with pytest.raises(SchemaError, match="column 'timestamp' is string, not a timestamp"):
        lake_of(tmp_path, {**SHOWN, "timestamp": ["2024-05-01"] * 4})


@pytest.mark.parametrize("name", ["source", "outcome"])
def test_a_further_column_never_hides_a_column_of_ours(tmp_path: Path, name: str) -> None:
    with pytest.raises(SchemaError, match=f"context column '{name}' has the name of another column"):
        lake_of(tmp_path, {**SHOWN, name: ["mail"] * 4})
    with pytest.raises(SchemaError, match=f"feature '{name}' has the name of another column"):
        lake_of(tmp_path, SHOWN, {"doc_id": ["1", "2"], "title": ["a", "b"], name: ["x", "y"]})
