import math

import pytest
import torch
from torch import Tensor

from towers.losses import CrossEntropy, CrossEntropyConfig, OwnScores


def naive(
    score: Tensor,
    excluded: Tensor,
    temperature: float,
    log_q: Tensor,
    weight: Tensor,
    config: CrossEntropyConfig,
) -> float:
    """The formula, pair by pair."""
    rows, columns = score.shape
    row_losses, column_losses = [], []
    for i in range(rows):
        own = score[i, i].item() / temperature - (log_q[i].item() if config.correct_positive else 0)
        total = math.exp(own)
        for j in range(columns):
            if j != i and not excluded[i, j]:
                total += math.exp(score[i, j].item() / temperature - log_q[j].item())
        row_losses.append(-math.log(math.exp(own) / total))
    for j in range(rows):
        own = score[j, j].item() / temperature
        total = math.exp(own)
        for i in range(rows):
            if i != j and not excluded[i, j]:
                total += math.exp(score[i, j].item() / temperature)
        column_losses.append(-math.log(math.exp(own) / total))
    weights = weight.tolist()
    mean_row = sum(w * x for w, x in zip(weights, row_losses, strict=True)) / sum(weights)
    mean_column = sum(w * x for w, x in zip(weights, column_losses, strict=True)) / sum(weights)
    return (mean_row + config.column_weight * mean_column) / (1 + config.column_weight)


def example(rows: int = 5, columns: int = 9, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    score = torch.rand(rows, columns, generator=generator, dtype=torch.float64) * 2 - 1
    excluded = torch.rand(rows, columns, generator=generator) < 0.3
    excluded.diagonal().fill_(False)
    log_q = torch.rand(columns, generator=generator, dtype=torch.float64).log()
    weight = torch.rand(rows, generator=generator, dtype=torch.float64) + 0.5
    return score, excluded, log_q, weight


@pytest.mark.parametrize("correct_positive", [True, False])
@pytest.mark.parametrize("column_weight", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(5, 9), (4, 4), (1, 1), (1, 3)])
def test_loss_equals_the_naive_loops(
    correct_positive: bool, column_weight: float, shape: tuple[int, int]
) -> None:
    config = CrossEntropyConfig(correct_positive=correct_positive, column_weight=column_weight)
    score, excluded, log_q, weight = example(*shape)
    loss = CrossEntropy(config)(score, excluded, temperature=0.2, log_q_N=log_q, weight_B=weight)
    assert loss.item() == pytest.approx(naive(score, excluded, 0.2, log_q, weight, config), rel=1e-12)


def test_without_log_q_nothing_is_corrected() -> None:
    score, excluded, log_q, weight = example()
    config = CrossEntropyConfig(log_q=False)
    loss = CrossEntropy(config)(score, excluded, temperature=0.2, log_q_N=log_q)
    expected = naive(score, excluded, 0.2, torch.zeros_like(log_q), torch.ones_like(weight), config)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_gradient_passes_gradcheck_through_mask_and_temperature() -> None:
    score, excluded, log_q, weight = example()
    score.requires_grad_()
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    loss = CrossEntropy(CrossEntropyConfig())

    def compute(score: Tensor, temperature: Tensor) -> Tensor:
        return loss(score, excluded, temperature=temperature, log_q_N=log_q, weight_B=weight)

    assert torch.autograd.gradcheck(compute, (score, temperature))


def test_perfect_embeddings_score_lower_than_random_ones() -> None:
    excluded = torch.zeros(8, 8, dtype=torch.bool)
    random = torch.rand(8, 8, generator=torch.Generator().manual_seed(1))
    loss = CrossEntropy(CrossEntropyConfig())
    perfect = loss(torch.eye(8), excluded, temperature=0.05)
    assert perfect < 1e-3 < loss(random, excluded, temperature=0.05)


def test_equal_scores_cost_log_of_the_batch_size() -> None:
    loss = CrossEntropy(CrossEntropyConfig())(
        torch.zeros(16, 16), torch.zeros(16, 16).bool(), temperature=0.05
    )
    assert loss.item() == pytest.approx(math.log(16))


def test_accidental_hits_do_not_enter_the_denominator() -> None:
    score, excluded, _, _ = example()
    changed = torch.where(excluded, torch.full_like(score, 50.0), score)
    loss = CrossEntropy(CrossEntropyConfig())
    assert loss(score, excluded, temperature=0.2) == loss(changed, excluded, temperature=0.2)


@pytest.mark.parametrize("column_weight", [0.0, 1.0])
def test_a_fully_masked_row_has_finite_loss_and_no_gradient(column_weight: float) -> None:
    score = torch.rand(3, 5, generator=torch.Generator().manual_seed(2), requires_grad=True)
    excluded = torch.ones(3, 5, dtype=torch.bool)
    excluded.diagonal().fill_(False)
    loss = CrossEntropy(CrossEntropyConfig(column_weight=column_weight))(
        score, excluded, temperature=0.05, log_q_N=torch.full((5,), -3.0)
    )
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert score.grad is not None
    assert torch.equal(score.grad, torch.zeros_like(score))


def test_log_q_makes_a_frequent_negative_push_less() -> None:
    """The sign: of two negatives with equal scores the one sampled more often gets the smaller gradient."""
    score = torch.zeros(2, 4, requires_grad=True)
    log_q = torch.tensor([0.5, 0.5, 0.9, 0.1]).log()
    config = CrossEntropyConfig(column_weight=0)
    CrossEntropy(config)(score, torch.zeros(2, 4).bool(), temperature=1.0, log_q_N=log_q).backward()
    assert score.grad is not None
    assert 0 < score.grad[0, 2] < score.grad[0, 3]


def test_log_q_is_not_scaled_by_the_temperature() -> None:
    score = torch.zeros(2, 2)
    log_q = torch.tensor([0.25, 0.25]).log()
    config = CrossEntropyConfig(column_weight=0)
    for temperature in (0.05, 1.0):
        loss = CrossEntropy(config)(score, torch.zeros(2, 2).bool(), temperature=temperature, log_q_N=log_q)
        assert loss.item() == pytest.approx(math.log(1 + 4))


def test_own_documents_equal_columns_that_every_other_row_excludes() -> None:
    score, excluded, log_q, weight = example(4, 6)
    generator = torch.Generator().manual_seed(7)
    own_score = torch.rand(4, 2, generator=generator, dtype=torch.float64)
    own_excluded = torch.tensor([[False, True], [False, False], [True, True], [False, False]])
    own_log_q = torch.rand(4, 2, generator=generator, dtype=torch.float64).log()
    wide = torch.full((4, 8), 9.0, dtype=torch.float64)
    wide_excluded = torch.ones(4, 8, dtype=torch.bool)
    for row in range(4):
        wide[row, 2 * row : 2 * row + 2] = own_score[row]
        wide_excluded[row, 2 * row : 2 * row + 2] = own_excluded[row]
    loss = CrossEntropy(CrossEntropyConfig())
    own = OwnScores(own_score, own_excluded, own_log_q)
    found = loss(score, excluded, temperature=0.2, log_q_N=log_q, weight_B=weight, own=own)
    expected = loss(
        torch.cat([score, wide], dim=1),
        torch.cat([excluded, wide_excluded], dim=1),
        temperature=0.2,
        log_q_N=torch.cat([log_q, own_log_q.flatten()]),
        weight_B=weight,
    )
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)


def test_the_list_term_asks_only_what_was_shown_beside_the_positive() -> None:
    score = torch.rand(3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    shown = torch.rand(3, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    excluded, own_excluded = torch.zeros(3, 3, dtype=torch.bool), torch.zeros(3, 2, dtype=torch.bool)
    own_excluded[1, 1] = True
    own = OwnScores(shown, own_excluded)
    rows_only = CrossEntropy(CrossEntropyConfig(column_weight=0))
    with_lists = CrossEntropy(CrossEntropyConfig(column_weight=0, list_weight=2))
    lists = (
        3 * with_lists(score, excluded, temperature=0.5, own=own)
        - rows_only(score, excluded, temperature=0.5, own=own)
    ) / 2
    expected = 0.0
    for i in range(3):
        positive = math.exp(score[i, i].item() / 0.5)
        others = sum(math.exp(shown[i, u].item() / 0.5) for u in range(2) if not own_excluded[i, u])
        expected -= math.log(positive / (positive + others)) / 3
    assert lists.item() == pytest.approx(expected, rel=1e-9)


def test_a_row_counts_by_its_weight() -> None:
    score, excluded, _, _ = example()
    loss = CrossEntropy(CrossEntropyConfig(column_weight=0))
    weighted = loss(score, excluded, temperature=0.2, weight_B=torch.tensor([2.0, 1, 1, 1, 1]))
    alone = [
        torch.logsumexp((score[i] / 0.2).masked_fill(excluded[i], -torch.inf), 0) - score[i, i] / 0.2
        for i in range(5)
    ]
    assert weighted.item() == pytest.approx(((alone[0] + sum(alone)) / 6).item())


def test_bfloat16_scores_are_reduced_in_float32() -> None:
    score = (torch.rand(4, 4000, generator=torch.Generator().manual_seed(3)) * 0.1).bfloat16()
    excluded = torch.zeros(4, 4000, dtype=torch.bool)
    loss = CrossEntropy(CrossEntropyConfig())
    narrow, wide = loss(score, excluded, temperature=1.0), loss(score.double(), excluded, temperature=1.0)
    assert narrow.dtype == torch.float32
    assert narrow.item() == pytest.approx(wide.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("score", "excluded", "temperature"),
    [
        (torch.zeros(3, 2), torch.zeros(3, 2).bool(), 1.0),
        (torch.zeros(2, 3), torch.zeros(2, 2).bool(), 1.0),
        (torch.zeros(2, 3), torch.zeros(2, 3), 1.0),
        (torch.zeros(2, 3), torch.zeros(2, 3).bool(), 0.0),
    ],
)
def test_impossible_arguments_are_refused(score: Tensor, excluded: Tensor, temperature: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        CrossEntropy(CrossEntropyConfig())(score, excluded, temperature=temperature)
