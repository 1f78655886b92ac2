import pytest
import torch
from torch import Tensor

from towers.losses import Hinge, HingeConfig, Triplet, TripletConfig


def naive(score: Tensor, excluded: Tensor, weight: Tensor, config: TripletConfig) -> float:
    """The formula, triplet by triplet."""
    rows, columns = score.shape

    def joined(losses: list[float]) -> float:
        if config.triplets == "hardest":
            return max(losses, default=0.0)
        if config.triplets == "violating":
            losses = [loss for loss in losses if loss > 0]
        return sum(losses) / len(losses) if losses else 0.0

    total_rows = total_columns = 0.0
    for i in range(rows):
        own = score[i, i].item()
        of_row = [
            max(0.0, config.margin - own + score[i, j].item())
            for j in range(columns)
            if j != i and not excluded[i, j]
        ]
        of_column = [
            max(0.0, config.margin - own + score[j, i].item())
            for j in range(rows)
            if j != i and not excluded[j, i]
        ]
        total_rows += weight[i].item() * joined(of_row)
        total_columns += weight[i].item() * joined(of_column)
    both = total_rows + config.column_weight * total_columns
    return both / weight.sum().item() / (1 + config.column_weight)


def example(rows: int = 5, columns: int = 9, share: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    score = torch.rand(rows, columns, generator=generator, dtype=torch.float64) * 2 - 1
    excluded = torch.rand(rows, columns, generator=generator) < share
    excluded.diagonal().fill_(False)
    weight = torch.rand(rows, generator=generator, dtype=torch.float64) + 0.5
    return score, excluded, weight


@pytest.mark.parametrize("triplets", ["all", "violating", "hardest"])
@pytest.mark.parametrize("column_weight", [0.0, 0.5])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("shape", [(5, 9), (4, 4), (1, 3)])
def test_loss_equals_the_naive_loops(
    triplets: str, column_weight: float, share: float, shape: tuple[int, int]
) -> None:
    config = TripletConfig.model_validate(
        {"margin": 0.3, "triplets": triplets, "column_weight": column_weight}
    )
    score, excluded, weight = example(*shape, share=share)
    loss = Triplet(config)(score, excluded, weight_B=weight)
    assert loss.item() == pytest.approx(naive(score, excluded, weight, config), rel=1e-12)


@pytest.mark.parametrize("triplets", ["all", "violating", "hardest"])
def test_equal_scores_cost_exactly_the_margin(triplets: str) -> None:
    config = TripletConfig.model_validate({"margin": 0.25, "triplets": triplets})
    loss = Triplet(config)(torch.full((6, 9), 0.7), torch.zeros(6, 9).bool())
    assert loss.item() == pytest.approx(0.25)


def test_satisfied_triplets_dilute_the_gradient_of_all_but_not_of_the_violating() -> None:
    score = torch.tensor([[0.5, 0.6, -0.5, -0.5, -0.5]], requires_grad=True)
    slopes = {}
    for triplets in ("all", "violating"):
        config = TripletConfig.model_validate({"triplets": triplets, "column_weight": 0})
        loss = Triplet(config)(score, torch.zeros(1, 5).bool())
        (slope,) = torch.autograd.grad(loss, score)
        slopes[triplets] = slope[0, 1].item()
    assert slopes == {"all": 0.25, "violating": 1}


def test_the_hardest_triplet_is_the_hinge() -> None:
    score, excluded, weight = example()
    triplet = Triplet(TripletConfig(margin=0.3, triplets="hardest"))(score, excluded, weight_B=weight)
    assert triplet == Hinge(HingeConfig(margin=0.3))(score, excluded, weight_B=weight)
