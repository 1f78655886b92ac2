"""HTTP load for the benchmarks of serving: a server in a process of its own, and callers.

Callers of `closed` ask again as soon as they have their answer. Those of `opened` ask at random moments of a
given rate, whether answers come or not; their time counts from the moment at which the request was due.
"""

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import uvloop

WORDS = ("red", "green", "blue", "white", "shoes", "scarf", "wool", "rain", "jacket", "tea", "desk", "lamp")


@dataclass
class Reply:
    """One exchange: seconds since the request was due, HTTP status, head and body."""

    due: float
    seconds: float
    status: int
    head: bytes
    body: bytes


@dataclass
class Replies:
    """What a run of callers got; `unsent` were due when every connection was taken."""

    items: list[Reply] = field(default_factory=list)
    unsent: int = 0
    lost: int = 0

    def with_status(self, *statuses: int) -> list[Reply]:
        """Return the replies of these statuses."""
        return [reply for reply in self.items if reply.status in statuses]

    def milliseconds(self, percentile: float, *statuses: int) -> float:
        """Return a percentile of the times of some statuses; NaN where there are none."""
        times = [reply.seconds * 1e3 for reply in self.with_status(*statuses)]
        return float(np.percentile(times, percentile)) if times else float("nan")


class Connection(asyncio.Protocol):
    """A kept connection that carries one exchange at a time."""

    def __init__(self) -> None:
        self._buffer = b""
        self._waiting: asyncio.Future[tuple[bytes, bytes]] | None = None
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Collect a reply."""
        self._buffer += data
        head, end, body = self._buffer.partition(b"\r\n\r\n")
        if end and self._waiting is not None:
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            if len(body) >= int(length or 0):
                self._buffer = b""
                waiting, self._waiting = self._waiting, None
                if not waiting.done():
                    waiting.set_result((head, body))

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the exchange that is under way."""
        self.transport = None
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(ConnectionError("closed"))

    async def ask(self, request: bytes) -> tuple[bytes, bytes]:
        """Send a request and return the reply's head and body."""
        self._waiting = asyncio.get_running_loop().create_future()
        if self.transport is None:
            raise ConnectionError("closed")
        self.transport.write(request)
        return await self._waiting


def request_of(body: dict[str, object], path: str = "/v1/search") -> bytes:
    """Return the bytes of a POST."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def random_search(draw: random.Random, k: int = 10) -> bytes:
    """Return a search for two or three words."""
    return request_of({"text": " ".join(draw.sample(WORDS, draw.randint(2, 3))), "k": k})


def closed(port: int, callers: int, seconds: float, seed: int = 0) -> Replies:
    """Let callers ask one request after the other."""

    async def caller(replies: Replies, number: int, end: float) -> None:
        draw, connection = random.Random(seed * 1_000 + number), None
        while (due := time.perf_counter()) < end:
            if connection is None or connection.transport is None:
                connection = await _connect(port)
            await _exchange(connection, random_search(draw), due, replies)

    async def run() -> Replies:
        replies, end = Replies(), time.perf_counter() + seconds
        await asyncio.gather(*(caller(replies, number, end) for number in range(callers)))
        return replies

    return uvloop.run(run())


def opened(port: int, rate: float, seconds: float, most: int = 1_000, seed: int = 0) -> Replies:
    """Ask at random moments, `rate` a second on average, over at most so many connections."""

    async def run() -> Replies:
        draw, replies = random.Random(seed), Replies()
        free: list[Connection] = []
        tasks: set[asyncio.Task[None]] = set()
        due = time.perf_counter()
        end = due + seconds

        async def one(due: float) -> None:
            connection = free.pop() if free else await _connect(port)
            await _exchange(connection, random_search(draw), due, replies)
            if connection.transport is not None:
                free.append(connection)

        while (due := due + draw.expovariate(rate)) < end:
            if (ahead := due - time.perf_counter()) > 0:
                await asyncio.sleep(ahead)
            if len(tasks) >= most:
                replies.unsent += 1
                continue
            task = asyncio.create_task(one(due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks, return_exceptions=True)
        return replies

    return uvloop.run(run())


async def _connect(port: int) -> Connection:
    _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port)
    return connection


async def _exchange(connection: Connection, request: bytes, due: float, replies: Replies) -> None:
    try:
        head, body = await connection.ask(request)
    except ConnectionError:
        replies.lost += 1
        return
    replies.items.append(Reply(due, time.perf_counter() - due, int(head[9:12]), head, body))


@contextmanager
def server(store: Path, *arguments: str, cores: str | None = None) -> Iterator[tuple[int, int]]:
    """Start `twotower serve` on a free port; gives the process id and the port, and ends it by SIGTERM."""
    pinned = ["taskset", "-c", cores] if cores else []
    command = [*pinned, sys.executable, "-m", "pipelines.cli", "serve", str(store), "--port", "0", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        port = 0
        for line in process.stderr:
            if line.startswith("page http://"):
                port = int(line.split("127.0.0.1:")[1].split("/")[0])
            if line.startswith("serving bundle"):
                break
        if not port or process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.wait()}")
        yield process.pid, port
    finally:
        process.terminate()
        process.communicate(timeout=60)


def resident_mb(pid: int) -> float:
    """Return a process's resident memory in MB, from /proc."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4_096 / 1e6


def sampled(measure: Callable[[], float], seconds: float, stop: Callable[[], bool]) -> list[float]:
    """Return what a measure gives every so many seconds until it is told to stop."""
    values = []
    while not stop():
        values.append(measure())
        time.sleep(seconds)
    return values
