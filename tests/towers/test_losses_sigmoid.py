import math

import pytest
import torch
from torch import Tensor

from towers.losses import OwnScores, Sigmoid, SigmoidConfig


@pytest.mark.parametrize("bias", [None, -10.0, 0.0])
def test_loss_equals_the_naive_loops(bias: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    score = torch.rand(5, 9, generator=generator, dtype=torch.float64) * 2 - 1
    shown = torch.rand(5, 2, generator=generator, dtype=torch.float64) * 2 - 1
    excluded = torch.rand(5, 9, generator=generator) < 0.3
    excluded.diagonal().fill_(False)
    own_excluded = torch.rand(5, 2, generator=generator) < 0.3
    weight = torch.rand(5, generator=generator, dtype=torch.float64) + 0.5
    added = -math.log(11) if bias is None else bias

    def match(score: Tensor) -> float:
        return 1 / (1 + math.exp(-score.item() / 0.2 - added))

    total = 0.0
    for i in range(5):
        row = -math.log(match(score[i, i]))
        row -= sum(math.log(1 - match(score[i, j])) for j in range(9) if j != i and not excluded[i, j])
        row -= sum(math.log(1 - match(shown[i, u])) for u in range(2) if not own_excluded[i, u])
        total += weight[i].item() * row
    loss = Sigmoid(SigmoidConfig(bias=bias))(
        score, excluded, temperature=0.2, weight_B=weight, own=OwnScores(shown, own_excluded)
    )
    assert loss.item() == pytest.approx(total / weight.sum().item(), rel=1e-12)


def test_loss_equals_the_algorithm_of_the_paper() -> None:
    query = torch.nn.functional.normalize(torch.rand(6, 4, generator=torch.Generator().manual_seed(1)), dim=1)
    document = torch.nn.functional.normalize(
        torch.rand(6, 4, generator=torch.Generator().manual_seed(2)), dim=1
    )
    logits = query @ document.T * 10 + -10
    labels = 2 * torch.eye(6) - torch.ones(6, 6)
    paper = -torch.nn.functional.logsigmoid(labels * logits).sum() / 6
    loss = Sigmoid(SigmoidConfig(bias=-10))(query @ document.T, torch.zeros(6, 6).bool(), temperature=0.1)
    assert loss.item() == pytest.approx(paper.item(), rel=1e-6)


def test_with_the_prior_as_bias_negatives_do_not_dominate_scores_of_zero() -> None:
    """At score 0 the pull on the positive and the push on all N - 1 negatives together are both about 1."""
    score = torch.zeros(64, 64, dtype=torch.float64, requires_grad=True)
    Sigmoid(SigmoidConfig())(score, torch.zeros(64, 64).bool(), temperature=1.0).backward()
    assert score.grad is not None
    pull = -score.grad.diagonal().sum().item()
    push = score.grad.sum().item() + pull
    assert pull == pytest.approx(64 / 65)
    assert push == pytest.approx(63 / 65)


def test_a_pair_does_not_feel_the_others() -> None:
    score = torch.rand(3, 3, generator=torch.Generator().manual_seed(3), requires_grad=True)
    loss = Sigmoid(SigmoidConfig())
    (before,) = torch.autograd.grad(loss(score, torch.zeros(3, 3).bool(), temperature=0.1), score)
    changed = score.detach().clone()
    changed[0, 1] += 0.5
    changed.requires_grad_()
    (after,) = torch.autograd.grad(loss(changed, torch.zeros(3, 3).bool(), temperature=0.1), changed)
    same = before == after
    assert not same[0, 1]
    assert same.sum() == 8
