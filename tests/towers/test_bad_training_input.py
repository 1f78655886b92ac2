"""What a training says to input that cannot be right: an error that names it, or a stated behaviour."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from features.artifact import publish
from features.errors import ConfigError, SchemaError, TrainingError
from towers.losses import HingeConfig, TripletConfig
from towers.schedule import StageConfig
from towers.train import NoRecorder, TrainConfig, train
from towers.two_tower import TowersConfig

TEXT = {"kind": "features", "text": {"width": 8, "word_buckets": 256, "ngram_buckets": 1, "ngram_max": 0}}
TOWERS = {"dimension": 8, "query": TEXT, "document": TEXT}
STAGE = {"name": "only", "batch_size": 32, "steps": 4}


def trained(examples: Path, target: Path, *, towers: Any = None, **stage: Any) -> dict[str, Any]:
    config = TrainConfig.model_validate(
        {"stages": [STAGE | stage], "early_stopping": None, "num_threads": 1, "device": "cpu", "log_every": 1}
    )
    settings = TowersConfig.model_validate(TOWERS | (towers or {}))
    artifact = train(examples, target, settings, config, seed=0, record=NoRecorder())
    told: dict[str, Any] = json.loads((artifact.path / "training.json").read_text())
    return told


Change = Callable[[Path], None]


@pytest.fixture
def changed(coloured_things: Path, tmp_path: Path) -> Callable[[Change], Path]:
    """Return a function that publishes the coloured things with one change."""

    def make(change: Change) -> Path:
        target = tmp_path / "changed"
        with publish(target, "examples", {}) as staging:
            for file in coloured_things.glob("*.parquet"):
                shutil.copy(file, staging / file.name)
            change(staging)
        return target

    return make


def documents(staging: Path, **columns: Any) -> None:
    path = staging / "documents.parquet"
    pd.read_parquet(path).assign(**columns).to_parquet(path, index=False)


@pytest.mark.parametrize("temperature", [0.0, -0.05, math.nan])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float) -> None:
    with pytest.raises(ValidationError, match="temperature"):
        TowersConfig.model_validate(TOWERS | {"temperature": temperature})


@pytest.mark.parametrize("config", [HingeConfig, TripletConfig])
@pytest.mark.parametrize("margin", [-0.1, 0.0, math.nan])
def test_a_margin_that_is_not_positive_is_refused(config: Any, margin: float) -> None:
    with pytest.raises(ValidationError, match="margin"):
        config(margin=margin)


DEBIASED = {"kind": "cross_entropy", "false_negative_prior": 0.1}


@pytest.mark.parametrize(
    "loss", [DEBIASED, {"kind": "weighted_sum", "first": {"kind": "cross_entropy"}, "second": DEBIASED}]
)
def test_a_false_negative_prior_under_dot_products_is_refused(
    coloured_things: Path, tmp_path: Path, loss: dict[str, Any]
) -> None:
    """Its floor is what negatives of the lowest cosine, -1, would add."""
    with pytest.raises(ConfigError, match=r"stage 'only': false_negative_prior supposes .* is dot; set"):
        trained(coloured_things, tmp_path / "x", towers={"similarity": "dot"}, loss=loss)
    assert not (tmp_path / "x.progress").exists()


def test_a_batch_of_one_has_no_negatives_and_is_refused() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 2"):
        StageConfig.model_validate(STAGE | {"batch_size": 1})


def test_a_batch_larger_than_the_data_is_refused_with_both_numbers(
    coloured_things: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"stage 'only': batch_size is 401 but there are only 400"):
        trained(coloured_things, tmp_path / "x", batch_size=401)
    assert trained(coloured_things, tmp_path / "y", batch_size=400)["total"] == 4


def test_documents_that_are_all_the_same_leave_nothing_to_learn(
    changed: Callable[[Change], Path], tmp_path: Path
) -> None:
    examples = changed(lambda staging: documents(staging, title="thing", text="", content_key="thing"))
    with pytest.raises(SchemaError, match="every document has the same content"):
        trained(examples, tmp_path / "x")


def test_without_unclicked_rows_the_batch_alone_gives_negatives(
    changed: Callable[[Change], Path], tmp_path: Path
) -> None:
    def empty(staging: Path) -> None:
        table = pq.read_table(staging / "train.parquet")
        place = table.schema.get_field_index("unclicked_doc_ids")
        lists = pa.array([[]] * table.num_rows, pa.list_(pa.string()))
        pq.write_table(table.set_column(place, "unclicked_doc_ids", lists), staging / "train.parquet")

    told = trained(changed(empty), tmp_path / "x", unclicked_per_query=2)
    assert [point["unclicked_negatives"] for point in told["curve"]] == [0.0] * 4
    assert all(point["in_batch_negatives"] > 0 for point in told["curve"])


PRICED = {"document": TEXT | {"numbers": [{"column": "price"}]}}


def test_a_number_that_is_missing_is_a_feature_and_an_infinite_one_an_error(
    changed: Callable[[Change], Path], tmp_path: Path
) -> None:
    prices = [math.nan if row % 3 == 0 else float(row) for row in range(60)]
    examples = changed(lambda staging: documents(staging, price=prices))
    told = trained(examples, tmp_path / "x", towers=PRICED)
    assert all(math.isfinite(point["loss"]) for point in told["curve"])
    shutil.rmtree(examples)
    examples = changed(lambda staging: documents(staging, price=[math.inf, *prices[1:]]))
    with pytest.raises(SchemaError, match=r"price.*must be finite"):
        trained(examples, tmp_path / "y", towers=PRICED)


@pytest.mark.parametrize("weight", [math.nan, math.inf, 0.0, -1.0])
def test_a_weight_that_is_no_positive_number_is_refused(
    changed: Callable[[Change], Path], tmp_path: Path, weight: float
) -> None:
    def weigh(staging: Path) -> None:
        path = staging / "train.parquet"
        table = pq.read_table(path)
        column = pa.array([weight] + [1.0] * (table.num_rows - 1), pa.float64())
        pq.write_table(table.set_column(table.schema.get_field_index("weight"), "weight", column), path)

    with pytest.raises(SchemaError, match="every weight must be a positive number"):
        trained(changed(weigh), tmp_path / "x")


@pytest.mark.parametrize("kind", ["cross_entropy", "hinge"])
def test_a_loss_that_stops_being_a_number_ends_the_training_with_stage_step_and_advice(
    coloured_things: Path, tmp_path: Path, kind: str
) -> None:
    wild = {"learning_rate": 1e30, "steps": 30, "decay": "none", "loss": {"kind": kind}}
    config = TrainConfig.model_validate(
        {"stages": [STAGE | wild], "early_stopping": None, "gradient_clip": None, "device": "cpu"}
        | {"allow_cold_hinge": True}
    )
    towers = TowersConfig.model_validate(TOWERS | {"similarity": "dot"})
    with pytest.raises(TrainingError, match=r"stage 'only', step \d+ of 30: .* is (nan|inf); lower its lear"):
        train(coloured_things, tmp_path / "x", towers, config, seed=0, record=NoRecorder())
    assert not (tmp_path / "x").exists()
