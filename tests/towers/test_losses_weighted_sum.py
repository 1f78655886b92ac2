from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from towers.exclusions import Exclusions
from towers.losses import CrossEntropyConfig, HingeConfig, LossConfig, WeightedSumConfig, build_loss, is_hinge
from towers.objective import build_objective
from towers.parts import Scored

PARTS: dict[str, Any] = {"first": {"kind": "cross_entropy"}, "second": {"kind": "hinge", "margin": 0.3}}


def config(**changes: Any) -> WeightedSumConfig:
    return WeightedSumConfig.model_validate(PARTS | changes)


@pytest.mark.parametrize(("progress", "weight"), [(0.0, 0.1), (0.25, 0.3), (0.5, 0.5), (0.99, 0.892)])
def test_loss_is_the_sum_at_the_moment_of_the_ramp(progress: float, weight: float) -> None:
    score = torch.rand(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    excluded = torch.zeros(4, 6, dtype=torch.bool)
    excluded[0, 1] = True
    arguments: dict[str, Any] = {"temperature": 0.2, "log_q_N": score[0].log(), "weight_B": score[:, 0]}
    first, second = (
        build_loss(part)(score, excluded, **arguments).item()
        for part in (CrossEntropyConfig(), HingeConfig(margin=0.3))
    )
    loss = build_loss(config(weight_from=0.1, weight_to=0.9), progress)
    expected = (1 - weight) * first + weight * second
    assert loss(score, excluded, **arguments).item() == pytest.approx(expected, rel=1e-12)


def test_the_ramp_lies_between_its_ends() -> None:
    ramp = config(weight_from=0.2, weight_to=0.8, ramp_start=0.25, ramp_end=0.75)
    moments = (0.0, 0.25, 0.5, 0.75, 1.0)
    assert [ramp.weight_at(moment) for moment in moments] == pytest.approx([0.2, 0.2, 0.5, 0.8, 0.8])
    falling = config(weight_from=1.0, weight_to=0.0)
    assert falling.weight_at(0.25) == 0.75


def test_a_ramp_of_no_length_is_a_jump() -> None:
    jump = config(ramp_start=0.5, ramp_end=0.5)
    assert [jump.weight_at(moment) for moment in (0.0, 0.499, 0.5, 1.0)] == [0, 0, 1, 1]


def test_an_objective_of_weight_zero_is_not_computed() -> None:
    """NCE refuses to work without log Q, so it would be heard of."""
    loss = build_loss(config(second={"kind": "nce"}, ramp_start=0.5), 0.2)
    assert loss(torch.eye(3), torch.zeros(3, 3).bool(), temperature=0.1).isfinite()
    later = build_loss(config(second={"kind": "nce"}, ramp_start=0.5), 0.6)
    with pytest.raises(ValueError, match="nce needs log_q_N"):
        later(torch.eye(3), torch.zeros(3, 3).bool(), temperature=0.1)


def test_further_positives_reach_the_part_that_reads_them() -> None:
    score = torch.rand(3, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(3, 3, dtype=torch.bool)
    mask[0, 1] = True
    loss = build_loss(config(second={"kind": "supervised_contrastive"}), 0.5)
    plain = loss(score, mask, temperature=0.1)
    assert loss(score, mask, temperature=0.1, positive_BN=mask) != plain


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ramp_start": 0.6, "ramp_end": 0.5}, "ramp_end must be at least ramp_start; they are 0.5 and 0.6"),
        ({"weight_to": 1.5}, "weight_to"),
        ({"first": {"kind": "weighted_sum", **PARTS}}, "'weighted_sum' found using 'kind'"),
    ],
)
def test_impossible_sums_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**wrong)


def test_a_tiled_sum_follows_the_ramp_too() -> None:
    generator = torch.Generator().manual_seed(0)
    query, document = (
        torch.nn.functional.normalize(torch.randn(6, 4, generator=generator)) for _ in range(2)
    )
    scored = Scored(
        query, document, Exclusions.none(6, 6), torch.tensor(0.2), torch.zeros(6), torch.ones(6), None
    )
    for progress in (0.0, 0.5, 1.0):
        plain, tiled = (
            build_objective(config(), tiled=tiled, progress=progress)(scored).item()
            for tiled in (False, True)
        )
        assert tiled == pytest.approx(plain, rel=1e-6)


HARDEST = {"kind": "triplet", "triplets": "hardest"}


@pytest.mark.parametrize(
    ("loss", "at_start", "at_end"),
    [
        ({"kind": "hinge"}, True, True),
        (HARDEST, True, True),
        ({"kind": "triplet"}, False, False),
        ({"kind": "cross_entropy"}, False, False),
        ({"kind": "weighted_sum", **PARTS}, False, True),
        ({"kind": "weighted_sum", **PARTS, "weight_from": 1.0}, True, True),
        ({"kind": "weighted_sum", **PARTS, "weight_to": 0.9}, False, False),
        ({"kind": "weighted_sum", **PARTS, "first": HARDEST}, True, True),
    ],
)
def test_a_sum_is_a_hinge_while_nothing_else_counts(loss: Any, at_start: bool, at_end: bool) -> None:
    read: LossConfig = TypeAdapter(LossConfig).validate_python(loss)
    assert (is_hinge(read), is_hinge(read, 1.0)) == (at_start, at_end)
