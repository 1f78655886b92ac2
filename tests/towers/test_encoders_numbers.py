import math

import numpy as np
import pandas as pd
import pytest
import torch

from features.errors import ConfigError, SchemaError
from towers.encoders.numbers import NumberInput, Transform, fit_scale, standardised


def prepare(frame: pd.DataFrame, config: NumberInput, fitted_on: pd.DataFrame | None = None) -> torch.Tensor:
    scale = fit_scale(frame if fitted_on is None else fitted_on, config)
    return standardised(frame, ((config, scale),))


def test_present_values_have_mean_zero_and_deviation_one():
    values = prepare(pd.DataFrame({"x": [1.0, 2.0, 3.0, math.nan]}), NumberInput(column="x"))
    assert values[:3, 0].mean() == pytest.approx(0, abs=1e-6)
    assert values[:3, 0].std(correction=0) == pytest.approx(1)


@pytest.mark.parametrize(
    "column",
    [
        [1.0, math.nan],
        [1.0, None],
        pd.array([1, None], dtype="Int64"),
        pd.Series([True, None], dtype=object),
        pd.Series([1.5, pd.NA], dtype=object),
    ],
)
def test_a_missing_value_is_zero_with_its_indicator_set(column):
    values = prepare(pd.DataFrame({"x": column}), NumberInput(column="x"))
    assert values[:, 1].tolist() == [0.0, 1.0]
    assert values[1, 0] == 0
    assert values.dtype == torch.float32


@pytest.mark.parametrize("bad", [math.inf, -math.inf, 1e39])
def test_an_infinite_value_is_refused_naming_column_and_document(bad):
    frame = pd.DataFrame({"doc_id": ["a", "b"], "price": [1.0, bad]})
    with pytest.raises(
        SchemaError, match=r"column 'price' of document 'b' holds .*finite.*leave it empty"
    ) as error:
        fit_scale(frame, NumberInput(column="price"))
    assert "\n" not in str(error.value)


def test_an_infinite_value_of_a_query_is_refused_naming_the_row():
    scale = fit_scale(pd.DataFrame({"age": [1.0, 2.0]}), NumberInput(column="age"))
    with pytest.raises(SchemaError, match="column 'age' of row 1"):
        standardised(pd.DataFrame({"age": [1.0, math.inf]}), ((NumberInput(column="age"), scale),))


def test_text_in_a_number_column_is_refused():
    with pytest.raises(SchemaError, match=r"column 'x' of row 0 holds cheap.*categories"):
        fit_scale(pd.DataFrame({"x": ["cheap"]}), NumberInput(column="x"))


def test_a_missing_column_is_refused_naming_those_there_are():
    with pytest.raises(ConfigError, match="'x' that is not there; there are: a, y"):
        fit_scale(pd.DataFrame({"y": [1.0], "a": [2.0]}), NumberInput(column="x"))


def test_log1p_keeps_the_sign():
    scale = fit_scale(pd.DataFrame({"x": [0.0]}), NumberInput(column="x", transform=Transform.LOG1P))
    frame = pd.DataFrame({"x": [math.e - 1, -(math.e - 1)]})
    values = standardised(frame, ((NumberInput(column="x", transform=Transform.LOG1P), scale),))
    assert values[:, 0].tolist() == pytest.approx([1, -1])


def test_logit_of_a_share_is_finite_at_its_ends_and_refused_outside():
    config = NumberInput(column="ctr", transform=Transform.LOGIT)
    values = prepare(pd.DataFrame({"ctr": [0.0, 0.5, 1.0]}), config)
    assert torch.isfinite(values).all()
    assert values[0, 0] == pytest.approx(-values[2, 0].item())
    with pytest.raises(SchemaError, match="a logit needs a share from 0 to 1"):
        fit_scale(pd.DataFrame({"ctr": [1.5]}), config)


@pytest.mark.parametrize("column", [[5.0, 5.0], [math.nan, math.nan], [None, None]])
def test_a_constant_or_empty_column_gives_zeros(column):
    assert prepare(pd.DataFrame({"x": column}), NumberInput(column="x"))[:, 0].tolist() == [0, 0]


def test_the_scale_is_that_of_the_frame_it_was_built_from():
    built_from = pd.DataFrame({"x": [0.0, 2.0]})
    assert prepare(pd.DataFrame({"x": [3.0]}), NumberInput(column="x"), built_from)[0, 0] == pytest.approx(2)


def test_an_outlier_is_held_at_ten_deviations():
    frame = pd.DataFrame({"x": [1e30]})
    values = prepare(frame, NumberInput(column="x"), pd.DataFrame({"x": np.arange(10.0)}))
    assert values[0, 0] == 10
