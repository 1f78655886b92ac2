"""The click model of the simulated shop: a cascade with position bias, satisfaction and noise.

A shopper looks at the first place, and goes on from each place to the next with the chance `patience`. A
document that is looked at is clicked with a chance given by its true grade and its quality, or by accident.
A click on a relevant document may satisfy the shopper, who then looks no further. Hence the chance that place
p is looked at is `patience ** (p - 1)` times the chance that nothing above satisfied the shopper. With
`satisfaction` 0 it depends on the place alone, which is what estimators of position bias assume.
Legend: S lists, R places.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from features.config import Config

ATTRACTION = (0.0, 0.06, 0.2, 0.4)
"""Chance of a deliberate click on a document of grade 0, 1, 2, 3 that is looked at, times its quality."""

SATISFACTION = (0.0, 0.3, 0.6, 1.0)
"""How much of `ClickConfig.satisfaction` a clicked document of grade 0, 1, 2, 3 gives."""

_TYPICAL_DWELL_MS = (4_000.0, 12_000.0, 30_000.0, 55_000.0)
_DWELL_SPREAD = 0.8  # standard deviation of the logarithm


class ClickConfig(Config):
    """How shoppers of the simulated shop read a list."""

    patience: float = Field(
        0.88, ge=0.0, le=1.0, description="Chance of going on from one place to the next."
    )
    satisfaction: float = Field(
        0.6, ge=0.0, le=1.0, description="Chance that a click on a perfect document ends it."
    )
    noise: float = Field(
        0.015, ge=0.0, lt=1.0, description="Chance that a document looked at is clicked by accident."
    )


@dataclass(frozen=True, kw_only=True)
class Clicks:
    """What happened on each place of each list."""

    clicked: NDArray[np.bool_]  # (S, R)
    dwell_ms: NDArray[np.int64]  # (S, R); 0 where not clicked
    examination: NDArray[np.float64]  # (S, R) chance, given the list, that the place was looked at


def click(
    grade: NDArray[np.int8], quality: NDArray[np.float64], config: ClickConfig, rng: np.random.Generator
) -> Clicks:
    """Let one shopper read each list.

    Args:
        grade: True relevance of the shown documents, (S, R), 0 to 3.
        quality: What multiplies their attraction, (S, R).
        config: The shoppers.
        rng: Source of every random choice.
    """
    attraction = click_probability(grade, quality, config)
    satisfying = config.satisfaction * np.array(SATISFACTION)[grade]
    looking = np.ones(len(grade), dtype=np.bool_)
    chance = np.ones(len(grade))
    clicked = np.zeros(grade.shape, dtype=np.bool_)
    examination = np.empty(grade.shape)
    for place in range(grade.shape[1]):
        examination[:, place] = chance
        clicked[:, place] = looking & (rng.random(len(grade)) < attraction[:, place])
        satisfied = clicked[:, place] & (rng.random(len(grade)) < satisfying[:, place])
        looking &= ~satisfied & (rng.random(len(grade)) < config.patience)
        chance = chance * config.patience * (1.0 - attraction[:, place] * satisfying[:, place])
    typical = np.array(_TYPICAL_DWELL_MS)[grade[clicked]]
    dwell_ms = np.zeros(grade.shape, dtype=np.int64)
    dwell_ms[clicked] = (typical * rng.lognormal(0.0, _DWELL_SPREAD, len(typical))).astype(np.int64)
    return Clicks(clicked=clicked, dwell_ms=dwell_ms, examination=examination)


def click_probability(
    grade: NDArray[np.int8], quality: NDArray[np.float64], config: ClickConfig
) -> NDArray[np.float64]:
    """Return the chance that a document is clicked once it is looked at."""
    deliberate = np.minimum(np.array(ATTRACTION)[grade] * quality, 1.0)
    return 1.0 - (1.0 - config.noise) * (1.0 - deliberate)
