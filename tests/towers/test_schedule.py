import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from towers.schedule import EarlyStoppingConfig, OptimizerConfig, StageConfig, TrainConfig, build_optimizer


def stage(**changes: Any) -> dict[str, Any]:
    return {"name": "one", "batch_size": 8, "steps": 10} | changes


def test_a_stage_is_read_from_plain_values() -> None:
    config = TrainConfig.model_validate(
        {"stages": [stage(), stage(name="two", batch_size=16, loss={"kind": "hinge", "margin": 0.2})]}
    )
    assert [read.loss.kind for read in config.stages] == ["cross_entropy", "hinge"]


@pytest.mark.parametrize("length", [{"epochs": 1, "steps": 1}, {"steps": None}])
def test_a_stage_has_exactly_one_length(length: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="exactly one of epochs and steps"):
        StageConfig.model_validate(stage() | length)


def test_epochs_become_steps_and_never_none() -> None:
    assert StageConfig(name="a", epochs=2.5).length(10) == 25
    assert StageConfig(name="a", epochs=0.01).length(10) == 1
    assert StageConfig(name="a", steps=7).length(10) == 7


def test_a_hinge_may_not_come_first_unless_allowed() -> None:
    cold = {"stages": [stage(loss={"kind": "hinge"})]}
    with pytest.raises(ValidationError, match="allow_cold_hinge"):
        TrainConfig.model_validate(cold)
    with pytest.raises(ValidationError, match="allow_cold_hinge"):
        TrainConfig.model_validate({"stages": [stage(loss={"kind": "triplet", "triplets": "hardest"})]})
    ramp = {"kind": "weighted_sum", "first": {"kind": "cross_entropy"}, "second": {"kind": "hinge"}}
    assert TrainConfig.model_validate({"stages": [stage(loss=ramp)]}).entered_by(0) is None
    assert TrainConfig.model_validate(cold | {"allow_cold_hinge": True}).stages[0].loss.kind == "hinge"


def test_batch_sizes_may_not_shrink() -> None:
    with pytest.raises(ValidationError, match=r"may not shrink.*\[8, 4\]"):
        TrainConfig.model_validate({"stages": [stage(), stage(name="two", batch_size=4)]})


def test_stage_names_differ() -> None:
    with pytest.raises(ValidationError, match="names must differ"):
        TrainConfig.model_validate({"stages": [stage(), stage()]})


@pytest.mark.parametrize(
    "wrong", [{"stages": []}, {"stages": [stage(typo=1)]}, {"stages": [stage(batch_size=1)]}, {"seed": 1}]
)
def test_impossible_configurations_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TrainConfig.model_validate(wrong)


LISTS = {"kind": "cross_entropy", "list_weight": 1.0}


@pytest.mark.parametrize(
    "loss", [LISTS, {"kind": "weighted_sum", "first": LISTS, "second": {"kind": "hinge"}}]
)
@pytest.mark.parametrize(
    "changes",
    [
        {"unclicked_per_query": 0},
        {"unclicked_per_query": 2, "unclicked_scope": "batch"},
        {"unclicked_per_query": 2, "negatives": {"mined": {}}},
    ],
)
def test_a_list_term_without_lists_of_what_was_shown_is_refused(
    loss: dict[str, Any], changes: dict[str, Any]
) -> None:
    StageConfig.model_validate(stage(loss=loss, unclicked_per_query=2))
    with pytest.raises(ValidationError, match="list_weight"):
        StageConfig.model_validate(stage(loss=loss) | changes)


def test_early_stopping_takes_metric_names_only() -> None:
    for name in ("R@100", "nDCG@10", "ListAUC"):
        assert EarlyStoppingConfig(metric=name).metric == name
    with pytest.raises(ValidationError, match="is not a metric"):
        EarlyStoppingConfig(metric="recall")


@pytest.mark.parametrize(("decay", "middle"), [("none", 1.0), ("linear", 0.5), ("cosine", 0.5)])
def test_learning_rate_rises_then_falls(decay: Any, middle: float) -> None:
    config = StageConfig(name="a", steps=104, learning_rate=1.0, warmup_steps=4, decay=decay)
    rates = [config.learning_rate_at(step, 104) for step in range(104)]
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rates[4] == 1.0
    assert rates[54] == pytest.approx(middle)
    assert all(rate > 0 for rate in rates)
    if decay == "cosine":
        assert rates[29] == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def test_weight_decay_spares_biases_norms_and_embeddings() -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Parameter(torch.ones(5, 2))

    linear, table, bag = nn.Linear(2, 2), nn.Embedding(5, 2), Bag()
    model = nn.ModuleList([linear, linear, nn.LayerNorm(2), table, bag])
    optimizer = build_optimizer(model, OptimizerConfig(weight_decay=0.1, embedding_weight_decay=0.01))
    decay = {
        id(parameter): group["weight_decay"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert len(decay) == sum(len(group["params"]) for group in optimizer.param_groups) == 6
    assert decay[id(linear.weight)] == 0.1
    assert decay[id(table.weight)] == decay[id(bag.embedding)] == 0.01
    assert sorted(decay.values()) == [0.0, 0.0, 0.0, 0.01, 0.01, 0.1]


def test_a_large_batch_is_computed_in_tiles_unless_the_stage_says_otherwise() -> None:
    sizes = [(size, tiled) for size in (4095, 4096) for tiled in ("auto", True, False)]
    used = [StageConfig(name="a", epochs=1, batch_size=size, tiled=tiled).uses_tiles for size, tiled in sizes]
    assert used == [False, True, False, True, True, False]


def test_a_large_batch_of_an_objective_without_tiles_is_refused_until_it_says_so() -> None:
    stage = {"name": "a", "epochs": 1, "batch_size": 4096, "loss": {"kind": "triplet"}}
    with pytest.raises(
        ValidationError, match=r"stage 'a': the objective 'triplet' has no tiled form.*tiled: false"
    ):
        StageConfig.model_validate(stage)
    assert not StageConfig.model_validate(stage | {"tiled": False}).uses_tiles


@pytest.mark.parametrize(("rule", "factor"), [("none", 1.0), ("sqrt", 2.0), ("linear", 4.0)])
def test_the_learning_rate_follows_the_batch_by_its_rule(rule: Any, factor: float) -> None:
    config = StageConfig(name="a", steps=10, batch_size=256, learning_rate=0.1, scale_rule=rule, decay="none")
    assert config.learning_rate_at(3, 10, first_batch=64) == pytest.approx(0.1 * factor)
    assert config.learning_rate_at(10, 10, first_batch=64) == pytest.approx(0.01 * factor)  # it waits


def test_a_hinge_after_another_objective_waits_for_a_separation_unless_told_not_to() -> None:
    hinge = {"loss": {"kind": "hinge"}}
    stages = [stage(), stage(name="two", **hinge), stage(name="three", **hinge)]
    config = TrainConfig.model_validate({"stages": stages})
    assert [config.entered_by(number) is not None for number in range(4)] == [False, True, False, False]
    told = TrainConfig.model_validate({"stages": [stage(), stage(name="two", enter=None, **hinge)]})
    assert told.entered_by(1) is None
    again = TrainConfig.model_validate(config.model_dump(mode="json"))
    assert again.entered_by(1) == config.entered_by(1)
