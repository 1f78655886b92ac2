r"""The API against the bare cost of the same encoding and faiss search, in one run on the same threads.

    python benchmarks/serving.py                                        # 100,000 and 1,000,000 documents
    python benchmarks/serving.py --sizes 100000 --rounds 1 --seconds 2 --dry

For a feature tower and for a transformer of 4 layers × 256 (through ONNX, `--form`), at each size: the
process of `twotower serve` (serving_subject.py; bundle and vectors: serving_bundle.py) on `--server-cores`
with one thread of computation, and 1, 8 and 64 callers (serving_clients.py) in processes of their own on
`--client-cores`. In every round the server process first times the bare work, one query and 64 at a time,
then answers by HTTP; figures are medians over rounds. With `--processes` over 1 so many others answer by HTTP
on its cores, and the bare work is still that of one process. Queries are distinct, so that the cache of query
vectors answers none; what it would give is a figure of its own.

Prints tables, writes them to `benchmarks/results/<date>-serving.md`, and exits with 1 when a target is
missed.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from load import resident_mb
from loss import Target, installed
from quality import hardware

from pipelines.report import markdown

HERE = Path(__file__).parent
CALLERS = (1, 8, 64)
KINDS = ("features", "transformer")
Figures = dict[str, Any]


class Server:
    """A running subject: asks it for bare figures by its standard input."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process, self.port = process, port

    def ask(self, **question: Any) -> Any:
        """Return the answer to one question."""
        if self.process.stdin is None or self.process.stdout is None:
            raise RuntimeError("the server has no standard input or output")
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@dataclass
class Case:
    """One tower at one size, and its figures of every round by name."""

    kind: str
    size: int
    about: Figures = field(default_factory=dict)
    rounds: list[Figures] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What the tables call it."""
        return f"{self.kind}, {self.size:,}"

    def middle(self, *path: str) -> float:
        """Return the median over rounds of a figure."""
        values = []
        for one in self.rounds:
            value: Any = one
            for name in path:
                value = value[name]
            values.append(float(value))
        return median(values)

    @property
    def overhead_ms(self) -> float:
        """What HTTP adds to the bare p50 for one caller: the median of each round's difference."""
        return float(median(one["http 1"]["p50_ms"] - one["bare 1"]["p50_ms"] for one in self.rounds))

    @property
    def share(self) -> float:
        """Throughput of 64 callers by that of the bare pipeline in batches of 64."""
        shares = [one["http 64"]["per_second"] / one["bare 64"]["per_second"] for one in self.rounds]
        return float(median(shares))


def environment() -> dict[str, str]:
    """Return the environment of every process: one thread of computation, and none that waits busily."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def pinned(cores: str, script: str, *arguments: object) -> list[str]:
    """Return the command line of a script on some cores."""
    return ["taskset", "-c", cores, sys.executable, str(HERE / script), *map(str, arguments)]


@contextmanager
def serving(options: argparse.Namespace, kind: str, size: int) -> Iterator[Server]:
    """Start a subject and wait until it answers."""
    subject = ("serving_subject.py", options.work, kind, size, "--form", options.form)
    command = pinned(options.server_cores, *subject, "--processes", options.processes)
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, env=environment(), **pipes)
    try:
        port = serving = 0
        for line in process.stderr or ():
            if "page http://" in line:
                port = int(line.split("127.0.0.1:")[1].split("/")[0])
            serving += "serving bundle" in line
            if serving == options.processes:
                break
        if serving < options.processes:
            raise RuntimeError(f"the server ended with {process.wait()}")
        yield Server(process, port)
    finally:
        process.terminate()
        process.communicate(timeout=60)


def workers(pid: int) -> list[int]:
    """Return the ids of the processes that answer: those that the subject started, or itself."""
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    spawned = [int(one) for one in listed if b"spawn_main" in Path(f"/proc/{one}/cmdline").read_bytes()]
    return spawned or [pid]


def called(options: argparse.Namespace, port: int, callers: int, seed: int) -> Figures:
    """Let callers ask, shared out over a process for each client core."""
    cores = options.client_cores.split(",")[: 1 if callers == 1 else None]
    running = [
        subprocess.Popen(
            [
                *pinned(core, "serving_clients.py", port, "--callers", callers // len(cores)),
                *("--seconds", str(options.seconds), "--seed", str(seed * 100 + place)),
            ],
            stdout=subprocess.PIPE,
            env=environment(),
        )
        for place, core in enumerate(cores)
    ]
    replies = [json.loads(process.communicate()[0]) for process in running]
    failed = sum(reply["failed"] for reply in replies)
    if failed:
        raise RuntimeError(f"{failed} requests were not answered")
    taken = np.concatenate([reply["microseconds"] for reply in replies]) / 1e3
    p50, p99 = np.percentile(taken, [50, 99])
    rate = len(taken) / options.seconds
    busy = max(reply["busy"] for reply in replies)
    return {"p50_ms": float(p50), "p99_ms": float(p99), "per_second": rate, "busy": busy}


def ceiling(options: argparse.Namespace) -> Figures:
    """Return what the callers do against a server that does nothing, on the same cores."""
    command = pinned(options.server_cores, "serving_clients.py", 0, "--nothing")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
    try:
        port = int(next(iter(process.stdout or ())))
        return {f"http {callers}": called(options, port, callers, 7) for callers in (1, 64)}
    finally:
        process.terminate()
        process.wait()


def measure(options: argparse.Namespace, kind: str, size: int) -> Case:
    """Measure one tower at one size."""
    case = Case(kind, size)
    with serving(options, kind, size) as server:
        seconds = options.seconds
        called(options, server.port, 8, 999)
        for number in range(options.rounds):
            figures: Figures = {}
            before = server.ask(ask="about")["hits"]
            figures["bare 1"] = server.ask(ask="bare", batch=1, seconds=seconds)
            figures["http 1"] = called(options, server.port, 1, 3 * number + 1)
            figures["answers"] = server.ask(ask="answers", seconds=seconds)
            figures["bare 64"] = server.ask(ask="bare", batch=64, seconds=seconds)
            figures["http 64"] = called(options, server.port, 64, 3 * number + 2)
            figures["http 8"] = called(options, server.port, 8, 3 * number + 3)
            if (hits := server.ask(ask="about")["hits"] - before) > 10:
                raise RuntimeError(f"the cache answered {hits} queries; it was to answer none")
            figures["cached"] = server.ask(ask="cached", seconds=seconds / 2)
            if kind == "transformer":
                figures["forms 1"] = server.ask(ask="forms", batch=1, seconds=seconds)
                figures["forms 64"] = server.ask(ask="forms", batch=64, seconds=seconds)
            case.rounds.append(figures)
            print(f"  {case.name}: round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
        case.about = server.ask(ask="about")
        case.about["resident_mb"] = round(sum(map(resident_mb, workers(server.process.pid))))
    return case


def table(cases: list[Case]) -> str:
    """Return latency and throughput of every case."""
    header = ["tower, documents", "", "p50 ms", "p99 ms", "queries/s"]
    rows = []
    for case in cases:
        kinds = [("bare, one at a time", "bare 1"), ("bare, batches of 64", "bare 64")]
        kinds += [("answered in the process, one at a time", "answers"), ("the same, vector kept", "cached")]
        kinds += [(f"HTTP, {callers} callers", f"http {callers}") for callers in CALLERS]
        for label, name in kinds:
            p50, p99, rate = (case.middle(name, what) for what in ("p50_ms", "p99_ms", "per_second"))
            rows.append([case.name, label, f"{p50:.2f}", f"{p99:.2f}", f"{rate:,.0f}"])
    return markdown(header, rows)


def forms_table(cases: list[Case]) -> str:
    """Return what each form of the transformer takes."""
    header = ["transformer", "p50 ms, one query", "p99 ms", "torch / it", "queries/s in batches of 64"]
    case = next(case for case in cases if case.kind == "transformer")
    rows = []
    for form in ("torch", "float32", "int8"):
        p50, p99 = (case.middle("forms 1", form, what) for what in ("p50_ms", "p99_ms"))
        ratio = case.middle("forms 1", "torch", "p50_ms") / p50
        rate = case.middle("forms 64", form, "per_second")
        name = form if form == "torch" else f"ONNX {form}"
        rows.append([name, f"{p50:.2f}", f"{p99:.2f}", f"{ratio:.2f}", f"{rate:,.0f}"])
    return markdown(header, rows)


def targets(cases: list[Case], floor: Figures) -> Iterator[Target]:
    """Yield the figures that have a limit."""
    for case in cases:
        yield Target(f"{case.name}: HTTP over bare at p50, one caller", case.overhead_ms, 1.5, unit="ms")
    for case in cases:
        yield Target(
            f"{case.name}: 64 callers / bare batches of 64", case.share, 0.8, at_most=False, unit="×"
        )
    for case in cases:
        if case.size >= 1_000_000:
            p50 = case.middle("answers", "p50_ms")
            yield Target(f"{case.name}: text to ids before HTTP, p50", p50, 1.7, unit="ms")
    for case in cases:
        if case.kind == "transformer":
            taken = [case.middle("forms 1", form, "p50_ms") for form in ("torch", case.about["form"])]
            yield Target(f"{case.name}: torch / {case.about['form']}", taken[0] / taken[1], 1.0, False)
    busiest = max(case.middle(f"http {callers}", "busy") for case in cases for callers in CALLERS)
    yield Target("largest share of a core that a process of callers used", busiest, 0.8, unit="")
    least = min(floor["http 64"]["per_second"] / case.middle("http 64", "per_second") for case in cases)
    yield Target("callers against a server that does nothing / against ours", least, 1.5, False)


def report(options: argparse.Namespace, cases: list[Case], floor: Figures, indexes: list[Figures]) -> str:
    """Return the result as Markdown."""
    found = list(targets(cases, floor))
    tokens = next((case.about["tokens"] for case in cases if case.about["tokens"]), None)
    parts = [
        f"# What serving adds, {datetime.now(UTC):%Y-%m-%d}",
        f"`{shlex.join(['python', 'benchmarks/serving.py', *sys.argv[1:]])}`",
        f"{hardware()}, onnxruntime {installed('onnxruntime')}; load before the run {options.load:.1f}.",
        f"Server of {options.processes} process{'es' * (options.processes > 1)} on cores "
        f"{options.server_cores}, each with one thread of computation and every default of `twotower serve` "
        f"(query log, metrics, batching in one worker); callers on cores "
        f"{options.client_cores}. Medians of {options.rounds} rounds of {options.seconds:g} s each. Queries "
        f"of 2 to 5 words{f' ({tokens:.1f} tokens)' if tokens else ''}, all distinct, k = 10. What "
        "is not HTTP is measured in one process on one thread.",
        "Vectors of documents are drawn, not encoded (`cluster_vectors.py`), the towers' weights are random, "
        "and each query, after it is encoded in full, is searched with a held-out drawn vector; BM25 is left "
        "out. int8 is a matter of speed here: whether its results are equal is measured at every export.",
        markdown(["figure", "measured", "limit", ""], [target.row() for target in found]),
        table(cases),
        *([forms_table(cases)] if any(case.kind == "transformer" for case in cases) else []),
        f"Callers against a server that does nothing: p50 {floor['http 1']['p50_ms']:.2f} ms for one, "
        f"{floor['http 64']['per_second']:,.0f} requests/s for 64.",
        *(f"Index of {facts['size']:,} × 128: {facts['note']}." for facts in indexes),
        *(
            f"{case.name}: {case.about['resident_mb']:,} MB resident in all; encodes by {case.about['form']}."
            for case in cases
        ),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--form", default="int8", choices=("torch", "float32", "int8"))
    parser.add_argument("--processes", type=int, default=1, help="server processes; bare figures are of one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--server-cores", default="0,1")
    parser.add_argument("--client-cores", default="2,3")
    parser.add_argument("--work", type=Path, default=Path("work/benchmark-serving"))
    parser.add_argument("--dry", action="store_true", help="write no file")
    options = parser.parse_args()
    options.load = os.getloadavg()[0]
    indexes = []
    for size in options.sizes:
        command = pinned(
            options.server_cores, "serving_subject.py", options.work, "features", size, "--prepare"
        )
        made = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        indexes.append({"size": size, **json.loads(made.splitlines()[-1])})
    floor = ceiling(options)
    cases = [measure(options, kind, size) for size in options.sizes for kind in options.kinds]
    text = report(options, cases, floor, indexes)
    print(text)
    if not options.dry:
        several = f"-{options.processes}-processes" if options.processes > 1 else ""
        (HERE / "results" / f"{datetime.now(UTC):%Y-%m-%d}-serving{several}.md").write_text(text)
    sys.exit(any(target.missed for target in targets(cases, floor)))


if __name__ == "__main__":
    main()
