"""The process that benchmarks/serving.py measures: `twotower serve` over a bundle of serving_bundle.py.

The command's own code runs, with its defaults: listener, uvicorn, gate, metrics, query log, batching. Only
`load` is replaced, by one that returns the bundle in memory. While nobody asks by HTTP, lines of JSON on
standard input ask for the bare cost of the same work in the same process: one JSON line each comes back. With
`--processes` over 1 each of them makes the bundle, and so does the process that started them, which does
nothing else and is the one that is asked.
"""

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from serving_bundle import Form, Kind, Subject, prepare, subject
from serving_clients import texts

from pipelines.commands import log_to_stderr, serve_store
from serving import follow
from serving.retriever import Retriever
from serving.search import Search

K = 10
_DRAWN = 4_000  # texts at a time


class Bare:
    """The same work without HTTP."""

    def __init__(self, measured: Subject) -> None:
        self.measured = measured
        self._retriever = Retriever(measured.bundle)
        self._seed = 1_000_000

    def batches(self, batch: int, seconds: float) -> dict[str, float]:
        """Time encoding and faiss search, nothing else, in batches of one size."""
        encode, index, encoder = (
            self.measured.forms[self.measured.form],
            self.measured.bundle.index,
            self.measured.encoder,
        )

        def work(asked: list[str]) -> None:
            encode(asked)
            index.whole(encoder.stand_ins(asked), K)  # type: ignore[attr-defined]  # of faiss, as it is here

        return self._timed(work, batch, seconds)

    def answers(self, seconds: float) -> dict[str, float]:
        """Time one search at a time as the product answers it, from text to ids."""
        parts: list[tuple[float, float]] = []

        def work(asked: list[str]) -> None:
            answer = self._retriever.answer(Search(text=asked[0], k=K))
            parts.append((answer.encode_ms, answer.search_ms))

        timed = self._timed(work, 1, seconds)
        encode, search = np.median(np.array(parts), axis=0)
        return {**timed, "encode_ms": float(encode), "search_ms": float(search)}

    def cached(self, seconds: float) -> dict[str, float]:
        """Time searches whose query's vector is kept."""
        asked = self._texts(1_000)
        for text in asked:
            self._retriever.answer(Search(text=text, k=K))
        place = iter(range(10**9))
        return self._timed(
            lambda _: self._retriever.answer(Search(text=asked[next(place) % len(asked)], k=K)), 1, seconds
        )

    def forms(self, batch: int, seconds: float) -> dict[str, dict[str, float]]:
        """Time every way to encode, in turns on the same texts."""
        taken: dict[str, list[float]] = {form: [] for form in self.measured.forms}
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            asked = self._texts(batch)
            for form, encode in self.measured.forms.items():
                start = time.perf_counter()
                encode(asked)
                taken[form].append(time.perf_counter() - start)
        return {form: summary(times, batch) for form, times in taken.items()}

    def _timed(self, work: Callable[[list[str]], Any], batch: int, seconds: float) -> dict[str, float]:
        taken: list[float] = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            drawn = self._texts(max(batch, _DRAWN // 4))
            for start in range(0, len(drawn) - batch + 1, batch):
                asked = drawn[start : start + batch]
                begin = time.perf_counter()
                work(asked)
                taken.append(time.perf_counter() - begin)
                if begin > end:
                    break
        return summary(taken[len(taken) // 10 :], batch)

    def _texts(self, count: int) -> list[str]:
        self._seed += 1
        return texts(count, self._seed)


def summary(seconds: Sequence[float], batch: int) -> dict[str, float]:
    """Return percentiles in milliseconds, and queries a second."""
    low, middle, high = np.percentile(np.array(seconds) * 1e3, [1, 50, 99])
    return {
        "best_ms": float(low),
        "p50_ms": float(middle),
        "p99_ms": float(high),
        "per_second": batch * len(seconds) / sum(seconds),
    }


def answer(bare: Bare, question: dict[str, Any]) -> Any:
    """Do what one line of standard input asks for."""
    asked, seconds = question["ask"], question.get("seconds", 1.0)
    if asked == "bare":
        return bare.batches(question["batch"], seconds)
    if asked == "answers":
        return bare.answers(seconds)
    if asked == "cached":
        return bare.cached(seconds)
    if asked == "forms":
        return bare.forms(question["batch"], seconds)
    encoder = bare.measured.encoder
    return {
        "hits": encoder.hits,
        "misses": encoder.misses,
        "form": bare.measured.form,
        "tokens": bare.measured.tokens,
    }


def load_nothing(work: Path, kind: Kind, size: int, form: Form, store: Path) -> Subject:
    """Make the bundle, and let it be what this process opens as the champion."""
    measured = subject(work, kind, size, form, store)
    follow.load = lambda *_: measured.bundle  # type: ignore[attr-defined]
    return measured


def set_up(work: Path, kind: Kind, size: int, form: Form, store: Path) -> None:
    """Do in one of several processes what was done in the one that started it."""
    log_to_stderr("%(message)s")
    load_nothing(work, kind, size, form, store / str(os.getpid()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("kind", choices=("features", "transformer"))
    parser.add_argument("size", type=int)
    parser.add_argument("--form", default="int8", choices=("torch", "float32", "int8"))
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--prepare", action="store_true", help="only make the index, where it is not there")
    options = parser.parse_args()
    if options.prepare:
        print(json.dumps(prepare(options.work, options.size)))
        return
    with tempfile.TemporaryDirectory(prefix="twotower-bench-") as folder:
        store = Path(folder)
        what = (options.work, options.kind, options.size, options.form, store)
        measured = load_nothing(*what)
        bare = Bare(measured)

        def listen() -> None:
            for line in sys.stdin:
                print(json.dumps(answer(bare, json.loads(line))), flush=True)

        threading.Thread(target=listen, daemon=True).start()
        serve_store(store, None, {"port": 0, "processes": options.processes}, partial(set_up, *what))


if __name__ == "__main__":
    main()
