"""Several processes behind one port are one server to their callers."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError

from serving.api import ServeConfig
from serving.bundle import load
from serving.retriever import Retriever
from serving.search import Search
from serving.server import DrainConfig
from serving.store import Store


@pytest.mark.parametrize("rates", [{"per_key": "10/second"}, {"per_address": "10/second"}])
def test_rates_need_one_process(rates):
    ServeConfig.model_validate({"rates": rates})
    ServeConfig.model_validate({"processes": 2, "rates": {}})
    with pytest.raises(ValidationError, match="set processes: 1, or limit rates in the proxy"):
        ServeConfig.model_validate({"processes": 2, "rates": rates})


RUN = """
import logging, sys
from functools import partial
from pathlib import Path
from serving.api import ServeConfig, serve
log = partial(logging.basicConfig, level=logging.INFO)
log()
serve(Path(sys.argv[1]), ServeConfig.model_validate_json(sys.argv[2]), log)
"""


@contextmanager
def served(
    make: SimpleNamespace, processes: int, log: Path, port: int, *arguments: str
) -> Iterator[subprocess.Popen[str]]:
    """A server with several processes, from when all of them take requests."""
    with log.open("w") as out:
        process = subprocess.Popen([sys.executable, *arguments], stdout=out, stderr=out, text=True)
    try:
        wait_for_processes(make, process, port, processes)
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for_processes(make: SimpleNamespace, process: subprocess.Popen[str], port: int, count: int) -> None:
    deadline = time.monotonic() + 180
    while not make.accepts(port) or figures(port).get(("twotower_processes", None)) != count:
        assert process.poll() is None, "the server ended"
        assert time.monotonic() < deadline, "not all processes take requests"
        time.sleep(0.1)


def exposition(port: int) -> str:
    return httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=120).text


def figures(port: int) -> dict[tuple[str, str | None], float]:
    """Sums over other labels of every sample, by its name and process."""
    sums: dict[tuple[str, str | None], float] = {}
    for family in text_string_to_metric_families(exposition(port)):
        for sample in family.samples:
            key = (sample.name, sample.labels.get("process"))
            sums[key] = sums.get(key, 0) + sample.value
    return sums


def ask_over_kept_connections(port: int, count: int) -> None:
    """Search once over each of so many connections, which are all open at the same time."""
    body = b'{"text": "red shoes"}'
    head = b"POST /v1/search HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    request = b"%bx-query-log: off\r\ncontent-length: %d\r\n\r\n%b" % (head, len(body), body)
    callers = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(count)]
    for caller in callers:
        caller.sendall(request)
    for caller in callers:
        assert caller.recv(20).startswith(b"HTTP/1.1 200")
    for caller in callers:
        caller.close()


def test_two_processes_are_one_server_to_callers_and_to_prometheus(tmp_path, make):
    store = tmp_path / "store"
    Store(store).set_champion(make.shop(store).path.name, "first")
    port = make.free_port()
    command = ("-m", "pipelines.cli", "serve", str(store), "--processes", "2", "--port", str(port))
    with served(make, 2, tmp_path / "log", port, *command) as both:
        url, queries = f"http://127.0.0.1:{port}", 20
        for number in range(queries):
            reply = httpx.post(f"{url}/v1/search", json={"text": f"red shoes {number}"}, timeout=20)
            assert reply.status_code == 200
            event = {"query_id": reply.json()["query_id"], "doc_id": reply.json()["hits"][0]["doc_id"]}
            assert httpx.post(f"{url}/v1/events", json={"events": [event]}, timeout=20).status_code == 202
        found = figures(port)
        assert sum(found[("twotower_batch_size_sum", place)] for place in "12") == queries
        assert [found[("twotower_ready", place)] for place in "12"] == [1, 1]
        ask_over_kept_connections(port, 24)
        later = figures(port)
        shares = [later[("twotower_batch_size_sum", p)] - found[("twotower_batch_size_sum", p)] for p in "12"]
        assert sum(shares) == 24
        assert min(shares) >= 9  # of connections that all came at once
        families = re.findall(r"^# TYPE (\S+)", exposition(port), re.M)
        assert len(families) == len(set(families))
        documented = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
        assert "`twotower_processes`" in documented
        children = make.workers(both.pid)
        both.terminate()
        assert both.wait(60) == 0
    assert make.ended(children)
    said = (tmp_path / "log").read_text()
    assert "Traceback" not in said
    assert all(f"process {place}: serving bundle" in said for place in "12")
    lines = "".join(file.read_text() for file in (store / "ubi").iterdir()).splitlines()
    logged = [json.loads(line) for line in lines]
    assert len({line["query_id"] for line in logged if "user_query" in line}) == queries
    assert sum(line.get("action_name") == "click" for line in logged) == queries


@dataclass
class Callers:
    """Ask without a pause over a kept connection each, and compare every reply with what its bundle gives."""

    port: int
    right: dict[tuple[str, str], list[str]]
    statuses: list[int] = field(default_factory=list)
    bundles: set[str] = field(default_factory=set)
    lost: int = 0
    mixed: int = 0
    stop: threading.Event = field(default_factory=threading.Event)

    def ask(self) -> None:
        texts = cycle(sorted({text for _, text in self.right}))
        client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)
        while not self.stop.is_set():
            text = next(texts)
            try:
                reply = client.post("/v1/search", json={"text": text, "k": 5})
            except httpx.TransportError:
                self.lost += 1
                client.close()
                client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)
                continue
            self.statuses.append(reply.status_code)
            if reply.status_code == 200:
                answer = reply.json()
                self.bundles.add(answer["bundle_id"])
                self.mixed += [hit["doc_id"] for hit in answer["hits"]] != self.right[
                    answer["bundle_id"], text
                ]
        client.close()

    def look_away(self) -> None:
        """Stop as soon as the server says that it is not ready, as a balancer does."""
        while httpx.get(f"http://127.0.0.1:{self.port}/readyz", timeout=60).status_code == 200:
            time.sleep(0.02)
        self.stop.set()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_promotions_a_killed_process_and_the_end_under_load(tmp_path, make):
    store = Store(tmp_path / "store")
    bundles = [make.shop(store.root, seed=seed).path.name for seed in (0, 9)]
    store.set_champion(bundles[0], "first")
    right = {}
    for bundle_id in bundles:
        retriever = Retriever(load(store.bundle_path(bundle_id)))
        for text in ("red shoes", "blue scarf", "tea kettle", "desk lamp"):
            right[bundle_id, text] = [hit.doc_id for hit in retriever.answer(Search(text=text, k=5)).hits]
    assert right[bundles[0], "red shoes"] != right[bundles[1], "red shoes"]
    drain = DrainConfig(ready_seconds=2)
    config = ServeConfig(port=make.free_port(), processes=3, poll_seconds=0.05, drain=drain)
    command = ("-c", RUN, str(store.root), config.model_dump_json())
    with served(make, 3, tmp_path / "log", config.port, *command) as three:
        callers = Callers(config.port, right)
        threads = [threading.Thread(target=callers.ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for number in range(20):
            store.set_champion(bundles[(number + 1) % 2], "a test")
            time.sleep(0.5)
        wait_for_processes(make, three, config.port, 3)
        assert callers.lost == callers.mixed == 0
        assert callers.bundles == set(bundles)
        answered = len(callers.statuses)

        killed = make.workers(three.pid)[1]
        os.kill(killed, signal.SIGKILL)
        make.wait_until(lambda: killed not in make.workers(three.pid))
        wait_for_processes(make, three, config.port, 3)
        assert len(callers.statuses) > answered + 50
        assert 0 <= callers.lost <= len(threads)  # at most one request on each of its connections
        lost = callers.lost

        three.terminate()
        callers.look_away()
        for thread in threads:
            thread.join()
        assert three.wait(60) == 0
    assert callers.lost == lost
    assert callers.mixed == 0
    assert set(callers.statuses) == {200}
    assert "Traceback" not in (tmp_path / "log").read_text()
