import pytest
import torch
from pydantic import ValidationError

from towers.losses import OwnScores, Pair, PairConfig


def test_loss_equals_the_naive_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    score = torch.rand(5, 9, generator=generator, dtype=torch.float64) * 2 - 1
    shown = torch.rand(5, 2, generator=generator, dtype=torch.float64) * 2 - 1
    excluded = torch.rand(5, 9, generator=generator) < 0.3
    excluded.diagonal().fill_(False)
    excluded[3] = torch.arange(9) != 3
    own_excluded = torch.rand(5, 2, generator=generator) < 0.3
    own_excluded[3] = True
    weight = torch.rand(5, generator=generator, dtype=torch.float64) + 0.5
    config = PairConfig(positive_margin=0.8, negative_margin=0.1, negative_weight=3)
    total = 0.0
    for i in range(5):
        row = max(0.0, 0.8 - score[i, i].item()) ** 2 / 2
        negatives = [score[i, j].item() for j in range(9) if j != i and not excluded[i, j]]
        negatives += [shown[i, u].item() for u in range(2) if not own_excluded[i, u]]
        if negatives:
            row += 3 * sum(max(0.0, s - 0.1) ** 2 / 2 for s in negatives) / len(negatives)
        total += weight[i].item() * row
    loss = Pair(config)(score, excluded, weight_B=weight, own=OwnScores(shown, own_excluded))
    assert loss.item() == pytest.approx(total / weight.sum().item(), rel=1e-12)


def test_pairs_beyond_their_margins_cost_nothing() -> None:
    score = torch.full((3, 3), 0.2)
    score.diagonal().fill_(0.9)
    config = PairConfig(positive_margin=0.8, negative_margin=0.25)
    assert Pair(config)(score, torch.zeros(3, 3).bool()).item() == 0


def test_under_cosine_a_positive_costs_an_eighth_of_its_distance_to_the_fourth() -> None:
    """With unit vectors 1 - s = D² / 2, so that ½ (1 - s)² = D⁴ / 8."""
    query, document = torch.tensor([0.6, 0.8]), torch.tensor([1.0, 0.0])
    distance = (query - document).norm().item()
    loss = Pair(PairConfig())((query @ document).reshape(1, 1), torch.zeros(1, 1).bool())
    assert loss.item() == pytest.approx(distance**4 / 8)


@pytest.mark.parametrize("negative_margin", [0.8, 0.9])
def test_margins_in_the_wrong_order_are_refused(negative_margin: float) -> None:
    with pytest.raises(ValidationError, match="negative_margin must be below positive_margin"):
        PairConfig(positive_margin=0.8, negative_margin=negative_margin)
