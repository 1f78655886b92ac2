import math

import pytest
import torch
from torch import Tensor

from towers.exclusions import Exclusions
from towers.losses import CrossEntropy, CrossEntropyConfig, OwnScores
from towers.losses.debias import debiased_negatives, log_sum
from towers.tiled_cross_entropy import tiled_cross_entropy

TEMPERATURE = 0.4
Example = tuple[Tensor, Tensor, Tensor, Tensor]


def of_one(positive: float, numerator: float, negatives: list[tuple[float, float]], prior: float) -> float:
    """Equations 7 and 8 of the paper for one anchor: positive logit, and (logit, log Q) of each negative."""
    if not negatives:
        return 0.0
    total = sum(math.exp(logit - log_q) for logit, log_q in negatives)
    count = sum(math.exp(-log_q) for _, log_q in negatives)
    mean = (total / count - prior * math.exp(positive)) / (1 - prior)
    mean = max(mean, math.exp(-1 / TEMPERATURE))
    return -math.log(math.exp(numerator) / (math.exp(numerator) + count * mean))


def naive(example: Example, config: CrossEntropyConfig) -> float:
    score, excluded, log_q, weight = example
    rows, columns = score.shape
    prior = config.false_negative_prior
    total_rows = total_columns = 0.0
    for i in range(rows):
        own = score[i, i].item() / TEMPERATURE
        numerator = own - (log_q[i].item() if config.correct_positive else 0)
        negatives = [
            (score[i, j].item() / TEMPERATURE, log_q[j].item())
            for j in range(columns)
            if j != i and not excluded[i, j]
        ]
        total_rows += weight[i].item() * of_one(own, numerator, negatives, prior)
        negatives = [
            (score[j, i].item() / TEMPERATURE, 0.0) for j in range(rows) if j != i and not excluded[j, i]
        ]
        total_columns += weight[i].item() * of_one(own, own, negatives, prior)
    both = total_rows + config.column_weight * total_columns
    return both / weight.sum().item() / (1 + config.column_weight)


def example(rows: int = 6, columns: int = 9, share: float = 0.3) -> Example:
    generator = torch.Generator().manual_seed(0)
    score = torch.rand(rows, columns, generator=generator, dtype=torch.float64) * 2 - 1
    excluded = torch.rand(rows, columns, generator=generator) < share
    excluded.diagonal().fill_(False)
    log_q = torch.rand(columns, generator=generator, dtype=torch.float64).log()
    weight = torch.rand(rows, generator=generator, dtype=torch.float64) + 0.5
    return score, excluded, log_q, weight


@pytest.mark.parametrize("prior", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("correct_positive", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("shape", [(6, 9), (4, 4), (1, 3)])
def test_loss_equals_the_naive_loops(
    prior: float, correct_positive: bool, share: float, shape: tuple[int, int]
) -> None:
    config = CrossEntropyConfig(
        false_negative_prior=prior, correct_positive=correct_positive, column_weight=0.5
    )
    made = example(*shape, share=share)
    score, excluded, log_q, weight = made
    loss = CrossEntropy(config)(score, excluded, temperature=TEMPERATURE, log_q_N=log_q, weight_B=weight)
    assert loss.item() == pytest.approx(naive(made, config), rel=1e-12)


def test_the_cases_lie_on_both_sides_of_the_floor() -> None:
    """So that the comparison with the loops checks the floor and what lies above it."""
    score, excluded, _, _ = example(share=0.0)
    logit = score / TEMPERATURE
    negative = logit.masked_fill(excluded, -torch.inf)
    negative.diagonal().fill_(-torch.inf)
    counted = torch.where(negative == -torch.inf, negative, 0.0)
    floor = counted.exp().sum(1) * math.exp(-1 / TEMPERATURE)
    found = debiased_negatives(logit.diagonal(), log_sum(negative), log_sum(counted), 0.5, TEMPERATURE).exp()
    at_floor = torch.isclose(found, floor)
    assert at_floor.any()
    assert not at_floor.all()
    assert (found >= floor * (1 - 1e-12)).all()


def test_a_vanishing_prior_is_the_plain_loss() -> None:
    score, excluded, log_q, weight = example()
    arguments = {"temperature": TEMPERATURE, "log_q_N": log_q, "weight_B": weight}
    plain = CrossEntropy(CrossEntropyConfig())(score, excluded, **arguments)
    almost = CrossEntropy(CrossEntropyConfig(false_negative_prior=1e-12))(score, excluded, **arguments)
    assert almost.item() == pytest.approx(plain.item(), rel=1e-9)


def test_the_estimate_recovers_the_sum_over_true_negatives() -> None:
    """A fifth of the candidates are hidden positives, all as similar as the labelled one."""
    hidden, true = torch.full((1, 20), 2.0), torch.linspace(-1, 1, 80)[None]
    negative = torch.cat([hidden, true], dim=1).double()
    positive = torch.tensor([2.0], dtype=torch.float64)
    count = torch.tensor([math.log(100)])
    found = debiased_negatives(positive, log_sum(negative), count, 0.2, 1.0)
    expected = true.double().exp().mean() * 100  # g is a mean over true negatives, times all candidates
    assert found.exp().item() == pytest.approx(expected.item(), rel=1e-6)


def test_gradient_passes_gradcheck_on_both_sides_of_the_floor() -> None:
    score, excluded, log_q, weight = example()
    loss = CrossEntropy(CrossEntropyConfig(false_negative_prior=0.1))
    temperature = torch.tensor(TEMPERATURE, dtype=torch.float64, requires_grad=True)
    own = torch.rand(6, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def compute(score: Tensor, own: Tensor, temperature: Tensor) -> Tensor:
        shown = OwnScores(own, own.detach() < 0.3)
        return loss(score, excluded, temperature=temperature, log_q_N=log_q, weight_B=weight, own=shown)

    assert torch.autograd.gradcheck(compute, (score.requires_grad_(), own.requires_grad_(), temperature))


def test_at_the_floor_negatives_get_no_gradient() -> None:
    score = torch.eye(3, requires_grad=True)
    config = CrossEntropyConfig(false_negative_prior=0.5, column_weight=0)
    loss = CrossEntropy(config)(score, torch.zeros(3, 3).bool(), temperature=0.1)
    loss.backward()
    assert score.grad is not None
    assert not score.grad[~torch.eye(3, dtype=torch.bool)].any()
    assert loss.item() == pytest.approx(math.log1p(2 * math.exp(-20)), rel=1e-5)


def test_sums_that_cancel_exactly_give_a_finite_gradient() -> None:
    score = torch.zeros(4, 4, requires_grad=True)
    for prior in (0.5, 1 - 1e-7, 1e-30):
        loss = CrossEntropy(CrossEntropyConfig(false_negative_prior=prior))(
            score, torch.zeros(4, 4).bool(), temperature=0.005
        )
        (slope,) = torch.autograd.grad(loss, score)
        assert loss.isfinite()
        assert slope.isfinite().all()


@pytest.mark.parametrize("prior", [-0.1, 1.0])
def test_a_prior_that_is_no_share_is_refused(prior: float) -> None:
    with pytest.raises(ValueError, match="false_negative_prior"):
        CrossEntropyConfig(false_negative_prior=prior)


@pytest.mark.parametrize("log_q", [True, False])
@pytest.mark.parametrize("correct_positive", [True, False])
@pytest.mark.parametrize("with_own", [True, False])
def test_the_tiled_loss_is_debiased_alike(log_q: bool, correct_positive: bool, with_own: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    query, document = (
        torch.nn.functional.normalize(torch.randn(rows, 4, generator=generator, dtype=torch.float64), dim=1)
        for rows in (6, 9)
    )
    _, excluded, log_q_N, weight = example()
    excluded[2] = torch.arange(9) != 2
    config = CrossEntropyConfig(
        false_negative_prior=0.1,
        log_q=log_q,
        correct_positive=correct_positive,
        column_weight=0.5,
        list_weight=0.3,
    )
    own_excluded = torch.rand(6, 2, generator=generator) < 0.3
    own_excluded[2] = True
    shown, own_log_q = torch.rand(2, 6, 2, generator=generator, dtype=torch.float64)
    inputs = [tensor.requires_grad_() for tensor in (query, document, shown)]
    arguments = {
        "temperature": TEMPERATURE,
        "log_q_N": log_q_N,
        "weight_B": weight,
        "own": OwnScores(shown, own_excluded, own_log_q) if with_own else None,
    }
    plain = CrossEntropy(config)(query @ document.T, excluded, **arguments)
    tiled = tiled_cross_entropy(config, query, document, Exclusions.from_mask(excluded), **arguments)
    assert tiled.item() == pytest.approx(plain.item(), rel=1e-9)
    if not with_own:
        inputs.pop()
    for found, expected in zip(
        torch.autograd.grad(tiled, inputs), torch.autograd.grad(plain, inputs), strict=True
    ):
        assert torch.allclose(found, expected, rtol=1e-7, atol=1e-12)
