import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor

from towers.batch import Features
from towers.collate import Batch, Batches
from towers.data import read_training_data
from towers.grad_cache import Chunk, encoded, forward_backward, split
from towers.losses import CrossEntropyConfig, HingeConfig, LossConfig, OwnScores
from towers.negatives import Scope
from towers.objective import build_objective
from towers.parts import Scored
from towers.step import Inputs, Means, take_step
from towers.two_tower import TowersConfig, TwoTower, build_two_tower

CPU = torch.device("cpu")
TOWER = {
    "kind": "features",
    "text": {"width": 8, "word_buckets": 256, "ngram_buckets": 1, "ngram_max": 0},
    "hidden": [16],
    "dropout": 0.4,
}
TOWERS = TowersConfig.model_validate(
    {"dimension": 8, "learn_temperature": True, "query": TOWER, "document": TOWER}
)
ROWS = 7
Gradients = dict[str, Tensor]


class Shop:
    """Small towers with dropout that is on, their inputs, and batches of 40 rows."""

    def __init__(self, examples: Path) -> None:
        self.data = read_training_data(examples)
        torch.manual_seed(0)
        self.model = build_two_tower(TOWERS, self.data.documents, self.data.queries).train()
        self.inputs = Inputs(
            self.model.prepare_queries(self.data.queries), self.model.prepare_documents(self.data.documents)
        )

    def batch(self, scope: Scope) -> Batch:
        return Batches(self.data, 40, 2, scope, (0,)).batch(0)

    def gradients(self) -> Gradients:
        return {
            name: parameter.grad.clone()
            for name, parameter in self.model.named_parameters()
            if parameter.grad is not None
        }


@pytest.fixture(scope="module")
def shop(coloured_things: Path) -> Shop:
    return Shop(coloured_things)


def plain(shop: Shop, batch: Batch, loss: LossConfig) -> tuple[float, Gradients]:
    """The same chunks with the same draws, but one graph from the loss to the weights."""
    model, inputs = shop.model, shop.inputs
    torch.manual_seed(1)
    query, document = (
        torch.cat([encoded(encode, features, chunk, CPU) for chunk in split(rows, ROWS)])
        for encode, features, rows in (
            (model.encode_queries, inputs.queries, batch.query_rows),
            (model.encode_documents, inputs.documents, batch.document_rows),
        )
    )
    query_BD = query[batch.query_place]
    own = None
    if batch.own_place.numel():
        own_score = (query_BD[:, None] * document[batch.own_place]).sum(2)
        own = OwnScores(own_score, batch.own_excluded, batch.own_log_q)
    document_ND = document[batch.document_place]
    scored = Scored(query_BD, document_ND, batch.excluded, model.temperature, batch.log_q, batch.weight, own)
    value = build_objective(loss, tiled=False)(scored)
    model.zero_grad()
    value.backward()
    return value.item(), shop.gradients()


@pytest.mark.parametrize("loss", [CrossEntropyConfig(list_weight=1.0), HingeConfig()])
@pytest.mark.parametrize("scope", ["own", "batch"])
@pytest.mark.parametrize("tiled", [False, True])
def test_a_cached_step_equals_the_plain_one_with_dropout_on(
    shop: Shop, loss: LossConfig, scope: Scope, tiled: bool
) -> None:
    batch = shop.batch(scope)
    expected, gradients = plain(shop, batch, loss)
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(shop.model.parameters(), lr=0.0)
    objective = build_objective(loss, tiled=tiled)
    step = take_step(shop.model, shop.inputs, batch, objective, optimizer, Means(encode_rows=ROWS))
    assert step.loss == pytest.approx(expected, rel=1e-6)
    found = shop.gradients()
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(found[name], gradient, rtol=1e-4, atol=1e-6), name


def test_a_step_depends_on_what_dropout_draws(shop: Shop) -> None:
    batch, objective = shop.batch("own"), build_objective(CrossEntropyConfig(), tiled=False)
    optimizer = torch.optim.SGD(shop.model.parameters(), lr=0.0)
    losses = [
        take_step(shop.model, shop.inputs, batch, objective, optimizer, Means(encode_rows=ROWS)).loss
        for _ in range(2)
    ]
    assert losses[0] != losses[1]


def test_without_dropout_chunks_of_any_size_equal_the_whole(shop: Shop) -> None:
    batch, objective = shop.batch("own"), build_objective(CrossEntropyConfig(), tiled=False)
    optimizer = torch.optim.SGD(shop.model.parameters(), lr=0.0)
    results = []
    shop.model.eval()
    for rows in (None, 1, 16, 1000):
        step = take_step(shop.model, shop.inputs, batch, objective, optimizer, Means(encode_rows=rows))
        results.append((step.loss, shop.gradients()))
    shop.model.train()
    for loss, gradients in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-6)
        assert all(
            torch.allclose(gradients[name], gradient, rtol=1e-4, atol=1e-6)
            for name, gradient in results[0][1].items()
        )


def test_each_distinct_document_is_encoded_once_a_pass_in_chunks(shop: Shop) -> None:
    batch, objective = shop.batch("own"), build_objective(CrossEntropyConfig(), tiled=False)
    encoded_rows: list[int] = []

    def note(_module: torch.nn.Module, arguments: tuple[Features]) -> None:
        encoded_rows.append(len(arguments[0]))

    handle = shop.model.document.register_forward_pre_hook(note)
    optimizer = torch.optim.SGD(shop.model.parameters(), lr=0.0)
    take_step(shop.model, shop.inputs, batch, objective, optimizer, Means(encode_rows=ROWS))
    handle.remove()
    distinct = len(batch.document_rows)
    assert distinct < batch.document_place.numel() + batch.own_place.numel()
    assert sum(encoded_rows) == 2 * distinct  # once for the cache, once for the gradient
    assert max(encoded_rows) == ROWS


def _peak_saved(model: TwoTower, features: Features, rows: int) -> int:
    """Return the most numbers that the encoder's graphs hold at once while gradients are pushed through."""
    held, peak = 0, 0

    def release(numbers: int) -> None:
        nonlocal held
        held -= numbers

    class Saved:
        def __init__(self, tensor: Tensor) -> None:
            nonlocal held, peak
            self.tensor = tensor
            held += tensor.numel()
            peak = max(peak, held)
            weakref.finalize(self, release, tensor.numel())

    chunks = split(torch.arange(rows) % len(features), 16)
    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        forward_backward(model.encode_documents, features, chunks, torch.ones(rows, 8))
    return peak


def test_what_the_encoder_holds_does_not_grow_with_the_batch(shop: Shop) -> None:
    model, documents = shop.model, shop.inputs.documents
    assert _peak_saved(model, documents, 1600) <= 1.3 * _peak_saved(model, documents, 160)


def test_encoding_a_chunk_leaves_the_global_generator_alone(shop: Shop) -> None:
    chunk = Chunk(0, torch.arange(5), 123)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    one = encoded(shop.model.encode_documents, shop.inputs.documents, chunk, CPU)
    assert torch.equal(torch.rand(4), expected)
    assert torch.equal(one, encoded(shop.model.encode_documents, shop.inputs.documents, chunk, CPU))
