import gzip
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.artifact import Artifact
from features.engine import EngineConfig, connect
from features.errors import SchemaError
from features.lake import IngestConfig, check_account, ingest, read_documents, read_impressions
from features.readers import ColumnarSource
from features.tables import DOCUMENTS, IMPRESSIONS, QUARANTINE

NOW = datetime(2024, 6, 1, tzinfo=UTC)
CONFIG = IngestConfig(now=NOW, engine=EngineConfig(threads=1))
Row = dict[str, Any]


def row(list_id: Any = "l1", doc: Any = "a", **columns: Any) -> Row:
    """Return a shown document as a log may have it."""
    return {
        "impression_id": list_id,
        "query_text": "tea",
        "user_id": "u",
        "timestamp": "2024-05-01T10:00:00Z",
        "doc_id": doc,
        "position": 1,
        "clicked": 0,
    } | columns


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text(
        "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8"
    )
    return path


CATALOGUE = [{"doc_id": doc, "title": f"Title {doc}", "text": "text"} for doc in "abc"]


@pytest.fixture
def lake_of(tmp_path: Path) -> Callable[..., Artifact]:
    def build(
        rows: list[Any], catalogue: list[Any] = CATALOGUE, config: IngestConfig = CONFIG, **source: Any
    ) -> Artifact:
        log = write_lines(tmp_path / "log.jsonl", rows)
        documents = {
            "path": write_lines(tmp_path / "documents.jsonl", catalogue),
            **source.pop("documents", {}),
        }
        return ingest(
            ColumnarSource(format="columnar", path=[log], documents=documents, **source),
            tmp_path / "lake",
            config,
        )

    return build


def impressions(lake: Artifact) -> list[Row]:
    table = read_impressions(lake.path, connect(EngineConfig(threads=1)))
    rows: list[Row] = table.to_pyarrow().to_pylist()
    return rows


def documents(lake: Artifact) -> dict[str, Row]:
    table = read_documents(lake.path, connect(EngineConfig(threads=1)))
    return {found["doc_id"]: found for found in table.to_pyarrow().to_pylist()}


def quarantine(lake: Artifact) -> list[Row]:
    rows: list[Row] = pq.read_table(lake.path / "quarantine").to_pylist()
    return rows


def reasons(lake: Artifact, table: str = "impressions") -> dict[str, int]:
    found: dict[str, int] = lake.content[table]["quarantined"]
    return found


def test_a_lake_has_the_columns_of_the_contract_and_a_folder_for_each_day(lake_of: Any) -> None:
    lake = lake_of(
        [row(), row("l2", "b", timestamp="2024-05-02T00:00:00+02:00"), row("l3", timestamp=1714694400)]
    )
    files = sorted(lake.manifest["files"])
    assert files == [
        "documents/part-0.parquet",
        "impressions/date=2024-05-01/part-0.parquet",
        "impressions/date=2024-05-03/part-0.parquet",
        "quarantine/part-0.parquet",
    ]
    assert pq.read_schema(lake.path / files[1]).equals(IMPRESSIONS)
    assert pq.read_schema(lake.path / files[0]).equals(DOCUMENTS)
    assert pq.read_schema(lake.path / files[3]).equals(QUARANTINE)
    assert [found["timestamp"] for found in impressions(lake)] == [
        datetime(2024, 5, 1, 10, tzinfo=UTC),
        datetime(2024, 5, 1, 22, tzinfo=UTC),
        datetime(2024, 5, 3, tzinfo=UTC),
    ]


def test_every_row_is_accepted_a_duplicate_or_refused_with_a_reason(lake_of: Any) -> None:
    lake = lake_of(
        [
            row(),
            row(),
            row(doc=None),
            row(doc="b", timestamp=None),
            row(doc="b", timestamp="yesterday"),
            row(doc="b", timestamp="2024-06-03T00:00:00Z"),
            row(doc="b", position="third"),
            row(doc="b", position=0),
            row(doc="b", clicked="perhaps"),
            row(doc="unheard of"),
            '{"impression_id": broken',
            row("l2", "c"),
        ]
    )
    assert reasons(lake) == {
        "future_timestamp": 1,
        "invalid_json": 1,
        "invalid_position": 2,
        "invalid_value": 1,
        "missing_id": 1,
        "missing_timestamp": 1,
        "unknown_document": 1,
        "unreadable_timestamp": 1,
    }
    counts = lake.content["impressions"]
    assert (counts["input"], counts["accepted"], counts["duplicates"], counts["lists"]) == (12, 2, 1, 2)
    refused = {found["row"]: found for found in quarantine(lake)}
    assert refused[5]["detail"] == "yesterday"
    assert json.loads(refused[5]["raw"])["doc_id"] == "b"
    assert json.loads(refused[10]["raw"])["doc_id"] == "unheard of"
    assert refused[11]["raw"] == '{"impression_id": broken'
    assert {found["source"] for found in refused.values()} == {"log.jsonl"}


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.builds(
            row,
            st.sampled_from(["l1", "l2", 3, 3.0, None, ""]),
            st.sampled_from(["a", "b", "x", None]),
            timestamp=st.sampled_from([1714694400, "2024-05-01", "2999-01-01", "?", None, 1e300, -1]),
            position=st.sampled_from([1, 2, 0, "2", "x", None, 1.5, 1e99]),
            clicked=st.sampled_from([True, False, "true", "x", None, 2, -1]),
            dwell_ms=st.sampled_from([None, 10, -1, "x", 1e300]),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_no_mixture_of_bad_values_loses_a_row(lake_of: Any, rows: list[Row]) -> None:
    lake = lake_of([row("whole", "a"), *rows])
    counts = lake.content["impressions"]
    assert counts["input"] == len(rows) + 1
    assert counts["accepted"] == len(impressions(lake))
    assert counts["accepted"] + counts["duplicates"] + len(quarantine(lake)) == counts["input"]


def test_a_click_on_any_duplicate_is_a_click_on_the_impression(lake_of: Any) -> None:
    lake = lake_of([row(dwell_ms=5), row(clicked=1, position=2, dwell_ms=70), row(user_id="v")])
    assert [(r["clicked"], r["position"], r["dwell_ms"]) for r in impressions(lake)] == [(True, 1, 70)]
    assert lake.content["impressions"]["duplicates"] == 2


def test_a_refused_row_is_no_duplicate_and_lends_no_click(lake_of: Any) -> None:
    lake = lake_of([row(), row(clicked=1, timestamp="2031-01-01T00:00:00Z")])
    assert [r["clicked"] for r in impressions(lake)] == [False]
    assert reasons(lake) == {"future_timestamp": 1}


def test_the_newest_row_of_a_document_wins_then_the_last(lake_of: Any) -> None:
    catalogue = [
        {"doc_id": "a", "title": "new", "updated_at": "2024-02-01"},
        {"doc_id": "a", "title": "old", "updated_at": "2024-01-01"},
        {"doc_id": "a", "title": "undated"},
        {"doc_id": "b", "title": "first"},
        {"doc_id": "b", "title": "last"},
    ]
    lake = lake_of([row()], catalogue)
    assert {doc: found["title"] for doc, found in documents(lake).items()} == {"a": "new", "b": "last"}
    assert lake.content["documents"]["duplicates"] == 3


def test_documents_without_id_content_or_readable_values_are_refused(lake_of: Any) -> None:
    catalogue = [
        *CATALOGUE,
        {"title": "nameless"},
        {"doc_id": "d"},
        {"doc_id": "e", "title": "e", "updated_at": "?"},
        {"doc_id": "f", "title": "f", "price": "dear"},
        {"doc_id": "g", "price": 3},
        "[]",
    ]
    options = {"features": ["price"], "feature_types": {"price": "double"}}
    lake = lake_of([row()], catalogue, documents=options)
    assert reasons(lake, "documents") == {
        "empty_document": 1,
        "invalid_json": 1,
        "invalid_value": 1,
        "missing_id": 1,
        "unreadable_timestamp": 1,
    }
    assert documents(lake)["g"]["price"] == 3.0
    assert lake.content["documents"]["input"] == 9


def test_unknown_documents_are_kept_when_asked_for(lake_of: Any) -> None:
    config = CONFIG.model_copy(update={"unknown_documents": "keep"})
    lake = lake_of([row(doc="unheard of")], config=config)
    assert lake.content["impressions"]["accepted"] == 1


def test_equal_input_gives_an_equal_digest_wherever_and_whenever(lake_of: Any, tmp_path: Path) -> None:
    rows = [row(f"l{n % 50}", doc, position=n) for n, doc in enumerate("abc" * 400)]
    threads = EngineConfig(threads=4)
    first = lake_of(rows)
    again = lake_of(rows, config=IngestConfig(now=datetime(2025, 1, 1, tzinfo=UTC), engine=threads))
    assert first.digest == again.digest
    assert first.digest != lake_of(rows[1:]).digest


def test_impressions_are_sorted_by_time_list_and_place(lake_of: Any) -> None:
    rows = [row("l2", "a", position=2), row("l2", "b", position=1), row("l1", "c", position=3)]
    rows += [row("l0", "a", timestamp="2024-05-01T09:00:00Z")]
    assert [(r["impression_id"], r["doc_id"]) for r in impressions(lake_of(rows[::-1]))] == [
        ("l0", "a"),
        ("l1", "c"),
        ("l2", "b"),
        ("l2", "a"),
    ]


def test_misread_text_is_repaired_and_counted_once_a_document(lake_of: Any) -> None:
    catalogue = [
        {"doc_id": "a", "title": "gã©rard", "tags": ["engraã§ada", None, "São Paulo"]},
        {"doc_id": "b", "title": "ã"},
    ]
    lake = lake_of([row(query_text="lã¤mmer")], catalogue, documents={"features": ["tags"]})
    assert documents(lake)["a"] | {"tags": None} == {
        "doc_id": "a",
        "title": "gérard",
        "text": "",
        "image": None,
        "updated_at": None,
        "tags": None,
    }
    assert documents(lake)["a"]["tags"] == ["engraçada", None, "São Paulo"]
    assert documents(lake)["b"]["tags"] is None
    assert impressions(lake)[0]["query_text"] == "lämmer"
    assert lake.content["documents"]["repaired_text"] == 1
    assert lake.content["impressions"]["repaired_text"] == 1


def test_one_document_and_one_query_are_a_lake(lake_of: Any) -> None:
    lake = lake_of([row()], CATALOGUE[:1])
    assert (lake.content["impressions"]["accepted"], lake.content["documents"]["accepted"]) == (1, 1)


@pytest.mark.parametrize(
    ("rows", "catalogue", "message"),
    [
        ([], CATALOGUE, "log.jsonl is empty"),
        ([row()], [], "documents.jsonl is empty"),
        ([row(doc="x")], CATALOGUE, "none of 1 rows was accepted .1 unknown_document."),
        ([row()], [{"doc_id": "a"}], "no title, text or feature"),
    ],
)
def test_an_empty_log_or_catalogue_is_a_one_line_error_and_nothing_is_written(
    lake_of: Any, tmp_path: Path, rows: list[Row], catalogue: list[Row], message: str
) -> None:
    with pytest.raises(SchemaError, match=message) as error:
        lake_of(rows, catalogue)
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["documents.jsonl", "log.jsonl"]


def test_a_csv_log_with_a_header_and_no_rows_is_empty(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("doc_id,timestamp\n")
    documents = {"path": write_lines(tmp_path / "documents.jsonl", CATALOGUE)}
    source = ColumnarSource(format="columnar", path=[tmp_path / "log.csv"], documents=documents)
    with pytest.raises(SchemaError, match="the log is empty"):
        ingest(source, tmp_path / "lake", CONFIG)
    assert not (tmp_path / "lake").exists()


def test_an_earlier_lake_survives_a_failed_ingest(lake_of: Any) -> None:
    first = lake_of([row()])
    with pytest.raises(SchemaError):
        lake_of([])
    assert Artifact.read(first.path, "lake", verify=True).digest == first.digest


def test_a_log_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    whole = gzip.compress("".join(json.dumps(row(f"l{n}")) + "\n" for n in range(1000)).encode())
    (tmp_path / "log.jsonl.gz").write_bytes(whole[:-20])
    documents = {"path": write_lines(tmp_path / "documents.jsonl", CATALOGUE)}
    source = ColumnarSource(format="columnar", path=[tmp_path / "log.jsonl.gz"], documents=documents)
    with pytest.raises(SchemaError, match=r"log.jsonl.gz is cut off"):
        ingest(source, tmp_path / "lake", CONFIG)
    assert not (tmp_path / "lake").exists()


def test_row_groups_do_not_depend_on_how_rows_arrive(tmp_path: Path) -> None:
    from features.lake_files import _ParquetFile

    schema = pa.schema([pa.field("n", pa.int64(), nullable=False)])
    whole = pa.RecordBatch.from_pydict({"n": list(range(300_000))}, schema=schema)
    for name, size in (("a", 300_000), ("b", 7_001)):
        with _ParquetFile(tmp_path / name, schema) as file:
            for start in range(0, 300_000, size):
                file.write(whole.slice(start, size))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert pq.read_table(tmp_path / "a")["n"].to_pylist() == list(range(300_000))


def test_an_account_that_does_not_add_up_is_a_defect() -> None:
    counts = {"input": 3, "accepted": 1, "duplicates": 0, "quarantined": {"missing_id": 1}}
    with pytest.raises(RuntimeError, match="lost or made up"):
        check_account(counts, "impressions")
