"""What a server does at three times the load that it can bear.

    python benchmarks/overload.py STORE --seconds 60 [--server-cores 2] [--json FILE]

Saturation is what 64 callers who never pause get answered. Requests then arrive at random moments at 0.8 and
at 3 times that rate, and at 0.8 again. Times are of answered requests and count from when a request was due.
"""

import argparse
import threading
from pathlib import Path
from typing import Any

from figures import circumstances, tell
from load import Replies, closed, opened, resident_mb, sampled, server

REFUSED = (429, 503)


def measure(store: Path, seconds: float, cores: str | None) -> dict[str, Any]:
    """Run the whole benchmark and return its figures."""
    with server(store, cores=cores) as (pid, port):
        closed(port, 64, min(5.0, seconds))
        saturated = closed(port, 64, min(10.0, seconds))
        rate = len(saturated.with_status(200)) / min(10.0, seconds)
        figures: dict[str, Any] = {"saturation": round(rate, 1), "seconds": seconds}
        figures["0.8x"] = described(opened(port, 0.8 * rate, seconds, seed=1), seconds)
        before = resident_mb(pid)
        memory: list[float] = []
        done = threading.Event()
        watch = threading.Thread(
            target=lambda: memory.extend(sampled(lambda: resident_mb(pid), 0.5, done.is_set))
        )
        watch.start()
        overload = opened(port, 3 * rate, seconds, seed=2)
        done.set()
        watch.join()
        figures["3x"] = described(overload, seconds)
        after = opened(port, 0.8 * rate, 10.0, seed=3)
        figures["after"] = described(after, 10.0)
        figures["recovery_seconds"] = recovery(after, figures["0.8x"], seconds)
        figures["memory_mb"] = {
            "before": round(before),
            "most": round(max(memory)),
            "after": round(resident_mb(pid)),
        }
        figures["p99_ratio"] = round(figures["3x"]["p99_ms"] / figures["0.8x"]["p99_ms"], 2)
        return figures


def described(replies: Replies, seconds: float) -> dict[str, Any]:
    """Return what became of the requests of one phase."""
    refused = replies.with_status(*REFUSED)
    answered = replies.with_status(200)
    return {
        "asked_per_s": round((len(replies.items) + replies.unsent + replies.lost) / seconds, 1),
        "answered_per_s": round(len(answered) / seconds, 1),
        "refused": len(refused),
        "refused_without_retry_after": sum(b"retry-after" not in reply.head.lower() for reply in refused),
        "other": len(replies.items) - len(answered) - len(refused),
        "lost": replies.lost,
        "unsent": replies.unsent,
        "p50_ms": round(replies.milliseconds(50, 200), 2),
        "p99_ms": round(replies.milliseconds(99, 200), 2),
        "refusal_p99_ms": round(replies.milliseconds(99, *REFUSED), 2),
    }


def recovery(after: Replies, before: dict[str, Any], seconds: float) -> float | None:
    """Return when the first half second began that is as good as before.

    That is: no greater share of it than before, and 2%, is refused or takes twice the p99 of before.
    """
    most = 0.02 + before["refused"] / (before["asked_per_s"] * seconds)
    first = min(reply.due for reply in after.items)
    for slot in range(20):
        inside = [r for r in after.items if slot / 2 <= r.due - first < (slot + 1) / 2]
        bad = [r for r in inside if r.status != 200 or r.seconds * 1e3 > 2 * before["p99_ms"]]
        if inside and len(bad) <= most * len(inside):
            return slot / 2
    return None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--server-cores", default=None, help="cores of the server, as taskset takes them")
    parser.add_argument("--json", type=Path, default=None, help="also write the result here")
    arguments = parser.parse_args()
    result = {
        **circumstances(),
        "server_cores": arguments.server_cores,
        **measure(arguments.store, arguments.seconds, arguments.server_cores),
    }
    tell(result, arguments.json)


if __name__ == "__main__":
    main()
