"""When to leave a stage, and what must be measured before the next one is entered.

Every rule reads the probe (`towers.probe`), a batch whose rows and size never change: the floor of a
cross-entropy grows with the logarithm of the batch, so the losses of two stages' own batches do not compare.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from features.config import Config


class ProbeConfig(Config):
    """The fixed batch of training examples that is measured throughout."""

    rows: int = Field(256, ge=2, description="Its size; all examples where there are fewer.")
    every: int = Field(20, ge=1, description="Optimiser steps between measurements.")


class EnterConfig(Config):
    """What a stage waits for. The stage before it goes on, at a tenth of its rate, until this is measured."""

    gap: float = Field(
        0.02,
        description="The probe's mean of positive minus hardest negative must exceed it, in units of a score "
        "of equal vectors (1 under cosine).",
    )
    measurements: int = Field(3, ge=1, description="So many times in a row.")
    extend: float = Field(
        2.0, ge=0, description="The stage before may last so many times its own length longer; then: error."
    )


class PlateauConfig(Config):
    """Leave when the stage's objective on the probe stops falling."""

    kind: Literal["plateau"] = "plateau"
    improvement: float = Field(
        0.01, ge=0, lt=1, description="Share of its best value by which the loss must fall to count."
    )
    patience: int = Field(5, ge=1, description="Measurements in a row without that after which it is over.")


class SeparationConfig(Config):
    """Leave when positives beat their hardest negatives."""

    kind: Literal["separation"] = "separation"
    gap: float = Field(0.05, description="As in `enter`.")
    measurements: int = Field(3, ge=1, description="So many times in a row.")


LeaveConfig = Annotated[PlateauConfig | SeparationConfig, Field(discriminator="kind")]


@dataclass
class Leaving:
    """What the rules remember of a stage; plain numbers, so that a checkpoint holds it.

    Attributes:
        lowest: Best loss of the probe that counted as an improvement.
        flat: Measurements since then.
        separated: Measurements in a row above the gap of the stage's own rule.
        ready: Measurements in a row above the gap for which the next stage waits.
    """

    lowest: float | None = None
    flat: int = 0
    separated: int = 0
    ready: int = 0

    def take(
        self, loss: float, gap: float | None, leave: LeaveConfig | None, following: EnterConfig | None
    ) -> None:
        """Take a measurement of the probe; a gap of `None` (no negatives) is not separated."""
        gap = float("-inf") if gap is None else gap
        if isinstance(leave, PlateauConfig):
            better = self.lowest is None or loss < self.lowest - leave.improvement * abs(self.lowest)
            self.lowest, self.flat = (loss, 0) if better else (self.lowest, self.flat + 1)
        if isinstance(leave, SeparationConfig):
            self.separated = self.separated + 1 if gap > leave.gap else 0
        if following is not None:
            self.ready = self.ready + 1 if gap > following.gap else 0

    def reason(self, leave: LeaveConfig | None) -> str | None:
        """Return why the stage's own rule ends it, or `None`."""
        if isinstance(leave, PlateauConfig) and self.flat >= leave.patience:
            return "plateau"
        if isinstance(leave, SeparationConfig) and self.separated >= leave.measurements:
            return "separated"
        return None

    def may_enter(self, following: EnterConfig | None) -> bool:
        """Return whether the next stage need not wait any longer."""
        return following is None or self.ready >= following.measurements
