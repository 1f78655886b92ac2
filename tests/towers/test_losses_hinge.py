import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from towers.losses import CrossEntropy, HardestHinge, HingeConfig, LossConfig, OwnScores, build_loss


def naive(score: Tensor, excluded: Tensor, weight: Tensor, config: HingeConfig) -> float:
    """The formula, pair by pair."""
    rows, columns = score.shape
    row_losses, column_losses = [], []
    for i in range(rows):
        negatives = [score[i, j].item() for j in range(columns) if j != i and not excluded[i, j]]
        row_losses.append(max(0, config.margin - score[i, i].item() + max(negatives)) if negatives else 0)
    for j in range(rows):
        negatives = [score[i, j].item() for i in range(rows) if i != j and not excluded[i, j]]
        column_losses.append(max(0, config.margin - score[j, j].item() + max(negatives)) if negatives else 0)
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


@pytest.mark.parametrize("column_weight", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("shape", [(5, 9), (4, 4), (1, 1), (1, 3)])
def test_loss_equals_the_naive_loops(column_weight: float, share: float, shape: tuple[int, int]) -> None:
    config = HingeConfig(margin=0.3, column_weight=column_weight)
    score, excluded, weight = example(*shape, share=share)
    loss = HardestHinge(config)(score, excluded, weight_B=weight)
    assert loss.item() == pytest.approx(naive(score, excluded, weight, config), rel=1e-12)


def test_gradient_passes_gradcheck() -> None:
    score, excluded, weight = example()
    score.requires_grad_()
    loss = HardestHinge(HingeConfig(margin=0.3))
    assert torch.autograd.gradcheck(lambda score: loss(score, excluded, weight_B=weight), (score,))


def test_perfect_embeddings_score_lower_than_random_ones() -> None:
    excluded = torch.zeros(8, 8, dtype=torch.bool)
    random = torch.rand(8, 8, generator=torch.Generator().manual_seed(1))
    loss = HardestHinge(HingeConfig())
    assert loss(torch.eye(8), excluded).item() == 0 < loss(random, excluded).item()


def test_equal_scores_cost_exactly_the_margin() -> None:
    loss = HardestHinge(HingeConfig(margin=0.25))(torch.full((6, 9), 0.7), torch.zeros(6, 9).bool())
    assert loss.item() == pytest.approx(0.25)


def test_an_own_document_can_be_the_hardest_of_its_row_only() -> None:
    score = torch.eye(3)
    own = OwnScores(torch.tensor([[0.95], [0.2], [0.99]]), torch.tensor([[False], [False], [True]]))
    loss = HardestHinge(HingeConfig(margin=0.1))(score, torch.zeros(3, 3).bool(), own=own)
    assert loss.item() == pytest.approx(0.05 / 3 / 2)


def test_a_duplicate_of_the_positive_is_not_its_hardest_negative() -> None:
    score = torch.eye(3)
    score[0, 1] = score[1, 0] = 1.0
    excluded = torch.zeros(3, 3, dtype=torch.bool)
    loss = HardestHinge(HingeConfig())
    assert loss(score, excluded).item() > 0
    excluded[0, 1] = excluded[1, 0] = True
    assert loss(score, excluded).item() == 0


def test_a_fully_masked_row_has_finite_loss_and_no_gradient() -> None:
    score = torch.rand(3, 5, generator=torch.Generator().manual_seed(2), requires_grad=True)
    excluded = torch.ones(3, 5, dtype=torch.bool)
    excluded.diagonal().fill_(False)
    loss = HardestHinge(HingeConfig())(score, excluded)
    loss.backward()
    assert loss.item() == 0
    assert score.grad is not None
    assert torch.equal(score.grad, torch.zeros_like(score))


def test_bfloat16_scores_are_reduced_in_float32() -> None:
    score = torch.rand(300, 300, generator=torch.Generator().manual_seed(3)).bfloat16()
    excluded = torch.zeros(300, 300, dtype=torch.bool)
    narrow, wide = (
        HardestHinge(HingeConfig())(score, excluded),
        HardestHinge(HingeConfig())(score.double(), excluded),
    )
    assert narrow.dtype == torch.float32
    assert narrow.item() == pytest.approx(wide.item(), rel=1e-6)


def test_configuration_names_the_objective() -> None:
    adapter: TypeAdapter[LossConfig] = TypeAdapter(LossConfig)
    assert isinstance(build_loss(adapter.validate_python({"kind": "cross_entropy"})), CrossEntropy)
    assert isinstance(build_loss(adapter.validate_python({"kind": "hinge", "margin": 0.2})), HardestHinge)
    with pytest.raises(ValidationError, match="margin"):
        adapter.validate_python({"kind": "hinge", "margin": 0})
    with pytest.raises(ValidationError, match="kind"):
        adapter.validate_python({"kind": "triplet"})
