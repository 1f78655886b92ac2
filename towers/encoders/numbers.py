"""Number columns as inputs: a transform, standardised, with an indicator for the missing."""

from enum import StrEnum
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor

from features.config import Config
from features.errors import SchemaError
from towers.encoders.encoder import Table, column_of, is_missing

_FLOAT32_MAX = float(np.finfo(np.float32).max)
_LOGIT_EDGE = 1e-4  # shares nearer to 0 or 1 than this count as this near
_CLIP = 10.0  # standard deviations


class Transform(StrEnum):
    """What is done to a number before it is standardised."""

    NONE = "none"
    LOG1P = "log1p"  # sign(x) * log(1 + |x|), for counts and prices
    LOGIT = "logit"  # log(x / (1 - x)), for shares such as a click-through rate


class NumberInput(Config):
    """A number or bool column, standardised by the mean and deviation of the frame it was built from."""

    column: str = Field(min_length=1, description="Name of the column.")
    transform: Transform = Field(
        Transform.NONE, description="none, log1p (counts, prices) or logit (shares)."
    )


class PopularityInput(NumberInput):
    """A number that reaches the score on a straight line."""

    start: float = Field(
        0.0,
        ge=-10,
        le=10,
        description="First weight, in logits for each unit after the transform; with 1, log clicks start as "
        "log-probabilities.",
    )


class Scale(Config):
    """Mean and standard deviation of a transformed column, missing values left out."""

    mean: float
    deviation: float = Field(gt=0)


def fit_scale(frame: Table, config: NumberInput) -> Scale:
    """Return mean and deviation of a column; a constant or empty column has deviation 1."""
    values = _transformed(frame, config)
    present = values[~np.isnan(values)]
    if len(present) == 0:
        return Scale(mean=0.0, deviation=1.0)
    deviation = float(present.std())
    return Scale(mean=float(present.mean()), deviation=deviation if deviation > 1e-12 else 1.0)


def standardised(frame: Table, numbers: tuple[tuple[NumberInput, Scale], ...]) -> Tensor:
    """Return (N, 2K) float32: K standardised columns, then K indicators that are 1 where a value is missing.

    A missing value is 0 after standardising. Values beyond 10 deviations count as 10.

    Raises:
        ConfigError: If a column is not there.
        SchemaError: If a value is infinite, not a number, or no share where a logit is asked for.
    """
    columns = []
    for config, scale in numbers:
        values = (_transformed(frame, config) - scale.mean) / scale.deviation
        columns.append(np.clip(values, -_CLIP, _CLIP))
    table = np.stack(columns, axis=1)
    missing = np.isnan(table)
    return torch.from_numpy(
        np.concatenate([np.where(missing, 0.0, table), missing], axis=1).astype(np.float32)
    )


def _transformed(frame: Table, config: NumberInput) -> np.ndarray:
    values = _floats(frame, config.column)
    _refuse(frame, config.column, np.abs(values) > _FLOAT32_MAX, "numbers must be finite and fit in float32")
    if config.transform is Transform.LOG1P:
        return np.asarray(np.sign(values) * np.log1p(np.abs(values)))
    if config.transform is Transform.LOGIT:
        _refuse(frame, config.column, (values < 0) | (values > 1), "a logit needs a share from 0 to 1")
        share = np.clip(values, _LOGIT_EDGE, 1 - _LOGIT_EDGE)
        return np.asarray(np.log(share) - np.log1p(-share))
    return values


def _floats(frame: Table, name: str) -> np.ndarray:
    column = pd.Series(column_of(frame, name))
    if pd.api.types.is_numeric_dtype(column.dtype):
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    values = np.full(len(column), np.nan)
    wrong = np.zeros(len(column), dtype=bool)
    for row, value in enumerate(column):
        if not is_missing(value):
            wrong[row] = not _is_number(value)
            values[row] = 0.0 if wrong[row] else float(value)
    _refuse(frame, name, wrong, "the towers read it as a number; a text column belongs under categories")
    return values


def _is_number(value: Any) -> bool:
    return not isinstance(value, str | bytes) and hasattr(value, "__float__")


def _refuse(frame: Table, name: str, wrong: np.ndarray, rule: str) -> None:
    if not wrong.any():
        return
    row = int(np.argmax(wrong))
    value = list(frame[name])[row]
    where = f"document {list(frame['doc_id'])[row]!r}" if "doc_id" in frame else f"row {row}"
    raise SchemaError(f"column {name!r} of {where} holds {value}: {rule}; repair it or leave it empty")
