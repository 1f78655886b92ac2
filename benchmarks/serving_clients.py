"""Callers for benchmarks/serving.py, in processes of their own, and a server that does nothing.

    python benchmarks/serving_clients.py PORT --callers 64 --seconds 5
    python benchmarks/serving_clients.py 0 --nothing        # listens, prints its port, answers a constant

Every caller asks again as soon as it has its answer. Requests are made beforehand and sent as bytes over kept
connections; an answer is read to its Content-Length and not parsed. What a process of callers could ask for
at most is measured against the server that does nothing.
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import sys
import time
from typing import Any, cast

import uvloop
from load import Connection, request_of

K = 10
WARM_UP = 1.0
_SYLLABLES = [first + then for first in "bdfgklmnprstvz" for then in ("a", "e", "i", "o", "u", "ar", "en")]
_WORDS = ["".join(random.Random(n).choices(_SYLLABLES, k=2 + n % 2)) for n in range(8_000)]
_MOST_PER_SECOND = 6_000  # requests that are made beforehand
_NOTHING = json.dumps({"hits": [{"rank": n, "doc_id": f"d{n:07d}", "score": 0.5} for n in range(K)]}).encode()


def texts(count: int, seed: int) -> list[str]:
    """Return queries of two to five words; practically all are distinct, for every seed others."""
    choice = random.Random(seed)
    return [" ".join(choice.choices(_WORDS, k=choice.randint(2, 5))) for _ in range(count)]


async def ask(port: int, callers: int, seconds: float, seed: int) -> dict[str, Any]:
    """Let callers ask; times of the first second do not count."""
    count = int(_MOST_PER_SECOND * (seconds + WARM_UP))
    requests = itertools.cycle([request_of({"text": text, "k": K}) for text in texts(count, seed)])
    loop = asyncio.get_running_loop()
    taken: list[int] = []
    failed = 0
    begin = time.perf_counter() + WARM_UP
    end = begin + seconds

    async def caller() -> None:
        nonlocal failed
        _, connection = await loop.create_connection(Connection, "127.0.0.1", port)
        while (start := time.perf_counter()) < end:
            head, body = await connection.ask(next(requests))
            done = time.perf_counter()
            if not head.startswith(b"HTTP/1.1 200") or b'"hits":[{' not in body.replace(b" ", b""):
                failed += 1
            elif start >= begin and done <= end:
                taken.append(round((done - start) * 1e6))
        cast(asyncio.Transport, connection.transport).close()

    async def used() -> float:
        await asyncio.sleep(WARM_UP)
        before = time.process_time()
        await asyncio.sleep(seconds)
        return (time.process_time() - before) / seconds

    busy, *_ = await asyncio.gather(used(), *(caller() for _ in range(callers)))
    return {"microseconds": taken, "failed": failed, "busy": busy}


class Nothing(asyncio.Protocol):
    """Answers every request with the same bytes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, _: bytes) -> None:
        """Answer; a request of the callers comes in one piece."""
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        self.transport.write(head % len(_NOTHING) + _NOTHING)


async def answer_nothing() -> None:
    """Serve until ended."""
    server = await asyncio.get_running_loop().create_server(Nothing, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--callers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--nothing", action="store_true")
    options = parser.parse_args()
    if options.nothing:
        uvloop.run(answer_nothing())
        return
    result = uvloop.run(ask(options.port, options.callers, options.seconds, options.seed))
    with os.fdopen(sys.stdout.fileno(), "w", closefd=False) as buffered:  # else a long line is cut short
        buffered.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
