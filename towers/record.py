"""Where training tells what it measures and what happened to it."""

from dataclasses import dataclass, field
from typing import Any, Protocol


class Recorder(Protocol):
    """Receives numbers and events while training runs; it must not change anything about the training."""

    def metric(self, name: str, value: float, step: int) -> None:
        """Take a measurement; `step` counts optimiser steps over all stages, names look like `train/loss`."""
        ...

    def event(self, name: str, details: dict[str, Any]) -> None:
        """Take something that happened, such as `stage_started` or `checkpoint_damaged`; details are JSON."""
        ...


class NoRecorder:
    """Forgets everything."""

    def metric(self, name: str, value: float, step: int) -> None:
        """Forget a measurement."""

    def event(self, name: str, details: dict[str, Any]) -> None:
        """Forget an event."""


@dataclass
class ListRecorder:
    """Keeps everything in memory, in order."""

    metrics: list[tuple[str, float, int]] = field(default_factory=list)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def metric(self, name: str, value: float, step: int) -> None:
        """Keep a measurement."""
        self.metrics.append((name, value, step))

    def event(self, name: str, details: dict[str, Any]) -> None:
        """Keep an event."""
        self.events.append((name, details))
