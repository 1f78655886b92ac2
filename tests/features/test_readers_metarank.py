import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from features.engine import EngineConfig, connect
from features.errors import SchemaError
from features.lake import IngestConfig, ingest
from features.readers import MetarankSource, RawTables, read


def item(name: str, **fields: Any) -> dict[str, Any]:
    listed = [{"name": key, "value": value} for key, value in fields.items()]
    return {"event": "item", "id": f"i{name}", "item": name, "timestamp": "1636907100000", "fields": listed}


def ranking(name: str, items: list[Any], user: str = "u") -> dict[str, Any]:
    shown = [{"id": shown} for shown in items]
    return {
        "event": "ranking",
        "id": name,
        "items": shown,
        "user": user,
        "timestamp": "1636993839000",
        "fields": [],
    }


def interaction(ranking: str | None, item: str, kind: str = "click") -> dict[str, Any]:
    return {"event": "interaction", "id": "x", "item": item, "ranking": ranking, "type": kind, "user": "u"}


def open_events(path: Path, events: list[Any], **options: Any) -> tuple[MetarankSource, RawTables]:
    path.write_text("\n".join(json.dumps(event) for event in events))
    source = MetarankSource(format="metarank", path=[path], **options)
    return source, read(source, connect(EngineConfig(threads=1)))


FILMS = [
    item("1", title="Toys", description="A film", genres=["comedy", "drama"], budget=2.5e7, director="x"),
    item("2", title="Cars", budget=0),
]


def test_fields_of_an_item_are_features_by_the_type_of_their_values(tmp_path: Path) -> None:
    _, tables = open_events(tmp_path / "log.jsonl", [*FILMS, ranking("r", ["1"])])
    assert tables.features == ("budget", "director", "genres")
    columns = ("doc_id", "title", "text", *tables.features)
    assert [
        tuple(r.values()) for r in tables.documents.order_by("row").select(*columns).to_pyarrow().to_pylist()
    ] == [
        ("1", "Toys", "A film", 2.5e7, "x", ["comedy", "drama"]),
        ("2", "Cars", "", 0.0, None, None),
    ]


def test_which_fields_are_text_and_features_is_configurable(tmp_path: Path) -> None:
    options = {"title": "director", "text": ["title", "description"], "features": {"cost": "budget"}}
    _, tables = open_events(tmp_path / "log.jsonl", [*FILMS, ranking("r", ["1"])], **options)
    first = tables.documents.order_by("row").to_pyarrow().to_pylist()[0]
    assert (first["title"], first["text"], first["cost"]) == ("x", "Toys\nA film", 2.5e7)
    with pytest.raises(SchemaError, match=r"'cost'.*budget, description"):
        open_events(tmp_path / "log.jsonl", [*FILMS, ranking("r", ["1"])], features=["cost"])


def test_a_list_has_a_row_for_each_item_in_its_place(tmp_path: Path) -> None:
    _, tables = open_events(tmp_path / "log.jsonl", [*FILMS, ranking("r", ["2", 1, 1.0], "someone")])
    columns = ("impression_id", "user_id", "doc_id", "position", "timestamp", "query_text")
    time = datetime(2021, 11, 15, 16, 30, 39)
    assert [
        tuple(r.values())
        for r in tables.impressions.order_by("position").select(*columns).to_pyarrow().to_pylist()
    ] == [
        ("r", "someone", "2", 1, time, None),
        ("r", "someone", "1", 2, time, None),
        ("r", "someone", "1", 3, time, None),
    ]


def test_every_event_is_an_impression_a_click_a_document_refused_or_ignored(tmp_path: Path) -> None:
    events = [
        *FILMS,
        ranking("r", ["1", "2", "unheard of"]),
        ranking("empty", []),
        interaction("r", "1"),
        interaction("r", "1"),
        interaction("r", "3"),
        interaction(None, "1"),
        interaction("r", "2", "purchase"),
        {"event": "user", "id": "u"},
        {"no": "event"},
    ]
    source, _ = open_events(tmp_path / "log.jsonl", events)
    lake = ingest(source, tmp_path / "lake", IngestConfig(engine=EngineConfig(threads=1)))
    counts = lake.content["impressions"]
    assert (counts["input"], counts["accepted"], counts["clicks"], counts["click_events"]) == (6, 2, 1, 4)
    assert counts["quarantined"] == {
        "click_not_shown": 1,
        "invalid_value": 1,
        "missing_id": 1,
        "unknown_document": 1,
    }
    assert lake.content["ignored"] == {"interaction: purchase": 1, "no event": 1, "user": 1}


def test_other_interactions_are_clicks_when_configured(tmp_path: Path) -> None:
    events = [*FILMS, ranking("r", ["1"]), interaction("r", "1", "purchase")]
    _, tables = open_events(tmp_path / "log.jsonl", events, interactions="purchase")
    assert tables.clicks is not None
    assert tables.clicks.count().to_pyarrow().as_py() == 1


def test_a_log_without_rankings_says_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=r"no event 'ranking'.*has: 2 item"):
        open_events(tmp_path / "log.jsonl", FILMS)


def test_ranklens_is_accounted_for_to_the_last_row(shared_data: Path, tmp_path: Path) -> None:
    source = MetarankSource(format="metarank", path=[shared_data / "ranklens" / "events.jsonl.gz"])
    lake = ingest(source, tmp_path / "lake", IngestConfig())
    counts = lake.content["impressions"]
    assert (counts["input"], counts["accepted"], counts["duplicates"]) == (235_200, 234_507, 0)
    assert counts["quarantined"] == {"unknown_document": 693}
    assert (counts["lists"], counts["click_events"]) == (9_800, 46_125)
    assert lake.content["documents"] == {
        "input": 2_512,
        "accepted": 2_512,
        "duplicates": 0,
        "quarantined": {},
        "repaired_text": 8,
    }
    quarantine = pq.read_table(lake.path / "quarantine")
    raw = [json.loads(row) for row in quarantine["raw"].to_pylist()]
    assert len({row["doc_id"] for row in raw}) == 8
    assert counts["clicks"] + sum(row["clicked"] == "true" for row in raw) == 46_125
    tags = pq.read_table(lake.path / "documents", columns=["tags"])["tags"].to_pylist()
    assert any("comedinha de velhinhos engraçada" in row for row in tags)
