r"""Compare the automatic choice of an index with its peers at equal ANN recall, in one run.

    python benchmarks/index.py                                   # the targets: 1,000,000 × 128
    python benchmarks/index.py --size 100000 --dry

Documents and queries: `cluster_vectors.draw`. Its spreads give `IVF4096,Flat` about the ANN recall that it
has on embeddings of this size (0.96 at nprobe 16, 0.98 at 64, k = 10). Half of the queries tune, the other
half measures. Every index is tuned by its own parameters to the smallest setting whose ANN recall@k on the
tuning queries is the target and a margin, so that the target holds on others; of two parameters, one is
tried at several values and the fastest pair is kept. Then all take turns on the measuring queries: queries/s
is the median over turns of all queries in one call, p50 the median of queries one by one, both on one
thread. Builds use `--threads`.

Prints tables, writes them and the curve to `benchmarks/results/<date>-index*`, and exits with 1 when a
target is missed. A peer that is not installed is skipped, and the table says so; `uv sync --group bench`
installs all.
"""

import argparse
import os
import shlex
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import faiss
import numpy as np
from cluster_vectors import Vectors, draw
from index_peers import PEERS, Automatic, Parameters, Peer, Rows
from loss import Target, installed
from quality import hardware

from pipelines.report import markdown
from serving.curve import plot

RESULTS = Path(__file__).parent / "results"
DEPTHS = (10, 100)
AIMED = 10  # the depth that the targets are for
SINGLES = 300


class Truth:
    """Exact neighbours of queries, and ANN recall by them; equal scores at the boundary are equally good."""

    def __init__(self, queries: Vectors, documents: Vectors) -> None:
        self.queries, self._documents = queries, documents
        scores, _ = faiss.knn(queries, documents, max(DEPTHS), metric=faiss.METRIC_INNER_PRODUCT)
        self._lowest = {k: scores[:, k - 1] - 1e-5 for k in DEPTHS}

    def recall(self, rows: Rows, k: int) -> float:
        """Return the mean ANN recall@k of (B, k) rows; -1 is none."""
        found = np.einsum("bkd,bd->bk", self._documents[np.maximum(rows, 0)], self.queries)
        return float(((found >= self._lowest[k][:, None]) & (rows >= 0)).mean())


@dataclass
class Entry:
    """A peer at the setting that it was tuned to for one depth."""

    peer: Peer
    k: int
    parameters: Parameters
    tuned: float
    seconds: list[float] = field(default_factory=list)
    p50_us: float = 0.0
    measured: float = 0.0

    @property
    def queries_per_second(self) -> float:
        """The median over turns."""
        return 1.0 / median(self.seconds)


def tuned(peer: Peer, k: int, target: float, truth: Truth) -> Entry | None:
    """Return the peer at its fastest setting with the target; None if none has it."""
    best: tuple[float, Entry] | None = None
    for factor in peer.held[1] if peer.held else (0,):
        held = {peer.held[0]: factor * k} if peer.held else {}
        found = smallest(peer, k, target, truth, held)
        if found is None:
            continue
        peer.set(found.parameters)
        times = []
        for _ in range(3):
            start = time.perf_counter()
            peer.search(truth.queries, k)
            times.append(time.perf_counter() - start)
        if best is None or median(times) < best[0]:
            best = median(times), found
    return best[1] if best else None


def smallest(peer: Peer, k: int, target: float, truth: Truth, held: Parameters) -> Entry | None:
    """Double the main parameter to the target, then bisect."""
    recalls: dict[int, float] = {}

    def at(setting: int) -> float:
        if setting not in recalls:
            peer.set({**held, peer.main: setting})
            recalls[setting] = truth.recall(peer.search(truth.queries, k), k)
        return recalls[setting]

    below, above = 0, 1
    while at(above) < target:
        if above == peer.largest or (above >= 256 and at(above) - at(below) < 1e-4):
            return None
        below, above = above, min(2 * above, peer.largest)
    while above - below > 1:
        middle = (above + below) // 2
        below, above = (below, middle) if at(middle) >= target else (middle, above)
    return Entry(peer, k, {**held, peer.main: above}, at(above))


def measure(entries: list[Entry], truth: Truth, turns: int) -> None:
    """Time all entries in turns."""
    for turn in range(turns + 1):
        for entry in entries:
            entry.peer.set(entry.parameters)
            start = time.perf_counter()
            rows = entry.peer.search(truth.queries, entry.k)
            seconds = (time.perf_counter() - start) / len(truth.queries)
            if turn == 0:  # warm
                entry.measured = truth.recall(rows, entry.k)
                entry.p50_us = alone(entry, truth)
            else:
                entry.seconds.append(seconds)


def alone(entry: Entry, truth: Truth) -> float:
    times = []
    for row in range(min(SINGLES, len(truth.queries))):
        start = time.perf_counter()
        entry.peer.search(truth.queries[row : row + 1], entry.k)
        times.append(time.perf_counter() - start)
    return 1e6 * median(times)


def targets(entries: list[Entry], skipped: dict[str, str]) -> list[Target]:
    """Return the figures that have a limit."""
    of = {entry.peer.name: entry for entry in entries if entry.k == AIMED}
    ours = of["automatic"]
    aims = []
    for name, limit in (("faiss IVF-Flat", 2.5), ("faiss HNSW", 2.5), ("ScaNN", 1.5)):
        ratio = (
            median(b / a for a, b in zip(ours.seconds, of[name].seconds, strict=True)) if name in of else None
        )
        aims.append(Target(f"queries/s / {name}'s", ratio, limit, False, note=skipped.get(name, "")))
    hnsw = of.get("faiss HNSW")
    built = ours.peer.build_seconds / hnsw.peer.build_seconds if hnsw else None
    return [*aims, Target("build / faiss HNSW's", built, 0.2)]


def row(entry: Entry, reference: Entry) -> list[str]:
    ratio = median(a / b for a, b in zip(entry.seconds, reference.seconds, strict=True))
    return [
        entry.peer.name,
        entry.peer.about,
        ", ".join(f"{name} {value}" for name, value in entry.parameters.items()),
        f"{entry.measured:.4f}",
        f"{entry.queries_per_second:,.0f}",
        f"{ratio:.2f}",
        f"{entry.p50_us:,.0f}",
        f"{entry.peer.build_seconds:,.1f}",
        f"{entry.peer.megabytes:,.0f}",
    ]


def report(
    options: argparse.Namespace, entries: list[Entry], automatic: dict[int, Automatic], notes: list[str]
) -> str:
    """Return the dated Markdown file."""
    head = [
        "index",
        "built as",
        "set to",
        "recall",
        "queries/s",
        "automatic is × faster",
        "p50 µs",
        "build s",
    ]
    versions = [f"{name} {installed(name)}" for name in ("hnswlib", "usearch", "scann")]
    lines = [
        f"# Indexes, {options.size:,} × {options.dimension}, inner product",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, `python {shlex.join(['benchmarks/index.py', *sys.argv[1:]])}`",
        "",
        f"{hardware()}; {', '.join(versions)}. "
        f"Vectors: `cluster_vectors.draw(seed={options.seed})`; {options.queries:,} queries tune, as many "
        f"measure; tuned to ANN recall ≥ {options.target + options.margin:g}, the recalls below are those of "
        f"the measuring queries; built on {options.threads} threads, searched on one; medians of "
        f"{options.turns} turns.",
        "",
    ]
    for k in DEPTHS:
        of_k = [entry for entry in entries if entry.k == k]
        lines += [f"## ANN recall@{k} ≥ {options.target:g}", ""]
        lines += [markdown([*head, "MB"], [row(entry, of_k[0]) for entry in of_k]), ""]
        header, rows = automatic[k].curve.table()
        lines += [
            f"The automatic choice at k = {k}, {automatic[k].choosing_seconds:,.0f} s with every build and "
            "measurement (queries/s in batches of 32):",
            "",
            markdown(header, rows),
            "",
            *(f"- {left.factory} is left out: {left.reason}" for left in automatic[k].curve.left_out),
            "",
        ]
    return "\n".join([*lines, *notes, ""])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=1_000_000, help="documents")
    parser.add_argument("--dimension", type=int, default=128)
    parser.add_argument("--queries", type=int, default=1_000, help="to tune on, and as many to measure on")
    parser.add_argument("--target", type=float, default=0.95, help="ANN recall")
    parser.add_argument("--margin", type=float, default=0.005, help="above the target on the tuning queries")
    parser.add_argument("--threads", type=int, default=2, help="for building")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry", action="store_true", help="write no file")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    faiss.omp_set_num_threads(options.threads)
    aim = options.target + options.margin
    documents, queries = draw(options.size, 2 * options.queries, options.dimension, options.seed)
    tuning, measuring = (Truth(part, documents) for part in np.split(queries, 2))
    automatic, entries, skipped = {}, [], {}
    for k in DEPTHS:
        automatic[k] = Automatic(documents, tuning.queries, aim, k, options.threads)
        recall = tuning.recall(automatic[k].search(tuning.queries, k), k)
        entries.append(Entry(automatic[k], k, automatic[k].parameters, recall))
        progress(f"automatic@{k}: {automatic[k].about} in {automatic[k].choosing_seconds:.0f} s")
    for kind in PEERS:
        if not kind.installed():
            skipped[kind.name] = f"{kind.package} is not installed"
            continue
        peer = kind(documents, options.threads)
        progress(f"{peer.name}: built in {peer.build_seconds:.0f} s")
        for k in DEPTHS:
            entry = tuned(peer, k, aim, tuning)
            if entry is None:
                skipped[peer.name] = f"no setting has ANN recall@{k} {aim:g}"
            else:
                entries.append(entry)
    for k in DEPTHS:
        measure([entry for entry in entries if entry.k == k], measuring, options.turns)
    aims = targets(entries, skipped)
    verdicts = markdown(["figure", "measured", "target", "verdict"], [aim.row() for aim in aims])
    notes = [f"## Targets, at ANN recall@{AIMED}", "", verdicts]
    notes += [f"- {name}: {reason}" for name, reason in skipped.items()]
    text = report(options, entries, automatic, notes)
    print(text)
    if not options.dry:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{datetime.now(UTC):%Y-%m-%d}-index.md").write_text(text, encoding="utf-8")
        plot(automatic[AIMED].curve, RESULTS / f"{datetime.now(UTC):%Y-%m-%d}-index.png")
    missed = [aim.what for aim in aims if aim.missed]
    if missed:
        print(f"missed: {'; '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


def progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
