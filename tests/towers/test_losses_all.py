"""What every objective must do, whatever its formula."""

from typing import Any, get_args

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from towers.losses import Loss, LossConfig, OwnScores, build_loss

ADAPTER: TypeAdapter[LossConfig] = TypeAdapter(LossConfig)
HALF = {"weight_from": 0.5, "weight_to": 0.5}
CONFIGS: dict[str, dict[str, Any]] = {
    "cross_entropy": {"kind": "cross_entropy"},
    "cross_entropy, rows only": {"kind": "cross_entropy", "column_weight": 0, "correct_positive": True},
    "cross_entropy, debiased": {"kind": "cross_entropy", "false_negative_prior": 0.05},
    "hinge, hardest": {"kind": "hinge"},
    "hinge, semi-hard": {"kind": "hinge", "negative": "semi_hard", "margin": 0.4},
    "hinge, top k": {"kind": "hinge", "negative": "top_k_mean", "k": 3, "column_weight": 0.5},
    "triplet, all": {"kind": "triplet"},
    "triplet, violating": {"kind": "triplet", "triplets": "violating", "column_weight": 0.5},
    "triplet, hardest": {"kind": "triplet", "triplets": "hardest"},
    "pair": {"kind": "pair"},
    "nce": {"kind": "nce"},
    "supervised, outside": {"kind": "supervised_contrastive"},
    "supervised, inside": {"kind": "supervised_contrastive", "positives": "inside", "column_weight": 0.5},
    "sigmoid": {"kind": "sigmoid", "bias": -2.5},
    "sum": {"kind": "weighted_sum", "first": {"kind": "cross_entropy"}, "second": {"kind": "hinge"}} | HALF,
}
READS_LOG_Q = {"cross_entropy", "supervised_contrastive", "nce", "weighted_sum"}
READS_TEMPERATURE = READS_LOG_Q | {"sigmoid"}
ABSOLUTE = {"pair", "sigmoid", "nce"}
"""They judge the positive by itself, so that a row without negatives still costs something."""


def build(name: str) -> Loss:
    return build_loss(ADAPTER.validate_python(CONFIGS[name]))


def kind(name: str) -> str:
    return str(CONFIGS[name]["kind"])


every_loss = pytest.mark.parametrize("name", CONFIGS)


def random_scores(*shape: int, seed: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def random_mask(*shape: int, seed: int) -> Tensor:
    mask = torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.3
    mask.diagonal().fill_(False)
    return mask


def only_diagonal(rows: int, columns: int) -> Tensor:
    mask = torch.ones(rows, columns, dtype=torch.bool)
    mask.diagonal().fill_(False)
    return mask


class Case:
    """A batch of 4 rows, 6 columns and 2 documents of each row's own."""

    def __init__(self) -> None:
        self.score = random_scores(4, 6, seed=0)
        self.excluded = random_mask(4, 6, seed=1)
        self.log_q = random_scores(6, seed=2) - 1
        self.weight = random_scores(4, seed=3) / 2 + 1
        self.own_excluded = torch.tensor([[False, True], [False, False], [True, True], [False, False]])
        self.own = OwnScores(random_scores(4, 2, seed=4), self.own_excluded, random_scores(4, 2, seed=5) - 1)

    def value(self, loss: Loss, **changes: Any) -> Tensor:
        arguments: dict[str, Any] = {
            "score_BN": self.score,
            "excluded_BN": self.excluded,
            "temperature": 0.3,
            "log_q_N": self.log_q,
            "weight_B": self.weight,
            "own": self.own,
        }
        return loss(**(arguments | changes))


def test_every_kind_is_tested_here() -> None:
    def kinds(annotation: Any) -> set[str]:
        field = getattr(annotation, "model_fields", {}).get("kind")
        if field is not None:
            return {field.default}
        return set().union(*map(kinds, get_args(annotation)))

    assert {kind(name) for name in CONFIGS} == kinds(LossConfig)


def test_a_wrong_kind_is_answered_with_the_allowed_ones() -> None:
    with pytest.raises(ValidationError) as refused:
        ADAPTER.validate_python({"kind": "contrastive"})
    assert all(f"'{kind(name)}'" in str(refused.value) for name in CONFIGS)


@every_loss
def test_a_configuration_survives_being_written_and_read(name: str) -> None:
    config = ADAPTER.validate_python(CONFIGS[name])
    assert ADAPTER.validate_json(config.model_dump_json()) == config


@every_loss
def test_gradient_passes_gradcheck_through_scores_own_scores_and_temperature(name: str) -> None:
    case, loss = Case(), build(name)
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def compute(score: Tensor, own_score: Tensor, temperature: Tensor) -> Tensor:
        own = OwnScores(own_score, case.own.excluded_BU, case.own.log_q_BU)
        return case.value(loss, score_BN=score, own=own, temperature=temperature)

    inputs = (case.score.requires_grad_(), case.own.score_BU.requires_grad_(), temperature)
    assert torch.autograd.gradcheck(compute, inputs)


@every_loss
def test_perfect_embeddings_score_lower_than_random_or_reversed_ones(name: str) -> None:
    loss, excluded = build(name), torch.zeros(8, 8, dtype=torch.bool)
    log_q = torch.zeros(8)
    random = random_scores(8, 8, seed=1).float()
    perfect, between, reversed_ = (
        loss(score, excluded, temperature=0.1, log_q_N=log_q).item()
        for score in (torch.eye(8), random, -torch.eye(8))
    )
    assert perfect < between
    assert perfect < reversed_


@every_loss
@pytest.mark.parametrize("with_own", [False, True])
def test_a_fully_masked_row_has_a_finite_loss_and_gradient(name: str, with_own: bool) -> None:
    score = random_scores(3, 5, seed=2).float().requires_grad_()
    shown = random_scores(3, 2, seed=3).float().requires_grad_()
    own = OwnScores(shown, torch.ones(3, 2, dtype=torch.bool), torch.zeros(3, 2)) if with_own else None
    loss = build(name)(score, only_diagonal(3, 5), temperature=0.05, log_q_N=torch.full((5,), -3.0), own=own)
    loss.backward()
    assert score.grad is not None
    assert loss.isfinite()
    assert score.grad.isfinite().all()
    assert not score.grad[only_diagonal(3, 5)].any()
    if with_own:
        assert shown.grad is not None
        assert not shown.grad.any()
    if kind(name) not in ABSOLUTE:
        assert loss.item() == pytest.approx(0, abs=1e-6)
        assert not score.grad.any()


@every_loss
def test_a_batch_of_one_has_a_finite_loss_and_gradient(name: str) -> None:
    score = torch.tensor([[0.4]], requires_grad=True)
    loss = build(name)(score, torch.zeros(1, 1).bool(), temperature=0.05, log_q_N=torch.zeros(1))
    loss.backward()
    assert loss.isfinite()
    assert score.grad is not None
    assert score.grad.isfinite().all()


@every_loss
def test_equal_scores_have_a_finite_loss_and_pull_positives_up(name: str) -> None:
    score = torch.full((5, 7), 0.2, requires_grad=True)
    loss = build(name)(score, torch.zeros(5, 7).bool(), temperature=0.1, log_q_N=torch.zeros(7))
    loss.backward()
    assert loss.isfinite()
    assert score.grad is not None
    assert score.grad.isfinite().all()
    assert (score.grad.diagonal() < 0).all()


@every_loss
def test_excluded_pairs_change_nothing(name: str) -> None:
    case, loss = Case(), build(name)
    hot = OwnScores(
        case.own.score_BU.masked_fill(case.own_excluded, 50), case.own_excluded, case.own.log_q_BU
    )
    changed = case.value(loss, score_BN=case.score.masked_fill(case.excluded, 50.0), own=hot)
    assert case.value(loss).item() == changed.item()


@every_loss
def test_own_documents_equal_columns_that_every_other_row_excludes(name: str) -> None:
    case, loss = Case(), build(name)
    assert case.own.log_q_BU is not None
    wide, wide_excluded = torch.full((4, 8), 9.0, dtype=torch.float64), torch.ones(4, 8, dtype=torch.bool)
    for row in range(4):
        wide[row, 2 * row : 2 * row + 2] = case.own.score_BU[row]
        wide_excluded[row, 2 * row : 2 * row + 2] = case.own_excluded[row]
    expected = case.value(
        loss,
        score_BN=torch.cat([case.score, wide], dim=1),
        excluded_BN=torch.cat([case.excluded, wide_excluded], dim=1),
        log_q_N=torch.cat([case.log_q, case.own.log_q_BU.flatten()]),
        own=None,
    )
    assert case.value(loss).item() == pytest.approx(expected.item(), rel=1e-12)
    below, above = case.score.diagonal() - 0.001, torch.full((4,), 2.0, dtype=torch.float64)
    harder = OwnScores(torch.stack([below, above], dim=1), case.own_excluded, case.own.log_q_BU)
    assert case.value(loss, own=harder) > case.value(loss)


@every_loss
def test_the_order_of_rows_and_of_columns_does_not_matter(name: str) -> None:
    case, loss = Case(), build(name)
    assert case.own.log_q_BU is not None
    rows, columns = torch.tensor([2, 0, 3, 1]), torch.tensor([2, 0, 3, 1, 5, 4])
    own = OwnScores(case.own.score_BU[rows], case.own.excluded_BU[rows], case.own.log_q_BU[rows])
    moved = case.value(
        loss,
        score_BN=case.score[rows][:, columns],
        excluded_BN=case.excluded[rows][:, columns],
        log_q_N=case.log_q[columns],
        weight_B=case.weight[rows],
        own=own,
    )
    assert moved.item() == pytest.approx(case.value(loss).item(), rel=1e-12)


@every_loss
def test_a_row_counts_by_its_weight(name: str) -> None:
    case, loss = Case(), build(name)
    alone = [case.value(loss, weight_B=torch.eye(4)[row]).item() for row in range(4)]
    weights = case.weight.tolist()
    expected = sum(w * x for w, x in zip(weights, alone, strict=True)) / sum(weights)
    assert case.value(loss).item() == pytest.approx(expected, rel=1e-12)
    assert case.value(loss, weight_B=None).item() == pytest.approx(sum(alone) / 4, rel=1e-12)


@every_loss
def test_log_q_and_temperature_are_read_or_not_as_documented(name: str) -> None:
    case, loss = Case(), build(name)
    value = case.value(loss).item()
    other_log_q = case.value(loss, log_q_N=case.log_q.flip(0)).item()
    other_temperature = case.value(loss, temperature=0.5).item()
    assert (value != other_log_q) == (kind(name) in READS_LOG_Q)
    assert (value != other_temperature) == (kind(name) in READS_TEMPERATURE)


@pytest.mark.parametrize("name", [name for name in CONFIGS if kind(name) in READS_LOG_Q])
def test_of_two_equal_negatives_the_one_sampled_more_often_pushes_less(name: str) -> None:
    score = torch.zeros(2, 4, requires_grad=True)
    log_q = torch.tensor([0.5, 0.5, 0.9, 0.1]).log()
    build(name)(score, torch.zeros(2, 4).bool(), temperature=1.0, log_q_N=log_q).backward()
    assert score.grad is not None
    assert score.grad[0, 2] < score.grad[0, 3]


@every_loss
def test_bfloat16_scores_are_reduced_in_float32(name: str) -> None:
    score = (random_scores(200, 800, seed=3) * 0.5).bfloat16()
    shown = random_scores(200, 8, seed=4).bfloat16()
    excluded, own_excluded = random_mask(200, 800, seed=5), random_mask(200, 8, seed=6)
    log_q = random_scores(800, seed=7).float() - 1
    own_log_q = random_scores(200, 8, seed=8).float() - 1
    narrow, wide = (
        build(name)(
            scores,
            excluded,
            temperature=0.3,
            log_q_N=log_q,
            own=OwnScores(shown.to(scores.dtype), own_excluded, own_log_q),
        )
        for scores in (score, score.double())
    )
    assert narrow.dtype == torch.float32
    assert narrow.item() == pytest.approx(wide.item(), rel=1e-5)


@every_loss
@pytest.mark.parametrize(
    ("score", "excluded", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(3, 2).bool(), r"N >= B >= 1; its shape is \(3, 2\)"),
        (torch.zeros(0, 2), torch.zeros(0, 2).bool(), r"N >= B >= 1; its shape is \(0, 2\)"),
        (torch.zeros(2, 3), torch.zeros(2, 2).bool(), r"excluded_BN must be bool of shape \(2, 3\)"),
        (torch.zeros(2, 3), torch.zeros(2, 3), r"excluded_BN must be bool"),
    ],
)
def test_matrices_that_do_not_fit_are_refused(
    name: str, score: Tensor, excluded: Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build(name)(score, excluded, temperature=1.0, log_q_N=torch.zeros(score.shape[1]))


@pytest.mark.parametrize("name", [name for name in CONFIGS if kind(name) in READS_TEMPERATURE])
@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_not_positive_is_refused(name: str, temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be > 0; it is"):
        Case().value(build(name), temperature=temperature)


@every_loss
def test_free_vectors_learn_to_put_positives_first(name: str) -> None:
    generator = torch.Generator().manual_seed(9)
    query, document = (torch.randn(16, 8, generator=generator).requires_grad_() for _ in range(2))
    optimizer = torch.optim.Adam([query, document], lr=0.1)
    excluded = torch.zeros(16, 16, dtype=torch.bool)
    loss = build(name)

    def score() -> Tensor:
        return torch.nn.functional.normalize(query) @ torch.nn.functional.normalize(document).T

    assert (score().argmax(1) == torch.arange(16)).sum() < 6
    for _ in range(60):
        optimizer.zero_grad()
        loss(score(), excluded, temperature=0.1, log_q_N=torch.zeros(16)).backward()
        optimizer.step()
    assert (score().argmax(1) == torch.arange(16)).sum() >= 12
