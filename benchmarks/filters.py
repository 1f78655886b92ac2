r"""Measure ANN recall and time of a search by the share of documents that its filter leaves.

    taskset -c 0,1 python benchmarks/filters.py
    python benchmarks/filters.py --size 20000 --factories "IVF256,Flat" --dry

Documents and queries: `cluster_vectors.draw`. Every index is set to the smallest nprobe or efSearch whose ANN
recall@k without a filter is the target. Two filters of equal share: `independent` is a range of a field that
has nothing to do with the vectors, `follows` a range of one that is a direction of theirs, as a brand or a
price is: near many a query there is then no document that matches. Both are real filters of a
`Catalogue`. Times are medians of queries one by one on one thread, the filter's mask made anew each time.

Writes a table to `benchmarks/results/<date>-filters.md` and exits with 1 where a filter costs ANN recall.
"""

import argparse
import os
import shlex
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import faiss
import numpy as np
import pandas as pd
from cluster_vectors import Vectors, draw
from quality import hardware

from pipelines.report import markdown
from serving.build import IndexConfig, build
from serving.filters import Catalogue, Selection
from serving.index import Index, Neighbours

RESULTS = Path(__file__).parent / "results"
FACTORIES = "Flat;SQ8;IVF1024,Flat;IVF1024,PQ{half}x4fsr,RFlat;HNSW32"
SHARES = (0.5, 0.2, 0.1, 0.05, 0.01, 0.001)
SINGLES = 100
HEADER = ("index", "filter", "share", "documents", "way", "ANN recall@k", "µs/query")


@dataclass(frozen=True)
class Corpus:
    """Documents, queries, and a catalogue with two fields to filter by, both uniform from 0 to 1."""

    documents: Vectors
    queries: Vectors
    catalogue: Catalogue
    k: int

    @classmethod
    def make(cls, size: int, queries: int, dimension: int, k: int) -> "Corpus":
        """Draw vectors and fields."""
        documents, asked = draw(size, queries, dimension, 0)
        random = np.random.default_rng(1)
        along = documents @ random.normal(size=dimension)
        fields = {"independent": random.random(size), "follows": along.argsort().argsort() / size}
        frame = pd.DataFrame({"doc_id": [f"d{row}" for row in range(size)], **fields})
        return cls(documents, asked, Catalogue.build(frame), k)

    def recall(self, found: list[Neighbours], selection: Selection | None = None) -> float:
        """Return ANN recall@k against an exact search of the same documents; ties count."""
        rows = np.arange(len(self.documents)) if selection is None else np.flatnonzero(selection.mask)
        k = min(self.k, len(rows))
        scores, _ = faiss.knn(self.queries, self.documents[rows], k, metric=faiss.METRIC_INNER_PRODUCT)
        shares = []
        for query, lowest, one in zip(self.queries, scores[:, -1], found, strict=True):
            shares.append(min(k, int((self.documents[one.rows] @ query >= lowest - 1e-5).sum())) / k)
        return float(np.mean(shares))


def tuned(factory: str, corpus: Corpus, target: float) -> tuple[Index, float, str]:
    """Return an index at its smallest setting with the target, its ANN recall, and the setting in words."""
    faiss.omp_set_num_threads(os.cpu_count() or 1)
    index = build(corpus.documents, IndexConfig(factory=factory, device="cpu"), "cosine")
    faiss.omp_set_num_threads(1)
    if "Refine" in factory or "RFlat" in factory:
        index.set_parameters({"k_factor_rf": 8})
    name, setting = index.tunable, 1
    if name is not None:
        index.set_parameters({name: setting})
    recall = corpus.recall(index.search(corpus.queries, corpus.k))
    while name is not None and recall < target and setting < index.largest_setting:
        setting += 1 + setting // 8
        index.set_parameters({name: setting})
        recall = corpus.recall(index.search(corpus.queries, corpus.k))
    return index, recall, "full scan" if name is None else f"{name} {setting}"


def microseconds(index: Index, corpus: Corpus, filters: dict[str, dict[str, float]] | None) -> float:
    """Return the median time of one query, its filter included."""
    times = []
    for place in range(SINGLES):
        query = corpus.queries[place % len(corpus.queries)][None]
        start = time.perf_counter()
        selection = None if filters is None else corpus.catalogue.select(filters)
        index.search(query, corpus.k, selection)
        times.append((time.perf_counter() - start) * 1e6)
    return median(times)


def measure(factory: str, corpus: Corpus, target: float) -> tuple[list[list[str]], list[str]]:
    """Return the lines of one index, and where a filter brings it below its target."""
    index, usual, setting = tuned(factory, corpus, target)
    cost = microseconds(index, corpus, None)
    lines = [
        [f"{factory}, {setting}", "none", "1", f"{index.size:,}", "whole", f"{usual:.3f}", f"{cost:,.0f}"]
    ]
    lost = []
    for field in ("independent", "follows"):
        for share in SHARES:
            filters = {field: {"lt": share}}
            chosen = corpus.catalogue.select(filters)
            recall = corpus.recall(index.search(corpus.queries, corpus.k, chosen), chosen)
            cost = microseconds(index, corpus, filters)
            told = [f"{share:g}", f"{chosen.count:,}", index.way(chosen), f"{recall:.3f}", f"{cost:,.0f}"]
            lines.append([factory, field, *told])
            if recall < min(usual, target):
                lost.append(f"{factory}, {field} {share:g}: {recall:.3f} of {usual:.3f}")
    return lines, lost


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", type=int, default=100_000, help="documents")
    parser.add_argument("--dimension", type=int, default=128, help="of a vector")
    parser.add_argument("--queries", type=int, default=300, help="queries")
    parser.add_argument("--target", type=float, default=0.95, help="ANN recall@k without a filter")
    parser.add_argument("--k", type=int, default=10, help="depth")
    parser.add_argument("--factories", default=FACTORIES, help="faiss factory strings, separated by ;")
    parser.add_argument("--dry", action="store_true", help="print only")
    options = parser.parse_args()
    corpus = Corpus.make(options.size, options.queries, options.dimension, options.k)
    lines: list[list[str]] = []
    lost: list[str] = []
    for factory in options.factories.format(half=options.dimension // 2).split(";"):
        measured, below = measure(factory, corpus, options.target)
        print(markdown(HEADER, measured), flush=True)
        lines += measured
        lost += below
    verdict = "No filter costs ANN recall." if not lost else "Below the target: " + "; ".join(lost)
    print(verdict)
    if not options.dry:
        command = shlex.join(["python", "benchmarks/filters.py", *sys.argv[1:]])
        size = (
            f"{options.size:,} × {options.dimension}, {options.queries} queries, k = {options.k}, one thread"
        )
        text = f"# Filters: ANN recall and time by share\n\n`{command}`: {size}. {hardware()}.\n\n"
        path = RESULTS / f"{datetime.now(UTC):%Y-%m-%d}-filters.md"
        path.write_text(f"{text}{markdown(HEADER, lines)}\n\n{verdict}\n", encoding="utf-8")
    sys.exit(1 if lost else 0)


if __name__ == "__main__":
    main()
