import gc
import json
import subprocess
import sys
import threading
import time
import weakref
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from serving import query_log
from serving.api import ServeConfig
from serving.metrics import Metrics
from serving.query_log import Event, QueryLog, QueryLogConfig
from serving.search import Answer, Hit, Search

ODD = 'a "b" \\ {c} ü'
ANSWER = Answer([Hit("d1", 0.9, 1), Hit(ODD, 0.8, 2), Hit("d3", 0.7, 3)], 3, [], 1.0, 1.0)


def lines_of(directory: Path) -> list[dict]:
    files = sorted(directory.glob("*"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def counted(metrics: Metrics, outcome: str) -> float:
    return metrics.registry.get_sample_value("twotower_query_log_lines_total", {"outcome": outcome}) or 0.0


def event(timestamp: datetime | None = None) -> Event:
    return Event("q", "d1", "click", 1, "u1", timestamp or datetime.now(UTC))


def written(tmp_path: Path, config: QueryLogConfig, search: Search) -> list[dict]:
    log = QueryLog(tmp_path / "ubi", config, Metrics())
    log.start()
    log.served("q", "b" * 16, search, ANSWER)
    assert log.take([event()])
    log.stop()
    return lines_of(tmp_path / "ubi")


def test_a_query_its_documents_and_a_click_are_a_line_each(tmp_path):
    query, *shown, click = written(tmp_path, QueryLogConfig(), Search(text="Tea\n茶壶\0", user_id="u1", k=3))
    assert query["user_query"] == "Tea\n茶壶\0"
    assert query["query_attributes"] == {"bundle_id": "b" * 16, "mode": "dense", "k": 3}
    assert [line["event_attributes"]["object"]["object_id"] for line in shown] == ["d1", ODD, "d3"]
    assert [line["event_attributes"]["position"]["ordinal"] for line in shown] == [1, 2, 3]
    assert {line["action_name"] for line in shown} == {"impression"}
    expected = {"object": {"object_id": "d1", "object_id_field": "doc_id"}, "position": {"ordinal": 1}}
    assert click["event_attributes"] == shown[0]["event_attributes"] == expected
    assert click.keys() == shown[0].keys()
    assert click["action_name"] == "click"
    assert {line["query_id"] for line in (query, *shown, click)} == {"q"}
    assert {line["client_id"] for line in (query, *shown, click)} == {"u1"}


def test_users_and_depth_are_as_configured(tmp_path):
    lines = written(tmp_path, QueryLogConfig(users=False, impressions=1), Search(text="tea", user_id="u1"))
    assert len(lines) == 3
    assert {line["client_id"] for line in lines} == {None}
    assert "u1" not in json.dumps(lines)


def test_each_day_has_a_file_that_only_its_owner_reads(tmp_path):
    log = QueryLog(tmp_path, QueryLogConfig(), Metrics())
    day = datetime(2026, 1, 31, 23, 59, 59, 999_999, UTC)
    log.take([event(day), event(day + timedelta(microseconds=1)), event(day)])
    log.start()
    log.stop()
    assert [file.name for file in sorted(tmp_path.iterdir())] == [
        "ubi-2026-01-31.jsonl",
        "ubi-2026-02-01.jsonl",
    ]
    assert len((tmp_path / "ubi-2026-01-31.jsonl").read_text().splitlines()) == 2
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in tmp_path.iterdir())


def test_a_line_that_a_killed_process_left_half_written_spoils_no_other(tmp_path):
    now = datetime.now(UTC)
    file = tmp_path / f"ubi-{now:%Y-%m-%d}.jsonl"
    file.write_text('{"query_id": "ha')
    log = QueryLog(tmp_path, QueryLogConfig(), Metrics())
    log.take([event(now)])
    log.start()
    log.stop()
    half, whole = file.read_text().splitlines()
    assert half == '{"query_id": "ha'
    assert json.loads(whole)["query_id"] == "q"


def test_what_cannot_wait_is_dropped_and_counted_and_nobody_is_held_up(tmp_path):
    metrics = Metrics()
    log = QueryLog(tmp_path / "ubi", QueryLogConfig(max_waiting=5), metrics)  # nothing writes yet
    for n in range(7):
        log.served(f"q{n}", "b" * 16, Search(text="tea"), ANSWER)
    assert counted(metrics, "dropped") == 2
    assert not log.take([event()])
    assert counted(metrics, "dropped") == 3
    log.start()
    log.stop()
    assert counted(metrics, "written") == len(lines_of(tmp_path / "ubi")) == 5 * 4
    assert log.take([event()])


def test_what_cannot_be_written_is_said_once_and_written_when_it_can(tmp_path, caplog, monkeypatch, make):
    monkeypatch.setattr(query_log, "_RETRY_SECONDS", 0.05)
    metrics = Metrics()
    (tmp_path / "ubi").write_text("in the way")
    log = QueryLog(tmp_path / "ubi", QueryLogConfig(), metrics)
    log.start()
    log.served("first", "b" * 16, Search(text="tea"), ANSWER)
    make.wait_until(lambda: log.failure is not None)
    time.sleep(0.2)  # it is tried again meanwhile
    assert log.failure == "File exists"
    assert counted(metrics, "failed") == 4
    assert metrics.registry.get_sample_value("twotower_query_log_failing") == 1.0
    for n in range(450):
        log.served(f"q{n}", "b" * 16, Search(text="tea"), ANSWER)
    assert len([record for record in caplog.records if "cannot be written" in record.message]) == 1
    (tmp_path / "ubi").unlink()
    make.wait_until(lambda: log.failure is None)
    log.stop()
    assert metrics.registry.get_sample_value("twotower_query_log_failing") == 0.0
    assert counted(metrics, "written") == len(lines_of(tmp_path / "ubi")) == 451 * 4
    assert {line["query_id"] for line in lines_of(tmp_path / "ubi")} == {
        "first",
        *(f"q{n}" for n in range(450)),
    }


def test_what_could_not_be_written_to_the_end_is_counted_as_lost(tmp_path, caplog):
    metrics = Metrics()
    log = QueryLog(tmp_path / "removed" / "ubi", QueryLogConfig(), metrics)
    log.start()
    log.served("q", "b" * 16, Search(text="tea"), ANSWER)
    log.stop()
    assert counted(metrics, "dropped") == 4
    assert "cannot be written: No such file or directory" in caplog.text
    assert list(tmp_path.iterdir()) == []  # a store that was removed is not made anew


def test_events_are_refused_while_nothing_can_be_written_and_those_taken_before_are_kept(tmp_path, make):
    (tmp_path / "ubi").write_text("in the way")
    click = {"events": [{"query_id": "q", "doc_id": "d01"}]}
    with make.server(tmp_path) as client:
        assert client.post("/v1/events", json=click).status_code == 202
        make.wait_until(lambda: client.post("/v1/events", json=click).status_code == 503)
        refused = client.post("/v1/events", json={"events": [{"query_id": "q", "doc_id": "refused"}]})
        assert refused.json()["error"]["code"] == "query_log_failing"
        assert "File exists" in refused.json()["error"]["message"]
        assert int(refused.headers["retry-after"]) >= 1
        (tmp_path / "ubi").unlink()
        make.wait_until(lambda: client.post("/v1/events", json=click).status_code == 202)
    lines = lines_of(tmp_path / "ubi")
    assert {line["event_attributes"]["object"]["object_id"] for line in lines} == {"d01"}
    assert len(lines) >= 2


def test_of_an_answer_that_waits_only_what_is_written_is_kept(tmp_path):
    log = QueryLog(tmp_path / "ubi", QueryLogConfig(impressions=2), Metrics())  # nothing writes yet
    answer = Answer([Hit(f"d{rank}", 0.5, rank) for rank in range(1, 1_001)], 1_000, [], 1.0, 1.0)
    gone = weakref.ref(answer)
    log.served("q", "b" * 16, Search(text="tea"), answer)
    del answer
    gc.collect()
    assert gone() is None
    log.start()
    log.stop()
    assert len(lines_of(tmp_path / "ubi")) == 3


def test_many_threads_and_two_processes_worth_of_writers_lose_and_break_no_line(tmp_path):
    logs = [QueryLog(tmp_path, QueryLogConfig(), Metrics()) for _ in range(2)]
    for log in logs:
        log.start()

    def ask(log: QueryLog, name: str) -> None:
        for n in range(200):
            log.served(f"{name}-{n}", "b" * 16, Search(text="tea"), ANSWER)

    threads = [threading.Thread(target=ask, args=(logs[n % 2], str(n))) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for log in logs:
        log.stop()
    lines = lines_of(tmp_path)
    assert len(lines) == 4 * 200 * 4
    assert len({line["query_id"] for line in lines}) == 800


def test_a_log_that_is_off_writes_nothing(tmp_path, shop, make):
    log = QueryLog(tmp_path / "ubi", QueryLogConfig(enabled=False), Metrics())
    log.start()
    log.served("q", "b" * 16, Search(text="a secret"), ANSWER)
    log.stop()
    assert not (tmp_path / "ubi").exists()
    with make.server(shop, ServeConfig(query_log=QueryLogConfig(enabled=False))) as client:
        response = client.post("/v1/events", json={"events": [{"query_id": "q", "doc_id": "d01"}]})
        assert response.status_code == 409
        assert response.json()["error"]["code"] == "query_log_off"


NOW = datetime.now(UTC)
CLICK = {"query_id": "q", "doc_id": "d01"}


@pytest.mark.parametrize(
    "events",
    [
        [],
        [CLICK] * 1_001,
        [{"doc_id": "d01"}],
        [CLICK | {"doc_id": ""}],
        [CLICK | {"doc_id": "x" * 513}],
        [CLICK | {"doc_id": 5}],
        [CLICK | {"query_id": "x" * 129}],
        [CLICK | {"action": "Click!"}],
        [CLICK | {"action": "x" * 65}],
        [CLICK | {"position": 0}],
        [CLICK | {"position": 100_001}],
        [CLICK | {"position": 1.0}],
        [CLICK | {"client_id": ""}],
        [CLICK | {"price": 3}],
        [CLICK | {"timestamp": "yesterday"}],
        [CLICK | {"timestamp": "2026-01-01T00:00:00"}],
        [CLICK | {"timestamp": (NOW - timedelta(days=8)).isoformat()}],
        [CLICK | {"timestamp": (NOW + timedelta(hours=1)).isoformat()}],
    ],
)
def test_events_that_are_no_events_are_refused(client, events):
    marked = [*events[:1_000], CLICK | {"doc_id": "not-taken"}] if events else []
    response = client.post("/v1/events", json={"events": marked})
    assert response.status_code == 422
    assert response.json()["error"]["code"] == "invalid_request"


def test_events_at_the_limits_are_taken_and_of_the_refused_ones_none(client, shop):
    most = CLICK | {
        "doc_id": "x" * 512,
        "query_id": "q" * 128,
        "action": "a" * 64,
        "position": 100_000,
        "client_id": "u" * 512,
        "timestamp": (NOW - timedelta(days=6, hours=23)).isoformat(),
    }
    response = client.post("/v1/events", json={"events": [*[most] * 500, *[CLICK] * 500]})
    assert response.status_code == 202
    assert response.json() == {"accepted": 1_000, "unknown_queries": 1_000}
    time.sleep(0.5)
    text = "".join(file.read_text() for file in (shop / "ubi").glob("*"))
    assert "x" * 512 in text
    assert "not-taken" not in text


SLOW = """
import fcntl, os, sys, time
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
fcntl.flock(file, fcntl.LOCK_EX)
os.write(file, b'{"query_id": "one')
print("begun", flush=True)
time.sleep(0.7)
os.write(file, b'"}\\n')
"""


def test_lines_of_two_processes_stay_whole_where_one_is_written_in_parts(tmp_path):
    path = tmp_path / f"ubi-{datetime.now(UTC):%Y-%m-%d}.jsonl"
    with subprocess.Popen([sys.executable, "-c", SLOW, str(path)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"begun\n"
        log = QueryLog(tmp_path, QueryLogConfig(impressions=0), Metrics())
        log.start()
        log.served("another", "b" * 16, Search(text="tea"), ANSWER)
        log.stop()
    assert [line["query_id"] for line in lines_of(tmp_path)] == ["one", "another"]
