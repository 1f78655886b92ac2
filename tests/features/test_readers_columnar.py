import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from features.engine import EngineConfig, connect
from features.errors import SchemaError
from features.readers import ColumnarSource, RawTables, read

DOCUMENTS = "doc_id,title\na,Tea\nb,Coffee\n12,Cocoa\n"


@pytest.fixture
def catalogue(tmp_path: Path) -> Path:
    path = tmp_path / "documents.csv"
    path.write_text(DOCUMENTS)
    return path


def open_source(log: Path | list[Path], catalogue: Path, **options: Any) -> RawTables:
    documents = {"path": catalogue, **options.pop("documents", {})}
    source = ColumnarSource(format="columnar", path=log, documents=documents, **options)
    return read(source, connect(EngineConfig(threads=1)))


def rows(table: Any, *columns: str) -> list[Any]:
    found = table.order_by("part", "row").select(*columns).to_pyarrow().to_pylist()
    return [row[columns[0]] if len(columns) == 1 else tuple(row.values()) for row in found]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_csv_json_lines_and_parquet_say_the_same(tmp_path: Path, catalogue: Path) -> None:
    records = [
        {"l": "x", "q": "grüner tee", "item": "a", "ts": "2024-05-01T10:00:00Z", "rank": 1, "click": True},
        {"l": "x", "q": "grüner tee", "item": "b", "ts": "2024-05-01T10:00:00Z", "rank": 2, "click": False},
    ]
    names = list(records[0])
    lines = [",".join(str(record[name]) for name in names) for record in records]
    csv = write(tmp_path / "log.csv", "\n".join([",".join(names), *lines]))
    jsonl = write(tmp_path / "log.jsonl", "\n".join(json.dumps(record) for record in records))
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "log.parquet")
    columns = {
        "impression_id": "l",
        "query_text": "q",
        "doc_id": "item",
        "timestamp": "ts",
        "position": "rank",
    }
    columns["clicked"] = "click"
    read_rows = [
        rows(
            open_source(path, catalogue, columns=columns).impressions,
            *("impression_id", "query_text", "doc_id", "timestamp", "position", "clicked", "reason"),
        )
        for path in (csv, jsonl, tmp_path / "log.parquet")
    ]
    time = datetime(2024, 5, 1, 10)
    assert read_rows[0] == [
        ("x", "grüner tee", "a", time, 1, True, None),
        ("x", "grüner tee", "b", time, 2, False, None),
    ]
    assert read_rows[1] == read_rows[0]
    assert read_rows[2] == read_rows[0]


def test_many_files_are_one_log_and_may_order_their_columns_differently(
    tmp_path: Path, catalogue: Path
) -> None:
    write(tmp_path / "log-1.csv", "doc_id,timestamp,impression_id,position\na,1700000000,x,1\n")
    write(tmp_path / "log-2.csv", "position,impression_id,timestamp,doc_id,dwell_ms\n2,x,1700000000,b,30\n")
    tables = open_source(tmp_path / "log-*.csv", catalogue)
    assert rows(tables.impressions, "source", "row", "doc_id", "position", "dwell_ms") == [
        ("log-1.csv", 1, "a", 1, None),
        ("log-2.csv", 1, "b", 2, 30),
    ]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2024-05-01T10:00:00Z", datetime(2024, 5, 1, 10)),
        ("2024-05-01 10:00:00", datetime(2024, 5, 1, 8)),
        ("2024-05-01T10:00:00.250+05:30", datetime(2024, 5, 1, 4, 30, 0, 250_000)),
        ("2024-05-01 10:00:00 +0100", datetime(2024, 5, 1, 9)),
        ("2024-05-01", datetime(2024, 4, 30, 22)),
        ("20240501", datetime(2024, 4, 30, 22)),
        (1714557600, datetime(2024, 5, 1, 10)),
        ("1714557600", datetime(2024, 5, 1, 10)),
        (1714557600.5, datetime(2024, 5, 1, 10, 0, 0, 500_000)),
        (1714557600123, datetime(2024, 5, 1, 10, 0, 0, 123_000)),
        ("1714557600123456", datetime(2024, 5, 1, 10, 0, 0, 123_456)),
        ("infinity", None),
        ("epoch", None),
        ("2024-02-30", None),
        ("01/05/2024", None),
        (1e300, None),
        (True, None),
    ],
)
def test_times_are_read_in_many_forms_and_zones(
    tmp_path: Path, catalogue: Path, value: Any, expected: datetime | None
) -> None:
    log = write(tmp_path / "log.jsonl", json.dumps({"doc_id": "a", "timestamp": value}))
    tables = open_source(log, catalogue, timezone="Europe/Berlin")
    reason = None if expected else "unreadable_timestamp"
    assert rows(tables.impressions, "timestamp", "reason") == [(expected, reason)]


def test_parquet_times_keep_their_zone_and_take_the_stated_one_without(
    tmp_path: Path, catalogue: Path
) -> None:
    noon = datetime(2024, 5, 1, 12)
    for name, kind in (("zoned", pa.timestamp("ns", tz="UTC")), ("naive", pa.timestamp("ms"))):
        value = noon.replace(tzinfo=UTC) if kind.tz else noon
        pq.write_table(
            pa.table({"doc_id": ["a"], "timestamp": pa.array([value], kind)}), tmp_path / f"{name}.parquet"
        )
    paths = [tmp_path / "zoned.parquet", tmp_path / "naive.parquet"]
    tables = open_source(paths, catalogue, timezone="Europe/Berlin")
    assert rows(tables.impressions, "timestamp") == [noon, datetime(2024, 5, 1, 10)]


@pytest.mark.parametrize(
    ("log", "separator"),
    [
        ('q,shown,clicked\ntea,"[""a"", 12, null]","[12]"\n', "|"),
        ("q,shown,clicked\ntea,\"['a', '12', null]\",['12']\n", "|"),
        ("q,shown,clicked\ntea,a|12.0|,12\n", "|"),
        ("q,shown,clicked\ntea,a; 12;,12\n", ";"),
    ],
)
def test_lists_in_csv_may_be_json_or_separated(
    tmp_path: Path, catalogue: Path, log: str, separator: str
) -> None:
    header, line = log.splitlines()
    path = write(tmp_path / "log.csv", f"{header},timestamp\n{line},2024-05-01\n")
    tables = open_source(path, catalogue, columns={"query_text": "q"}, list_separator=separator)
    assert rows(tables.impressions, "impression_id", "doc_id", "position", "reason") == [
        ("log.csv:1", "a", 1, None),
        ("log.csv:1", "12", 2, None),
        ("log.csv:1", None, 3, "missing_id"),
    ]
    assert tables.clicks is not None
    assert rows(tables.clicks, "impression_id", "doc_id") == [("log.csv:1", "12")]


def test_lists_are_taken_as_they_are_from_json_lines_and_parquet(tmp_path: Path, catalogue: Path) -> None:
    record = {"timestamp": "2024-05-01", "shown": ["a", "b"], "clicked": ["b"], "impression_id": 7}
    jsonl = write(tmp_path / "log.jsonl", json.dumps(record))
    pq.write_table(pa.Table.from_pylist([record]), tmp_path / "log.parquet")
    for path in (jsonl, tmp_path / "log.parquet"):
        tables = open_source(path, catalogue)
        assert rows(tables.impressions, "impression_id", "doc_id", "position") == [
            ("7", "a", 1),
            ("7", "b", 2),
        ]
        assert tables.clicks is not None
        assert rows(tables.clicks, "impression_id", "doc_id") == [("7", "b")]


def test_a_list_that_is_none_is_refused_whole(tmp_path: Path, catalogue: Path) -> None:
    lines = [
        {"timestamp": "2024-05-01", "shown": [], "clicked": []},
        {"timestamp": "2024-05-01", "shown": "[a", "clicked": None},
        {"timestamp": "2024-05-01", "shown": ["a"], "clicked": {"doc": "a"}},
        {"timestamp": "2024-05-01", "shown": ["a"], "clicked": None},
    ]
    log = write(tmp_path / "log.jsonl", "\n".join(json.dumps(line) for line in lines))
    tables = open_source(log, catalogue)
    assert rows(tables.impressions, "row") == [4]
    assert tables.refused.order_by("row").select("row", "detail").to_pyarrow().to_pylist() == [
        {"row": 1, "detail": "shown is empty or no list"},
        {"row": 2, "detail": "shown is empty or no list"},
        {"row": 3, "detail": "clicked is no list"},
    ]


def test_without_clicked_or_position_every_row_is_a_click_of_its_own(tmp_path: Path, catalogue: Path) -> None:
    log = write(tmp_path / "log.csv", "query_text,doc_id,timestamp\ntea,a,1700000000\ntea,a,1700000000\n")
    assert rows(open_source(log, catalogue).impressions, "impression_id", "clicked", "position") == [
        ("log.csv:1", True, None),
        ("log.csv:2", True, None),
    ]


def test_rows_of_one_query_are_one_list_where_lists_have_no_id(tmp_path: Path, catalogue: Path) -> None:
    log = write(
        tmp_path / "log.csv", "query_id,doc_id,timestamp,clicked\nq,a,1700000000,1\nq,b,1700000000,0\n"
    )
    assert rows(open_source(log, catalogue).impressions, "impression_id", "query_id") == [
        ("q", "q"),
        ("q", "q"),
    ]


def test_rows_that_name_no_list_are_a_mistake_of_the_mapping(tmp_path: Path, catalogue: Path) -> None:
    log = write(tmp_path / "log.csv", "doc_id,timestamp,clicked\na,1700000000,1\n")
    with pytest.raises(SchemaError, match=r"map source.columns.impression_id"):
        open_source(log, catalogue)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(12, "12"), (12.0, "12"), (1e3, "1000"), ("12.0", "12.0"), ("007", "007"), (0.5, "0.5")],
)
def test_ids_that_are_numbers_become_the_text_a_person_would_write(
    tmp_path: Path, catalogue: Path, value: Any, expected: str
) -> None:
    log = write(tmp_path / "log.jsonl", json.dumps({"doc_id": value, "timestamp": 1700000000}))
    assert rows(open_source(log, catalogue).impressions, "doc_id") == [expected]
    pq.write_table(pa.table({"doc_id": [value], "timestamp": [1700000000]}), tmp_path / "log.parquet")
    assert rows(open_source(tmp_path / "log.parquet", catalogue).impressions, "doc_id") == [expected]


def test_a_float_in_csv_is_the_integer_it_was(tmp_path: Path, catalogue: Path) -> None:
    log = write(tmp_path / "log.csv", "doc_id,timestamp\n12.0,1700000000\n007,1700000000\n")
    assert rows(open_source(log, catalogue).impressions, "doc_id") == ["12", "007"]


def test_context_columns_are_carried_along(tmp_path: Path, catalogue: Path) -> None:
    log = write(tmp_path / "log.csv", "doc_id,timestamp,device\na,1700000000,phone\n")
    tables = open_source(log, catalogue, context=["device"])
    assert tables.context == ("device",)
    assert rows(tables.impressions, "device") == ["phone"]


@pytest.mark.parametrize("name", ["source", "ROW", "outcome", "date", "position", "known_id"])
def test_a_context_column_never_hides_a_column_of_ours(tmp_path: Path, catalogue: Path, name: str) -> None:
    log = write(tmp_path / "log.csv", f"doc_id,timestamp,{name}\na,1700000000,newsletter\n")
    with pytest.raises(SchemaError, match=f"context column '{name}' has the name of another column"):
        open_source(log, catalogue, context=[name])


@pytest.mark.parametrize("name", ["source", "outcome", "reason", "Title", "Clicks", "untyped"])
def test_a_feature_never_hides_a_column_of_ours(tmp_path: Path, name: str) -> None:
    log = write(tmp_path / "log.csv", "doc_id,timestamp\na,1700000000\n")
    catalogue = write(tmp_path / "documents.csv", f"doc_id,{name}\na,import\n")
    with pytest.raises(SchemaError, match=f"feature '{name}' .* rename it: features: {{my_{name}: {name}}}"):
        open_source(log, catalogue, documents={"features": [name]})
    renamed = open_source(log, catalogue, documents={"features": {"origin": name}})
    assert rows(renamed.documents, "origin") == ["import"]


def test_two_features_that_differ_in_case_alone_are_refused(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", "doc_id,timestamp\na,1700000000\n")
    catalogue = write(tmp_path / "documents.csv", "doc_id,brand,Brand\na,x,y\n")
    with pytest.raises(SchemaError, match="feature 'Brand' has the name of another column"):
        open_source(log, catalogue, documents={"features": ["brand", "Brand"]})


def test_a_wrong_column_name_lists_those_that_there_are(tmp_path: Path, catalogue: Path) -> None:
    log = write(tmp_path / "log.csv", "doc_id,timestamp,q\na,1700000000,tea\n")
    with pytest.raises(SchemaError, match=r"log.csv has no column 'query'.*: doc_id, timestamp, q$"):
        open_source(log, catalogue, columns={"query_text": "query"})
    with pytest.raises(SchemaError, match=r"documents.csv has no column 'brand'.*: doc_id, title$"):
        open_source(log, catalogue, documents={"features": ["brand"]})


def test_features_are_typed_by_their_values_or_as_stated(tmp_path: Path) -> None:
    records = [
        {"doc_id": 1, "title": "a", "price": 3, "tags": ["x", "y"], "size": 42, "new": True, "mixed": 1},
        {"doc_id": 2, "title": "b", "price": 2.5, "tags": [], "size": 43, "new": None, "mixed": "one"},
    ]
    catalogue = write(tmp_path / "documents.jsonl", "\n".join(json.dumps(record) for record in records))
    log = write(tmp_path / "log.csv", "doc_id,timestamp\n1,1700000000\n")
    options = {
        "features": {"cost": "price", "tags": "tags", "size": "size", "new": "new", "mixed": "mixed"},
        "feature_types": {"size": "string"},
    }
    tables = open_source(log, catalogue, documents=options)
    assert tables.features == ("cost", "tags", "size", "new", "mixed")
    assert rows(tables.documents, *tables.features) == [
        (3.0, ["x", "y"], "42", "true", "1"),
        (2.5, [], "43", None, "one"),
    ]


def test_several_columns_make_one_text(tmp_path: Path) -> None:
    catalogue = write(tmp_path / "documents.csv", "doc_id,title,a,b\n1,T,x,y\n2,T,,y\n3,T,,\n")
    log = write(tmp_path / "log.csv", "doc_id,timestamp\n1,1700000000\n")
    tables = open_source(log, catalogue, documents={"columns": {"text": ["a", "b"]}})
    assert rows(tables.documents, "text") == ["x\ny", "y", ""]


@pytest.mark.parametrize("name", ["doc_id", "ctr", "cold"])
def test_a_feature_may_not_hide_another_column(tmp_path: Path, catalogue: Path, name: str) -> None:
    log = write(tmp_path / "log.csv", "doc_id,timestamp\na,1700000000\n")
    with pytest.raises(SchemaError, match="rename it"):
        open_source(log, catalogue, documents={"features": {name: "title"}})


def test_rows_of_csv_that_are_no_rows_are_refused_and_the_others_read(
    tmp_path: Path, catalogue: Path
) -> None:
    log = tmp_path / "log.csv"
    log.write_bytes(b'doc_id,timestamp\na,1700000000\nb\nc,1,2\n\xff,1700000000\n"b","1700000000"\n')
    tables = open_source(log, catalogue)
    assert rows(tables.impressions, "doc_id") == ["a", "b"]
    refused = tables.refused.order_by("row").to_pyarrow().to_pylist()
    assert [(row["row"], row["reason"], row["table"]) for row in refused] == [
        (2, "invalid_value", "impressions"),
        (3, "invalid_value", "impressions"),
        (4, "invalid_value", "impressions"),
    ]


def test_an_invalid_line_of_json_does_not_stop_the_others(tmp_path: Path, catalogue: Path) -> None:
    log = tmp_path / "log.jsonl"
    good = b'{"doc_id": "a", "timestamp": 1700000000}'
    log.write_bytes(b"\r\n".join([good, b'{"doc_id": ', b"[1]", b"", b'{"doc_id": "\xff"}', b'"\x1f"', good]))
    tables = open_source(log, catalogue)
    assert rows(tables.impressions, "doc_id") == ["a", "a"]
    assert tables.refused.count().to_pyarrow().as_py() == 4
    assert set(tables.refused.reason.to_pyarrow().to_pylist()) == {"invalid_json"}


def test_a_log_without_a_catalogue_says_that_it_needs_one(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="a log needs a catalogue"):
        ColumnarSource(format="columnar", path=tmp_path / "log.csv")


def test_names_of_columns_that_differ_in_case_are_two_columns(tmp_path: Path, catalogue: Path) -> None:
    log = write(tmp_path / "log.csv", "doc_id,Q,q,timestamp\na,upper,lower,1700000000\n")
    assert rows(open_source(log, catalogue, columns={"query_text": "q"}).impressions, "query_text") == [
        "lower"
    ]
    twice = write(tmp_path / "twice.csv", "doc_id,q,q,timestamp\na,upper,lower,1700000000\n")
    with pytest.raises(SchemaError, match="two columns 'q'"):
        open_source(twice, catalogue, columns={"query_text": "q"})


def test_hostile_names_and_values_are_data(tmp_path: Path, catalogue: Path) -> None:
    name = "q\"'; DROP TABLE log; --/~x"
    log = write(
        tmp_path / "it's a log.jsonl", json.dumps({"doc_id": "a'b", "timestamp": 1700000000, name: "tea'"})
    )
    tables = open_source(log, catalogue, columns={"query_text": name}, context=[name])
    assert rows(tables.impressions, "doc_id", "query_text", name) == [("a'b", "tea'", "tea'")]


def test_a_position_that_counts_from_zero_is_shifted_when_said(tmp_path: Path, catalogue: Path) -> None:
    log = write(tmp_path / "log.csv", "impression_id,doc_id,timestamp,position\nx,a,1700000000,0\n")
    assert rows(open_source(log, catalogue, first_position=0).impressions, "position") == [1]
    assert rows(open_source(log, catalogue).impressions, "position", "reason") == [(None, "invalid_position")]


def test_a_time_zone_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="is no time zone"):
        ColumnarSource(
            format="columnar", path=tmp_path / "log.csv", timezone="Mars/Olympus", documents={"path": "x"}
        )
