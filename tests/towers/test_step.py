from pathlib import Path

import pytest
import torch
from torch import Tensor

from features.errors import TrainingError
from towers.checkpoint import weights_of
from towers.collapse import spread
from towers.collate import Batch, Batches
from towers.data import read_training_data
from towers.losses import CrossEntropy, CrossEntropyConfig, Loss, OwnScores
from towers.objective import build_objective, dense
from towers.schedule import OptimizerConfig, build_optimizer
from towers.step import Inputs, Means, measure, take_step
from towers.two_tower import TowersConfig, TwoTower, build_two_tower

TOWER = {"kind": "features", "text": {"width": 8, "word_buckets": 256, "ngram_buckets": 1, "ngram_max": 0}}
TOWERS = TowersConfig.model_validate({"dimension": 8, "query": TOWER, "document": TOWER})
OBJECTIVE = build_objective(CrossEntropyConfig(), tiled=False)
Setting = tuple[TwoTower, Inputs, Batch]


@pytest.fixture
def setting(coloured_things: Path) -> Setting:
    """Small towers without dropout, their inputs, and a batch of 64 rows with 2 unclicked documents each."""
    data = read_training_data(coloured_things)
    torch.manual_seed(0)
    model = build_two_tower(TOWERS, data.documents, data.queries).eval()
    inputs = Inputs(model.prepare_queries(data.queries), model.prepare_documents(data.documents))
    return model, inputs, Batches(data, 64, 2, "own", (0,)).batch(0)


def plain_loss(model: TwoTower, inputs: Inputs, batch: Batch) -> Tensor:
    """Every row of the batch encoded by itself, the whole score matrix, one graph."""
    query = model.encode_queries(inputs.queries.take(batch.query_rows[batch.query_place]))
    document = model.encode_documents(inputs.documents.take(batch.document_rows[batch.document_place]))
    own = model.encode_documents(inputs.documents.take(batch.document_rows[batch.own_place.flatten()]))
    own_score = torch.stack([(own.view(64, 2, -1)[:, u] * query).sum(1) for u in range(2)], dim=1)
    loss: Tensor = CrossEntropy(CrossEntropyConfig())(
        model.score(query, document),
        batch.excluded.dense(),
        temperature=model.temperature,
        log_q_N=batch.log_q,
        weight_B=batch.weight,
        own=OwnScores(own_score, batch.own_excluded, batch.own_log_q),
    )
    return loss


def test_encoding_each_distinct_row_once_changes_neither_loss_nor_gradient(setting: Setting) -> None:
    model, inputs, batch = setting
    assert len(batch.document_rows) < 64 * 3
    plain = plain_loss(model, inputs, batch)
    parameters = list(model.parameters())
    expected = torch.autograd.grad(plain, parameters)
    step = take_step(model, inputs, batch, OBJECTIVE, torch.optim.SGD(parameters, lr=0.0), Means())
    assert step.loss == pytest.approx(plain.item(), rel=1e-6)
    for parameter, gradient in zip(parameters, expected, strict=True):
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, gradient, atol=1e-5)


def test_the_gradient_is_clipped_but_reported_as_it_was(setting: Setting) -> None:
    model, inputs, batch = setting
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    step = take_step(model, inputs, batch, OBJECTIVE, optimizer, Means(gradient_clip=1e-3))
    clipped = (
        torch.stack([p.grad.square().sum() for p in model.parameters() if p.grad is not None]).sum().sqrt()
    )
    assert clipped.item() == pytest.approx(1e-3, rel=1e-3)
    assert step.gradient_norm > 1e-2


def _nan(score_BN: Tensor, excluded_BN: Tensor, **_: object) -> Tensor:
    return score_BN.sum() * torch.nan


def _infinite_slope(score_BN: Tensor, excluded_BN: Tensor, **_: object) -> Tensor:
    return (score_BN - score_BN.detach()).pow(0.5).sum()


@pytest.mark.parametrize(
    ("loss", "message"), [(_nan, "loss is nan"), (_infinite_slope, "gradient norm is (inf|nan)")]
)
def test_a_number_that_is_not_finite_stops_before_the_weights_change(
    setting: Setting, loss: Loss, message: str
) -> None:
    model, inputs, batch = setting
    before = weights_of(model)
    with pytest.raises(TrainingError, match=message):
        take_step(model, inputs, batch, dense(loss), build_optimizer(model, OptimizerConfig()), Means(1.0))
    after = weights_of(model)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_step_is_measured_by_source_of_its_negatives(setting: Setting) -> None:
    model, inputs, batch = setting
    step = take_step(model, inputs, batch, OBJECTIVE, torch.optim.SGD(model.parameters(), lr=0.0), Means())
    measured = measure(step)
    allowed = ~batch.excluded.dense()
    assert measured["in_batch_negatives"] == (allowed.sum().item() - 64) / 64 > 0
    assert measured["unclicked_negatives"] == (~batch.own_excluded).sum().item() / 64 > 0
    assert "mined_negatives" not in measured
    assert step.own is not None
    gaps, unclicked = [], 0
    for i in range(64):
        scores = [(step.query[i] @ step.document[j]).item() for j in range(64)]
        in_batch = max(scores[j] for j in range(64) if allowed[i, j] and i != j)
        own = max(step.own.score_BU[i].masked_fill(batch.own_excluded[i], -2).tolist())
        gaps.append(scores[i] - max(in_batch, own))
        unclicked += own > in_batch + 1e-6  # a document may be both
    assert measured["gap"] == pytest.approx(sum(gaps) / 64, abs=1e-5)
    assert measured["hardest_unclicked"] == pytest.approx(unclicked / 64)


def test_spread_of_unit_vectors_is_near_one_over_root_d_and_zero_when_collapsed() -> None:
    vectors = torch.nn.functional.normalize(torch.randn(2000, 64, generator=torch.Generator().manual_seed(0)))
    assert spread(vectors) == pytest.approx(1 / 8, rel=0.02)
    assert spread(vectors[:1].expand(10, 64)) == pytest.approx(0, abs=1e-12)
