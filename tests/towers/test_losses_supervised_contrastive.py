import math
from typing import Any

import pytest
import torch
from torch import Tensor

from towers.losses import (
    CrossEntropy,
    CrossEntropyConfig,
    OwnScores,
    SupervisedContrastive,
    SupervisedContrastiveConfig,
)

Example = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def of_one(positives: list[float], negatives: list[float], inside: bool) -> float:
    """Equation 3 (inside) or 2 (outside) of the paper, for one anchor, from logits."""
    total = sum(math.exp(logit) for logit in positives + negatives)
    shares = [math.exp(logit) / total for logit in positives]
    if inside:
        return -math.log(sum(shares) / len(shares))
    return -sum(math.log(share) for share in shares) / len(shares)


def naive(example: Example, config: SupervisedContrastiveConfig) -> float:
    score, excluded, positive, log_q, weight = example
    rows, columns = score.shape
    total_rows = total_columns = 0.0
    for i in range(rows):
        positives, negatives = [], []
        for j in range(columns):
            logit = score[i, j].item() / 0.2
            if j == i or (j < rows and positive[i, j]):
                positives.append(logit - (log_q[j].item() if config.correct_positive else 0))
            elif not excluded[i, j]:
                negatives.append(logit - log_q[j].item())
        total_rows += weight[i].item() * of_one(positives, negatives, config.positives == "inside")
        positives, negatives = [], []
        for j in range(rows):
            logit = score[j, i].item() / 0.2
            if j == i or positive[j, i]:
                positives.append(logit)
            elif not excluded[j, i]:
                negatives.append(logit)
        total_columns += weight[i].item() * of_one(positives, negatives, config.positives == "inside")
    both = total_rows + config.column_weight * total_columns
    return both / weight.sum().item() / (1 + config.column_weight)


def example(rows: int = 5, columns: int = 9) -> Example:
    generator = torch.Generator().manual_seed(0)
    score = torch.rand(rows, columns, generator=generator, dtype=torch.float64) * 2 - 1
    excluded = torch.rand(rows, columns, generator=generator) < 0.5
    excluded.diagonal().fill_(False)
    positive = excluded & (torch.rand(rows, columns, generator=generator) < 0.6)
    log_q = torch.rand(columns, generator=generator, dtype=torch.float64).log()
    weight = torch.rand(rows, generator=generator, dtype=torch.float64) + 0.5
    return score, excluded, positive, log_q, weight


@pytest.mark.parametrize("positives", ["outside", "inside"])
@pytest.mark.parametrize("correct_positive", [True, False])
@pytest.mark.parametrize("column_weight", [0.0, 0.5])
@pytest.mark.parametrize("shape", [(5, 9), (4, 4), (1, 3)])
def test_loss_equals_the_naive_loops(
    positives: Any, correct_positive: bool, column_weight: float, shape: tuple[int, int]
) -> None:
    config = SupervisedContrastiveConfig(
        positives=positives, correct_positive=correct_positive, column_weight=column_weight
    )
    made = example(*shape)
    score, excluded, positive, log_q, weight = made
    loss = SupervisedContrastive(config)(
        score, excluded, temperature=0.2, log_q_N=log_q, weight_B=weight, positive_BN=positive
    )
    assert loss.item() == pytest.approx(naive(made, config), rel=1e-12)


@pytest.mark.parametrize("positives", ["outside", "inside"])
@pytest.mark.parametrize("correct_positive", [True, False])
def test_with_the_diagonal_alone_it_is_cross_entropy(positives: Any, correct_positive: bool) -> None:
    score, excluded, _, log_q, weight = example()
    own = OwnScores(score[:, :2] / 2, excluded[:, :2], score[:, 2:4])
    arguments = {"temperature": 0.2, "log_q_N": log_q, "weight_B": weight, "own": own}
    config = SupervisedContrastiveConfig(positives=positives, correct_positive=correct_positive)
    found = SupervisedContrastive(config)(score, excluded, **arguments)
    expected = CrossEntropy(CrossEntropyConfig(correct_positive=correct_positive))(
        score, excluded, **arguments
    )
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("positives", ["outside", "inside"])
def test_gradient_passes_gradcheck_with_several_positives(positives: Any) -> None:
    score, excluded, positive, log_q, _ = example()
    loss = SupervisedContrastive(SupervisedContrastiveConfig(positives=positives))
    assert torch.autograd.gradcheck(
        lambda score: loss(score, excluded, temperature=0.2, log_q_N=log_q, positive_BN=positive),
        (score.requires_grad_(),),
    )


def test_outside_asks_for_each_positive_and_inside_for_one() -> None:
    score = torch.tensor([[1.0, -1.0, 0.0], [1.0, 1.0, 0.0]], dtype=torch.float64)
    positive = torch.tensor([[False, True, False], [True, False, False]])
    values = {}
    for positives in ("outside", "inside"):
        config = SupervisedContrastiveConfig.model_validate({"positives": positives, "column_weight": 0})
        values[positives] = SupervisedContrastive(config)(
            score, positive, temperature=0.1, positive_BN=positive
        ).item()
    assert values["inside"] == pytest.approx(math.log(2), abs=1e-3)
    assert values["outside"] > 5


@pytest.mark.parametrize("positives", ["outside", "inside"])
def test_a_row_of_nothing_but_positives_has_a_finite_loss_and_gradient(positives: Any) -> None:
    score = torch.rand(3, 3, generator=torch.Generator().manual_seed(1), requires_grad=True)
    mask = ~torch.eye(3, dtype=torch.bool)
    config = SupervisedContrastiveConfig(positives=positives)
    loss = SupervisedContrastive(config)(score, mask, temperature=0.05, positive_BN=mask)
    loss.backward()
    assert loss.isfinite()
    assert score.grad is not None
    assert score.grad.isfinite().all()


def test_marks_past_the_positives_of_the_batch_are_not_read() -> None:
    score, excluded, positive, log_q, _ = example()
    loss = SupervisedContrastive(SupervisedContrastiveConfig())
    values = []
    for marked in (True, False):
        positive[:, 5:] = excluded[:, 5:] & marked
        values.append(loss(score, excluded, temperature=0.2, log_q_N=log_q, positive_BN=positive))
    assert values[0] == values[1]


def test_marks_of_another_shape_are_refused() -> None:
    score, excluded, positive, _, _ = example()
    loss = SupervisedContrastive(SupervisedContrastiveConfig())
    with pytest.raises(ValueError, match=r"positive_BN must be bool of shape \(5, 9\)"):
        loss(score, excluded, temperature=0.2, positive_BN=positive[:, :5])
