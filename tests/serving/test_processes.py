"""Several processes behind one port: who replaces whom, how all end, that together they are one server."""

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
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

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

SCRIPT = '''
"""Processes that tell every caller their place and id, and nothing else."""
import errno, os, signal, socket, sys, time
from functools import partial
from multiprocessing.context import SpawnProcess
from features.errors import ConfigError
from serving import processes
from serving.processes import supervise

def work(how, listener, siblings):
    if how == "broken" and siblings.place == 2:
        raise ConfigError("it has no legs")
    private = socket.socket(socket.AF_UNIX)
    private.bind(str(siblings.path))
    private.listen()
    if how == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    elif how == "slow":
        signal.signal(signal.SIGTERM, lambda *_: (listener.close(), time.sleep(1.5), os._exit(0)))
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    listener.settimeout(0.1)  # a signal that another thread took interrupts no call
    while True:
        try:
            caller, _ = listener.accept()
        except TimeoutError:
            continue
        caller.sendall(f"{siblings.place} {os.getpid()} {siblings.folder}".encode())
        caller.close()

class Crowded(SpawnProcess):
    """The system has no process left when place 2 is to be taken, once."""
    left = 1

    def start(self):
        if self.name == "process 2" and Crowded.left:
            Crowded.left -= 1
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        super().start()

if __name__ == "__main__":
    if sys.argv[1] == "crowded":
        processes._spawn.Process = Crowded
    with socket.create_server(("127.0.0.1", int(sys.argv[2]))) as listener:
        supervise(3, partial(work, sys.argv[1], listener), listener, 2.0)
'''


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class Family:
    """A parent and the processes that it started."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process, self.port = process, port

    def children(self) -> list[int]:
        """Ids of the processes that do the work, oldest first."""
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in listed if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def who(self) -> tuple[str, int, Path]:
        """Ask: the place, the id and the folder of whoever answers."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as asking:
            place, pid, folder = asking.recv(1_000).decode().split()
        return place, int(pid), Path(folder)

    def open_places(self) -> list[str]:
        """Names of the sockets that siblings have."""
        return sorted(path.name for path in self.who()[2].glob("*.sock"))


@contextmanager
def family(tmp_path: Path, how: str) -> Iterator[Family]:
    (tmp_path / "family.py").write_text(SCRIPT)
    port = free_port()
    command = [sys.executable, str(tmp_path / "family.py"), how, str(port)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        yield Family(process, port)
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def three(tmp_path, make) -> Iterator[Family]:
    with family(tmp_path, "well") as started:
        make.wait_until(lambda: accepts(started.port))
        make.wait_until(lambda: started.open_places() == ["1.sock", "2.sock", "3.sock"])
        yield started


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=20).close()
    except ConnectionRefusedError:
        return False
    return True


def ended(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_killed_process_is_replaced_at_its_place_and_the_others_stay(three, make):
    before = three.children()
    place, killed, _ = three.who()
    os.kill(killed, signal.SIGKILL)
    make.wait_until(lambda: len(three.children()) == 3 and killed not in three.children())
    make.wait_until(lambda: (answer := three.who())[0] == place and answer[1] != killed)
    assert sorted(three.children())[:2] == sorted({*before} - {killed})


def test_sigterm_ends_all_with_0_and_leaves_neither_port_nor_folder(three):
    children, folder = three.children(), three.who()[2]
    assert folder.stat().st_mode & 0o777 == 0o700
    three.process.terminate()
    assert three.process.wait(20) == 0
    assert ended(children)
    assert not folder.exists()
    assert not accepts(three.port)


def test_processes_end_with_a_parent_that_was_killed(three, make):
    children, folder = three.children(), three.who()[2]
    three.process.kill()
    make.wait_until(lambda: ended(children))
    make.wait_until(lambda: not folder.exists())
    assert not accepts(three.port)


def test_an_interrupt_of_the_terminal_reaches_all_by_the_parent_once(three):
    children = three.children()
    assert [os.getsid(pid) for pid in children] == children  # out of the terminal's reach
    os.killpg(three.process.pid, signal.SIGINT)
    _, said = three.process.communicate(timeout=20)
    assert three.process.returncode == -signal.SIGINT
    assert ended(children)
    assert said.count("Traceback") == 1  # the parent's, whose caller here does not catch it


def test_nothing_is_accepted_while_processes_finish(tmp_path, make):
    with family(tmp_path, "slow") as started:
        make.wait_until(lambda: accepts(started.port))
        make.wait_until(lambda: len(started.open_places()) == 3)
        started.process.terminate()
        make.wait_until(lambda: not accepts(started.port), 1.0)
        assert started.process.poll() is None
        assert started.process.wait(20) == 0


def test_a_second_interrupt_kills_what_does_not_end(tmp_path, make):
    with family(tmp_path, "stubborn") as started:
        make.wait_until(lambda: accepts(started.port))
        make.wait_until(lambda: len(started.open_places()) == 3)
        children = started.children()
        for _ in range(2):
            assert not ended(children)
            started.process.send_signal(signal.SIGINT)
            time.sleep(0.5)
        started.process.wait(20)
        assert ended(children)


def test_a_process_that_cannot_start_ends_the_rest_and_says_so(tmp_path):
    with family(tmp_path, "broken") as started:
        _, said = started.process.communicate(timeout=60)
        assert started.process.returncode == 1
    assert "it has no legs" in said
    assert "ConfigError: process 2 of the server could not start (exit code 1)" in said


def test_what_was_stopped_and_cannot_end_is_killed_in_time_and_said(three):
    stopped = three.children()[1]
    os.kill(stopped, signal.SIGSTOP)
    three.process.terminate()
    try:
        _, said = three.process.communicate(timeout=20)
    finally:
        with suppress(ProcessLookupError):
            os.kill(stopped, signal.SIGKILL)
    assert three.process.returncode == 1
    assert ended([stopped])
    assert re.search(r"process \d did not end in 2 s and is killed", said)
    assert re.search(r"TwotowerError: process \d did not end in order", said)


def test_a_process_for_which_the_system_has_no_place_is_tried_again_and_the_others_stay(tmp_path, make):
    with family(tmp_path, "crowded") as started:
        make.wait_until(lambda: accepts(started.port))
        make.wait_until(lambda: started.open_places() == ["1.sock", "2.sock", "3.sock"])
        children = started.children()
        started.process.terminate()
        _, said = started.process.communicate(timeout=20)
        assert started.process.returncode == 0
    assert len(children) == 3
    text = "process 2 cannot be started (Resource temporarily unavailable); another takes its place in 1 s"
    assert text in said


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
def served(processes: int, log: Path, port: int, *arguments: str) -> Iterator[Family]:
    """A server with several processes, from when all of them take requests."""
    with log.open("w") as out:
        process = subprocess.Popen([sys.executable, *arguments], stdout=out, stderr=out, text=True)
    try:
        wait_for_processes(process, port, processes)
        yield Family(process, port)
    finally:
        process.kill()
        process.wait()


def wait_for_processes(process: subprocess.Popen[str], port: int, count: int) -> None:
    deadline = time.monotonic() + 180
    while not accepts(port) or figures(port).get(("twotower_processes", None)) != count:
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
    port = free_port()
    command = ("-m", "pipelines.cli", "serve", str(store), "--processes", "2", "--port", str(port))
    with served(2, tmp_path / "log", port, *command) as both:
        url, queries = f"http://127.0.0.1:{both.port}", 20
        for number in range(queries):
            reply = httpx.post(f"{url}/v1/search", json={"text": f"red shoes {number}"}, timeout=20)
            assert reply.status_code == 200
            event = {"query_id": reply.json()["query_id"], "doc_id": reply.json()["hits"][0]["doc_id"]}
            assert httpx.post(f"{url}/v1/events", json={"events": [event]}, timeout=20).status_code == 202
        found = figures(both.port)
        assert sum(found[("twotower_batch_size_sum", place)] for place in "12") == queries
        assert [found[("twotower_ready", place)] for place in "12"] == [1, 1]
        ask_over_kept_connections(both.port, 24)
        later = figures(both.port)
        shares = [later[("twotower_batch_size_sum", p)] - found[("twotower_batch_size_sum", p)] for p in "12"]
        assert sum(shares) == 24
        assert min(shares) >= 9  # of connections that all came at once
        families = re.findall(r"^# TYPE (\S+)", exposition(both.port), re.M)
        assert len(families) == len(set(families))
        documented = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
        assert "`twotower_processes`" in documented
        children = both.children()
        both.process.terminate()
        assert both.process.wait(60) == 0
    assert ended(children)
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
    config = ServeConfig(port=free_port(), processes=3, poll_seconds=0.05, drain=DrainConfig(ready_seconds=2))
    command = ("-c", RUN, str(store.root), config.model_dump_json())
    with served(3, tmp_path / "log", config.port, *command) as three:
        callers = Callers(three.port, right)
        threads = [threading.Thread(target=callers.ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for number in range(20):
            store.set_champion(bundles[(number + 1) % 2], "a test")
            time.sleep(0.5)
        wait_for_processes(three.process, three.port, 3)
        assert callers.lost == callers.mixed == 0
        assert callers.bundles == set(bundles)
        answered = len(callers.statuses)

        killed = three.children()[1]
        os.kill(killed, signal.SIGKILL)
        make.wait_until(lambda: killed not in three.children())
        wait_for_processes(three.process, three.port, 3)
        assert len(callers.statuses) > answered + 50
        assert 0 <= callers.lost <= len(threads)  # at most one request on each of its connections
        lost = callers.lost

        three.process.terminate()
        callers.look_away()
        for thread in threads:
            thread.join()
        assert three.process.wait(60) == 0
    assert callers.lost == lost
    assert callers.mixed == 0
    assert set(callers.statuses) == {200}
    assert "Traceback" not in (tmp_path / "log").read_text()
