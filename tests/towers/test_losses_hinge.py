from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from towers.losses import CrossEntropy, Hinge, HingeConfig, LossConfig, OwnScores, build_loss


def picked(positive: float, negatives: list[float], config: HingeConfig) -> float:
    """The negative that a positive must beat, by sorting."""
    hard_first = sorted(negatives, reverse=True)
    if config.negative == "semi_hard":
        below = [score for score in hard_first if score < positive]
        return below[0] if below else hard_first[-1]
    if config.negative == "top_k_mean":
        hardest = hard_first[: config.k]
        return sum(hardest) / len(hardest)
    return hard_first[0]


def naive(score: Tensor, excluded: Tensor, weight: Tensor, config: HingeConfig) -> float:
    """The formula, pair by pair."""
    rows, columns = score.shape
    row_losses, column_losses = [], []
    for i in range(rows):
        own = score[i, i].item()
        negatives = [score[i, j].item() for j in range(columns) if j != i and not excluded[i, j]]
        row_losses.append(max(0, config.margin - own + picked(own, negatives, config)) if negatives else 0)
    for j in range(rows):
        own = score[j, j].item()
        negatives = [score[i, j].item() for i in range(rows) if i != j and not excluded[i, j]]
        column_losses.append(max(0, config.margin - own + picked(own, negatives, config)) if negatives else 0)
    weights = weight.tolist()
    mean_row = sum(w * x for w, x in zip(weights, row_losses, strict=True)) / sum(weights)
    mean_column = sum(w * x for w, x in zip(weights, column_losses, strict=True)) / sum(weights)
    return (mean_row + config.column_weight * mean_column) / (1 + config.column_weight)


def example(rows: int = 5, columns: int = 9, share: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    score = torch.rand(rows, columns, generator=generator, dtype=torch.float64) * 2 - 1
    excluded = torch.rand(rows, columns, generator=generator) < share
    excluded.diagonal().fill_(False)
    weight = torch.rand(rows, generator=generator, dtype=torch.float64) + 0.5
    return score, excluded, weight


PICKS: list[dict[str, Any]] = [
    {"negative": "hardest"},
    {"negative": "semi_hard"},
    {"negative": "top_k_mean", "k": 1},
    {"negative": "top_k_mean", "k": 3},
    {"negative": "top_k_mean", "k": 100},
]


@pytest.mark.parametrize("pick", PICKS)
@pytest.mark.parametrize("column_weight", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("shape", [(5, 9), (4, 4), (1, 1), (1, 3)])
def test_loss_equals_the_naive_loops(
    pick: dict[str, Any], column_weight: float, share: float, shape: tuple[int, int]
) -> None:
    config = HingeConfig(margin=0.3, column_weight=column_weight, **pick)
    score, excluded, weight = example(*shape, share=share)
    loss = Hinge(config)(score, excluded, weight_B=weight)
    assert loss.item() == pytest.approx(naive(score, excluded, weight, config), rel=1e-12)


def test_gradient_passes_gradcheck() -> None:
    score, excluded, weight = example()
    score.requires_grad_()
    loss = Hinge(HingeConfig(margin=0.3))
    assert torch.autograd.gradcheck(lambda score: loss(score, excluded, weight_B=weight), (score,))


def test_perfect_embeddings_score_lower_than_random_ones() -> None:
    excluded = torch.zeros(8, 8, dtype=torch.bool)
    random = torch.rand(8, 8, generator=torch.Generator().manual_seed(1))
    loss = Hinge(HingeConfig())
    assert loss(torch.eye(8), excluded).item() == 0 < loss(random, excluded).item()


@pytest.mark.parametrize("pick", PICKS)
def test_equal_scores_cost_exactly_the_margin(pick: dict[str, Any]) -> None:
    loss = Hinge(HingeConfig(margin=0.25, **pick))(torch.full((6, 9), 0.7), torch.zeros(6, 9).bool())
    assert loss.item() == pytest.approx(0.25)


def test_a_semi_hard_negative_lies_below_the_positive() -> None:
    score = torch.tensor([[0.5, 0.9, 0.45, 0.5]], requires_grad=True)
    config = HingeConfig(margin=0.2, negative="semi_hard", column_weight=0)
    loss = Hinge(config)(score, torch.zeros(1, 4).bool())
    loss.backward()
    assert loss.item() == pytest.approx(0.15)
    assert score.grad is not None
    assert score.grad.tolist() == [[-1, 0, 1, 0]]


def test_a_positive_that_comes_last_is_pulled_past_the_easiest_negative() -> None:
    score = torch.tensor([[0.1, 0.9, 0.4]], requires_grad=True)
    config = HingeConfig(margin=0.2, negative="semi_hard", column_weight=0)
    loss = Hinge(config)(score, torch.zeros(1, 3).bool())
    loss.backward()
    assert loss.item() == pytest.approx(0.5)
    assert score.grad is not None
    assert score.grad.tolist() == [[-1, 0, 1]]


def test_an_own_document_can_be_the_hardest_of_its_row_only() -> None:
    score = torch.eye(3)
    own = OwnScores(torch.tensor([[0.95], [0.2], [0.99]]), torch.tensor([[False], [False], [True]]))
    loss = Hinge(HingeConfig(margin=0.1))(score, torch.zeros(3, 3).bool(), own=own)
    assert loss.item() == pytest.approx(0.05 / 3 / 2)


def test_a_duplicate_of_the_positive_is_not_its_hardest_negative() -> None:
    score = torch.eye(3)
    score[0, 1] = score[1, 0] = 1.0
    excluded = torch.zeros(3, 3, dtype=torch.bool)
    loss = Hinge(HingeConfig())
    assert loss(score, excluded).item() > 0
    excluded[0, 1] = excluded[1, 0] = True
    assert loss(score, excluded).item() == 0


def test_a_fully_masked_row_has_finite_loss_and_no_gradient() -> None:
    score = torch.rand(3, 5, generator=torch.Generator().manual_seed(2), requires_grad=True)
    excluded = torch.ones(3, 5, dtype=torch.bool)
    excluded.diagonal().fill_(False)
    loss = Hinge(HingeConfig())(score, excluded)
    loss.backward()
    assert loss.item() == 0
    assert score.grad is not None
    assert torch.equal(score.grad, torch.zeros_like(score))


def test_bfloat16_scores_are_reduced_in_float32() -> None:
    score = torch.rand(300, 300, generator=torch.Generator().manual_seed(3)).bfloat16()
    excluded = torch.zeros(300, 300, dtype=torch.bool)
    narrow, wide = (
        Hinge(HingeConfig())(score, excluded),
        Hinge(HingeConfig())(score.double(), excluded),
    )
    assert narrow.dtype == torch.float32
    assert narrow.item() == pytest.approx(wide.item(), rel=1e-6)


def test_configuration_names_the_objective() -> None:
    adapter: TypeAdapter[LossConfig] = TypeAdapter(LossConfig)
    assert isinstance(build_loss(adapter.validate_python({"kind": "cross_entropy"})), CrossEntropy)
    assert isinstance(build_loss(adapter.validate_python({"kind": "hinge", "margin": 0.2})), Hinge)
    with pytest.raises(ValidationError, match="margin"):
        adapter.validate_python({"kind": "hinge", "margin": 0})
