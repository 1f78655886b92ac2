"""What a person sees while a run works: a live bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from pipelines.workspace import StageResult

_PLAIN_SECONDS = 10.0
_SHOWN = ("train/loss", "validation/")  # prefixes of the metrics that fit beside a bar


class Progress:
    """Prints the stages of a run to a console, and the newest training metrics now and then.

    It is a `towers.record.Recorder`.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bars: Bars | None = None
        self._stage = ""
        self._started = self._printed = 0.0
        self._latest: dict[str, float] = {}
        self._step = self._first_step = 0
        self._steps: int | None = None

    def start(self, stage: str) -> None:
        """Show that a stage begins."""
        self._stage, self._started, self._latest = stage, time.monotonic(), {}
        self._printed = self._started
        self._step = self._first_step = 0
        self._steps = None
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description:<9}"),
                BarColumn(bar_width=30),
                TimeElapsedColumn(),
                TextColumn("{task.fields[values]}"),
            )
            self._bars = Bars(*columns, console=self.console, transient=True)
            self._bars.add_task(stage, total=None, values="")
            self._bars.start()
        else:
            self.line(f"{stage:<9} started")

    def stop(self) -> None:
        """Remove the live bar; harmless when there is none."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def done(self, result: StageResult) -> None:
        """Show how a stage ended."""
        self.stop()
        how = "cached" if result.cached else f"{result.seconds:.1f} s"
        self.line(f"{result.stage:<9} {how:>8}  {result.summary}")

    def line(self, text: str) -> None:
        """Print one line."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def metric(self, name: str, value: float, step: int) -> None:
        """Take note of a training metric and show the newest ones from time to time."""
        self._step = step
        if name.startswith(_SHOWN):
            self._latest[name.partition("/")[2]] = value
        values = "  ".join(f"{key} {number:.4g}" for key, number in list(self._latest.items())[-4:])
        if self._bars is not None:
            done = step - self._first_step
            self._bars.update(self._bars.task_ids[0], total=self._steps, completed=done, values=values)
        elif time.monotonic() - self._printed >= _PLAIN_SECONDS:
            self._printed = time.monotonic()
            of = f" of {self._first_step + self._steps}" if self._steps else ""
            self.line(f"{self._stage:<9} {self._printed - self._started:6.0f} s  step {step}{of}  {values}")

    def event(self, name: str, details: Mapping[str, Any]) -> None:
        """Print something that happened; `steps` of a started stage is the length of the bar."""
        if name == "stage_started":
            self._first_step, self._steps = self._step, details.get("steps")
        shown = (
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in details.items()
        )
        self.line(f"{self._stage:<9} {name.replace('_', ' ')}: {', '.join(shown)}")


class Recorders:
    """Hands what training records to several recorders."""

    def __init__(self, *recorders: Any) -> None:
        self._recorders = recorders

    def metric(self, name: str, value: float, step: int) -> None:
        """Pass a metric on."""
        for recorder in self._recorders:
            recorder.metric(name, value, step)

    def event(self, name: str, details: dict[str, Any]) -> None:
        """Pass an event on."""
        for recorder in self._recorders:
            recorder.event(name, details)
