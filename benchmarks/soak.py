"""A long run under load with a promotion every so often: nothing fails, nothing mixes, nothing grows.

    python benchmarks/soak.py STORE --minutes 30 [--callers 2] [--swap-seconds 20] [--json FILE]

The store needs two bundles or more; they are promoted in turn. Every reply must be a 200 whose hits are those
that its bundle gives for that query, as it gave them when nothing else was going on. Resident memory is read
once a second; growth compares the median of the last tenth with that of the second tenth, after warm-up.
"""

import argparse
import statistics
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
from figures import circumstances, tell
from load import WORDS, resident_mb, server

from serving.store import Store

QUERIES = [f"{first} {second}" for first in WORDS[:6] for second in WORDS[6:]]
LOG_OFF = {"X-Query-Log": "off"}


@dataclass
class Seen:
    """What happened, written by several threads."""

    statuses: Counter[int] = field(default_factory=Counter)
    bundles: Counter[str] = field(default_factory=Counter)
    mixed: int = 0
    errors: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    swap_seconds: list[float] = field(default_factory=list)


def expected(client: httpx.Client, store: Store, bundles: list[str]) -> dict[tuple[str, str], list[str]]:
    """Return the ids that each bundle gives for each query, one at a time."""
    answers = {}
    for bundle_id in bundles:
        store.set_champion(bundle_id, "soak")
        wait_for(client, bundle_id)
        for text in QUERIES:
            reply = client.post("/v1/search", json={"text": text, "k": 10}, headers=LOG_OFF).json()
            answers[bundle_id, text] = [hit["doc_id"] for hit in reply["hits"]]
    return answers


def wait_for(client: httpx.Client, bundle_id: str) -> float:
    """Wait until a bundle answers; return the seconds it took."""
    started = time.monotonic()
    while client.get("/readyz").json().get("bundle_id") != bundle_id:
        if time.monotonic() - started > 120:
            raise RuntimeError(f"bundle {bundle_id} was not swapped in within two minutes")
        time.sleep(0.05)
    return time.monotonic() - started


def ask(
    port: int, number: int, answers: dict[tuple[str, str], list[str]], seen: Seen, stop: threading.Event
) -> None:
    """Ask without a pause and compare every reply."""
    texts = cycle(QUERIES[number:] + QUERIES[:number])
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        while not stop.is_set():
            text, started = next(texts), time.perf_counter()
            try:
                response = client.post("/v1/search", json={"text": text, "k": 10})
            except httpx.HTTPError as error:
                seen.errors.append(repr(error))
                continue
            seen.times.append(time.perf_counter() - started)
            seen.statuses[response.status_code] += 1
            if response.status_code == 200:
                reply = response.json()
                seen.bundles[reply["bundle_id"]] += 1
                ids = [hit["doc_id"] for hit in reply["hits"]]
                seen.mixed += set(ids) != set(answers[reply["bundle_id"], text])


def soak(store: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run it and return its figures."""
    bundles = Store(store).bundle_ids()[-arguments.bundles :]
    if len(bundles) < 2:
        raise SystemExit(f"{store} has {len(bundles)} bundles; a soak with swaps needs 2")
    before = Store(store).champion()
    seen, stop = Seen(), threading.Event()
    try:
        with (
            server(store) as (pid, port),
            httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
        ):
            answers = expected(client, Store(store), bundles)
            threads = [
                threading.Thread(target=ask, args=(port, n, answers, seen, stop))
                for n in range(arguments.callers)
            ]
            started = time.monotonic()
            for thread in threads:
                thread.start()
            try:
                swap_and_watch(client, Store(store), bundles, pid, seen, arguments)
            finally:
                stop.set()
                for thread in threads:
                    thread.join()
            seconds = time.monotonic() - started
            metrics = client.get("/metrics").text
    finally:
        if before is not None:
            Store(store).set_champion(before.bundle_id, "after a soak")
    return described(seen, seconds, metrics)


def swap_and_watch(
    client: httpx.Client,
    store: Store,
    bundles: list[str],
    pid: int,
    seen: Seen,
    arguments: argparse.Namespace,
) -> None:
    """Promote the bundles in turn and sample memory, until the time is up."""
    turn = cycle(bundles)
    end = time.monotonic() + arguments.minutes * 60
    swap_at = time.monotonic()
    while time.monotonic() < end and len(seen.swap_seconds) < arguments.promotions:
        if time.monotonic() >= swap_at:
            bundle_id = next(turn)
            store.set_champion(bundle_id, "soak")
            seen.swap_seconds.append(wait_for(client, bundle_id))
            swap_at = time.monotonic() + arguments.swap_seconds
        seen.memory.append(resident_mb(pid))
        time.sleep(min(1.0, arguments.swap_seconds))


def described(seen: Seen, seconds: float, metrics: str) -> dict[str, Any]:
    """Return the figures."""
    tenth = max(1, len(seen.memory) // 10)
    early, late = statistics.median(seen.memory[tenth : 2 * tenth]), statistics.median(seen.memory[-tenth:])
    times = sorted(seen.times)
    return {
        "seconds": round(seconds),
        "requests": sum(seen.statuses.values()),
        "statuses": dict(seen.statuses),
        "connection_errors": len(seen.errors),
        "mixed_replies": seen.mixed,
        "promotions": len(seen.swap_seconds),
        "slowest_swap_s": round(max(seen.swap_seconds), 2),
        "replies_by_bundle": dict(seen.bundles),
        "p50_ms": round(times[len(times) // 2] * 1e3, 2),
        "p99_ms": round(times[int(len(times) * 0.99)] * 1e3, 2),
        "memory_mb": {"early": round(early, 1), "late": round(late, 1), "most": round(max(seen.memory), 1)},
        "memory_growth": round(late / early - 1, 4),
        "errors_counted": metrics.count("twotower_errors_total{"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", type=Path)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--callers", type=int, default=2)
    parser.add_argument("--swap-seconds", type=float, default=20.0, help="time between two promotions")
    parser.add_argument("--promotions", type=int, default=10**9, help="end after so many")
    parser.add_argument("--bundles", type=int, default=2, help="how many of the store's bundles take turns")
    parser.add_argument("--json", type=Path, default=None, help="also write the result here")
    arguments = parser.parse_args()
    result = {
        **circumstances(),
        "callers": arguments.callers,
        "swap_seconds": arguments.swap_seconds,
        **soak(arguments.store, arguments),
    }
    tell(result, arguments.json)
    if set(result["statuses"]) != {200} or result["connection_errors"] or result["mixed_replies"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
