import json
from pathlib import Path
from typing import Any

import pytest

from features.engine import EngineConfig, connect
from features.lake import IngestConfig, ingest
from features.readers import RawTables, UbiSource, read


def event(
    action: str, query: str | None, doc: str | None = None, ordinal: Any = None, **fields: Any
) -> dict[str, Any]:
    attributes: dict[str, Any] = {"object": {"object_id": doc}, "position": {"ordinal": ordinal}}
    return {
        "action_name": action,
        "query_id": query,
        "client_id": "client",
        "user_id": "",
        "timestamp": "2024-12-10T00:01:29.378Z",
        "event_attributes": attributes,
    } | fields


def open_log(folder: Path, lines: list[Any], **options: Any) -> tuple[UbiSource, RawTables]:
    (folder / "log.ndjson").write_text("\n".join(json.dumps(line) for line in lines))
    (folder / "documents.jsonl").write_text("".join(f'{{"doc_id": "{d}", "title": "{d}"}}\n' for d in "abc"))
    documents = {"path": folder / "documents.jsonl"}
    source = UbiSource(format="ubi", path=[folder / "log.ndjson"], documents=documents, **options)
    return source, read(source, connect(EngineConfig(threads=1)))


def rows(tables: RawTables, *columns: str) -> list[tuple[Any, ...]]:
    found = tables.impressions.order_by("row").select(*columns).to_pyarrow().to_pylist()
    return [tuple(row.values()) for row in found]


def test_the_text_of_a_query_is_found_wherever_the_log_has_it(tmp_path: Path) -> None:
    lines = [
        {"index": {"_index": "ubi_queries", "_id": "1"}},
        {"query_id": "q1", "user_query": "from the record", "timestamp": "2024-12-10T00:00:00Z"},
        {"create": {"_index": "ubi_events"}},
        event("impression", "q1", "a"),
        event("impression", "q2", "a", user_query="with the event"),
        event("search", "q3", message="from the search"),
        event("impression", "q3", "a", message="not this"),
        event("impression", "q4", "a"),
    ]
    _, tables = open_log(tmp_path, lines)
    assert rows(tables, "query_text", "user_id", "impression_id") == [
        ("from the record", "client", "q1"),
        ("with the event", "client", "q2"),
        ("from the search", "client", "q3"),
        (None, "client", "q4"),
    ]
    assert tables.ignored == {"bulk action": 2, "event: search": 1, "query": 1}


def test_lists_that_count_from_zero_and_from_one_may_be_in_one_log(tmp_path: Path) -> None:
    lines = [
        event("impression", "zero", "a", 0),
        event("impression", "zero", "b", 1),
        event("impression", "one", "a", "1"),
        event("impression", "one", "b", 2),
        event("impression", "none", "b"),
        event("impression", "bad", "b", "top"),
    ]
    _, tables = open_log(tmp_path, lines)
    assert rows(tables, "position", "reason") == [
        (1, None),
        (2, None),
        (1, None),
        (2, None),
        (None, None),
        (None, "invalid_position"),
    ]
    _, tables = open_log(tmp_path, lines, first_position=1)
    assert rows(tables, "position", "reason")[:2] == [(None, "invalid_position"), (1, None)]


def test_clicks_are_joined_and_those_on_nothing_shown_are_refused(tmp_path: Path) -> None:
    lines = [
        event("impression", "q", "a", 1),
        event("impression", "q", "b", 2),
        event("click", "q", "b"),
        event("click", "q", "b"),
        event("click", "q", "c"),
        event("click", None, "a"),
        event("add_to_cart", "q", "a"),
    ]
    source, _ = open_log(tmp_path, lines)
    counts = ingest(source, tmp_path / "lake", IngestConfig(engine=EngineConfig(threads=1))).content[
        "impressions"
    ]
    assert (counts["input"], counts["accepted"], counts["clicks"], counts["click_events"]) == (4, 2, 1, 4)
    assert counts["quarantined"] == {"click_not_shown": 1, "missing_id": 1}


def test_without_impression_actions_every_click_is_a_row(tmp_path: Path) -> None:
    lines = [event("buy", "q", "a", 3), event("impression", "q", "b", 1)]
    _, tables = open_log(tmp_path, lines, impression_actions=[], click_actions=["buy"])
    assert tables.clicks is None
    assert rows(tables, "doc_id", "clicked", "position") == [("a", True, 3)]


def test_another_field_may_say_who_it_was(tmp_path: Path) -> None:
    _, tables = open_log(tmp_path, [event("impression", "q", "a", session_id="s")], user="session_id")
    assert rows(tables, "user_id") == [("s",)]
    _, tables = open_log(tmp_path, [event("impression", "q", "a")], user="user_id")
    assert rows(tables, "user_id") == [(None,)]


@pytest.mark.parametrize(
    ("file", "queries", "shown", "clicks", "duplicates"),
    [
        ("ubi_queries_events_srw.ndjson.gz", 473, 1_999, 287, 0),
        ("ubi_events.json.gz", None, 2_051, 342, 18),
    ],
)
def test_the_sample_logs_are_accounted_for(
    shared_data: Path,
    tmp_path: Path,
    file: str,
    queries: int | None,
    shown: int,
    clicks: int,
    duplicates: int,
) -> None:
    folder = shared_data / "esci-ubi"
    documents = {
        "path": folder / "ubi_ecommerce_products.json.gz",
        "columns": {"doc_id": "asin", "text": ["description", "bullet_points"]},
        "features": ["brand", "color", "price", "category"],
    }
    source = UbiSource(format="ubi", path=[folder / file], documents=documents)
    lake = ingest(source, tmp_path / "lake", IngestConfig(unknown_documents="keep"))
    counts = lake.content["impressions"]
    orphans = counts["quarantined"]["click_not_shown"]
    assert (counts["input"] - orphans, counts["click_events"]) == (shown, clicks)
    assert (counts["duplicates"], orphans) == (duplicates, 41)
    assert lake.content["ignored"].get("query") == queries
    assert lake.content["documents"]["accepted"] == 6_764
