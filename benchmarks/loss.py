r"""Measure the tiled losses against the products they cannot avoid, and against their peers, in one run.

    taskset -c 0,1 python benchmarks/loss.py      # the targets: B = 16,384; memory at B = 32,768
    python benchmarks/loss.py --batch 4096 --repeats 3 --dry

Give it two cores of their own, and leave `OMP_WAIT_POLICY` alone: with `PASSIVE`, which the command line sets
for shared cores, every operation waits for its threads to wake, and the tiled losses have more of them than
the bare products (measured: 1.85 instead of 1.6 times the three products).

Prints a table, writes it to `benchmarks/results/<date>-loss.md`, and exits with 1 when a target is missed.
The variants take turns; a figure is the median over the turns of a ratio of two times of one turn.

Everybody gets the same unit vectors as leaves and computes the bidirectional cross-entropy at the same
temperature, forward and backward; that all arrive at the same value is checked first. The peers are the
installed packages' own classes:

- open_clip: `ClipLoss`, from the package's `loss.py` alone, since the package itself imports torchvision.
- sentence-transformers: `CachedMultipleNegativesRankingLoss.calculate_loss(with_backward=True)`, both
  directions, inner product. That is its loss without its encoder's two passes, which would only add time.

A peer that is not installed is skipped, and the table says so; `uv sync --group bench` installs both.
"""

import argparse
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

import torch
from loss_variants import CONFIGS, Inputs, Work, variants
from quality import hardware

from pipelines.report import markdown
from towers.tiles import TilingConfig

RESULTS = Path(__file__).parent / "results"
MEMORY_LIMIT = 64.0  # MiB


@dataclass(frozen=True)
class Target:
    """A figure and its limit; `figure` is `None` where it could not be measured."""

    what: str
    figure: float | None
    limit: float
    at_most: bool = True
    unit: str = "×"
    note: str = ""

    @property
    def missed(self) -> bool:
        """Whether it was measured and is past the limit."""
        return self.figure is not None and (self.figure > self.limit) == self.at_most

    def row(self) -> list[str]:
        """Return it as a row of the report."""
        limit = f"{'≤' if self.at_most else '≥'} {self.limit:g} {self.unit}"
        if self.figure is None:
            return [self.what, "not measured", limit, self.note]
        verdict = "**missed**" if self.missed else "met"
        return [self.what, f"{self.figure:.2f} {self.unit}", limit, verdict]


def check_equal(timed: dict[str, Work]) -> dict[str, float]:
    """Return every variant's value; all that compute one thing must agree.

    Raises:
        AssertionError: If two disagree by more than float32's rounding, or bfloat16's.
    """
    values = {name: work() for name, work in timed.items()}
    expected = values["tiled cross-entropy"]
    for name, tolerance in (
        ("open_clip", 1e-5),
        ("sentence-transformers cached, 512", 1e-5),
        ("tiled cross-entropy, bfloat16", 1e-2),
    ):
        if name in values and abs(values[name] - expected) > tolerance * expected:
            raise AssertionError(f"{name} computes {values[name]}, the tiled loss {expected}")
    if abs(values["plain hinge"] - values["tiled hinge"]) > 1e-5 * values["plain hinge"]:
        raise AssertionError(f"hinge: plain {values['plain hinge']}, tiled {values['tiled hinge']}")
    return values


def time_in_turns(timed: dict[str, Work], repeats: int) -> dict[str, list[float]]:
    """Return seconds of each variant, one of each turn."""
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(repeats):
        for name, work in timed.items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def targets(seconds: dict[str, list[float]], skipped: dict[str, str]) -> Iterator[Target]:
    """Yield the figures that have a limit."""

    def ratio(above: str, below: str) -> float | None:
        if above in skipped or below in skipped:
            return None
        return median(a / b for a, b in zip(seconds[above], seconds[below], strict=True))

    ours = "tiled cross-entropy"
    yield Target("cross-entropy / three products", ratio(ours, "three products"), 1.8)
    for peer, limit in (("open_clip", 3.0), ("sentence-transformers cached, 512", 4.0)):
        yield Target(f"{peer} / cross-entropy", ratio(peer, ours), limit, False, note=skipped.get(peer, ""))
    narrow = f"{ours}, bfloat16"
    note = skipped.get(narrow, "")
    yield Target("bfloat16 cross-entropy / three products", ratio(narrow, "three products"), 1.1, note=note)
    yield Target("hinge / one product", ratio("tiled hinge", "one product"), 2.0)
    yield Target("plain hinge / hinge", ratio("plain hinge", "tiled hinge"), 10.0, False)


def extra_memory(name: str, batch: int, dimension: int, threads: int) -> float:
    """Return by how many MiB a fresh process grows past its inputs, gradients included."""
    command = [sys.executable, __file__, "--memory-of", name, "--memory-batch", str(batch)]
    command += ["--dimension", str(dimension), "--threads", str(threads)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_memory(name: str, batch: int, dimension: int) -> float:
    """Return by how many MiB this process grows past its inputs; libraries and threads are warm by then."""
    small = Inputs(256, dimension)
    small.tiled(CONFIGS[name], TilingConfig())()
    inputs = Inputs(batch, dimension)
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
    inputs.tiled(CONFIGS[name], TilingConfig())()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10 - resident


def report(
    options: argparse.Namespace, seconds: dict[str, list[float]], values: dict[str, float], aims: list[Target]
) -> str:
    """Return the dated Markdown file."""
    floor = seconds["three products"]
    times = [
        [
            name,
            f"{median(taken):.3f}",
            f"{min(taken):.3f}",
            f"{median(a / b for a, b in zip(taken, floor, strict=True)):.2f}",
            f"{values[name]:.6f}" if "product" not in name else "",
        ]
        for name, taken in seconds.items()
    ]
    peers = [f"{name} {installed(name)}" for name in ("open_clip_torch", "sentence-transformers")]
    return "\n".join(
        [
            f"# Losses, forward and backward, B = {options.batch:,}, D = {options.dimension}",
            "",
            f"{datetime.now(UTC):%Y-%m-%d}, `python {shlex.join(['benchmarks/loss.py', *sys.argv[1:]])}`",
            "",
            f"{hardware()}; {', '.join(peers)}; medians of "
            f"{options.repeats} interleaved turns; memory at B = {options.memory_batch:,}, gradients of the "
            "inputs included.",
            "",
            markdown(["figure", "measured", "target", "verdict"], [aim.row() for aim in aims]),
            "",
            markdown(["variant", "median s", "best s", "× three products", "loss"], times),
            "",
        ]
    )


def installed(package: str) -> str:
    """Return a package's version."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=16_384, help="B of the timings")
    parser.add_argument("--memory-batch", type=int, default=32_768, help="B of the memory figures")
    parser.add_argument("--dimension", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dry", action="store_true", help="write no file")
    parser.add_argument("--memory-of", choices=sorted(CONFIGS), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    options = arguments()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print(measure_memory(options.memory_of, options.memory_batch, options.dimension))
        return 0
    memory = [
        Target(
            f"memory of {name}",
            extra_memory(name, options.memory_batch, options.dimension, options.threads),
            MEMORY_LIMIT,
            unit="MiB",
        )
        for name in CONFIGS
    ]
    timed, skipped = variants(Inputs(options.batch, options.dimension), TilingConfig())
    values = check_equal(timed)
    seconds = time_in_turns(timed, options.repeats)
    aims = [*targets(seconds, skipped), *memory]
    text = report(options, seconds, values, aims)
    print(text)
    if not options.dry:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{datetime.now(UTC):%Y-%m-%d}-loss.md").write_text(text, encoding="utf-8")
    missed = [aim.what for aim in aims if aim.missed]
    if missed:
        print(f"missed: {'; '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
