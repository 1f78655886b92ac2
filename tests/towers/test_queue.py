import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from towers.batch import Features
from towers.data import TrainingData, read_training_data
from towers.queue import DocumentQueue
from towers.sources import QueueSource
from towers.two_tower import TowersConfig, TwoTower, build_two_tower

TOWER = {"kind": "features", "text": {"width": 8, "word_buckets": 256, "ngram_buckets": 1, "ngram_max": 0}}
TOWERS: dict[str, Any] = {"dimension": 8, "query": TOWER, "document": TOWER | {"id": {"width": 4}}}


@pytest.fixture(scope="module")
def data(coloured_things: Path) -> TrainingData:
    return read_training_data(coloured_things)


@pytest.fixture
def model(data: TrainingData) -> TwoTower:
    torch.manual_seed(0)
    return build_two_tower(TowersConfig.model_validate(TOWERS), data.documents, data.queries).train()


@pytest.fixture
def documents(model: TwoTower, data: TrainingData) -> Features:
    return model.prepare_documents(data.documents)


def move(model: TwoTower, seed: int) -> None:
    """Change every weight, as an optimiser step does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


def test_documents_leave_in_the_order_in_which_they_came(model: TwoTower, documents: Features) -> None:
    queue = DocumentQueue(model, QueueSource(size=5))
    assert len(queue) == 0
    assert queue.vectors.shape == (0, 8)
    seen: list[int] = []
    for rows in ([3, 3], [7], [1, 4], [9, 2, 0], [11, 12, 13, 14, 15, 16, 17]):
        queue.push(model, documents, np.array(rows))
        seen += rows
        assert queue.documents.tolist() == seen[-5:]
        assert len(queue) == min(len(seen), 5)


def test_each_vector_is_the_momentum_towers_of_its_time(model: TwoTower, documents: Features) -> None:
    """Against the formula θ' ← m θ' + (1 - m) θ written over a copy of the whole model."""
    slow, queue = copy.deepcopy(model).eval(), DocumentQueue(model, QueueSource(size=10, momentum=0.8))
    expected = []
    for step in range(4):
        move(model, step)
        with torch.no_grad():
            pairs = zip(slow.document.parameters(), model.document.parameters(), strict=True)
            for mine, followed in pairs:
                mine.copy_(0.8 * mine + 0.2 * followed)
            rows = np.array([step, 20 + step, step])
            expected.append(slow.encode_documents(documents.take(torch.from_numpy(rows))))
        queue.push(model, documents, rows)
    assert torch.allclose(queue.vectors, torch.cat(expected)[-10:], atol=1e-6)
    assert not queue.vectors.requires_grad


def test_without_momentum_the_tower_is_the_trained_one(model: TwoTower, documents: Features) -> None:
    queue = DocumentQueue(model, QueueSource(size=4, momentum=0.0))
    move(model, 0)
    queue.push(model, documents, np.array([5]))
    with torch.no_grad():
        now = model.eval().encode_documents(documents.take(torch.tensor([5])))
    assert torch.allclose(queue.vectors, now, atol=1e-6)


def test_the_queue_changes_nothing_about_the_model(model: TwoTower, documents: Features) -> None:
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    queue = DocumentQueue(model, QueueSource(size=4, momentum=0.5))
    queue.push(model, documents, np.array([5, 6]))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.document.training
    assert torch.equal(torch.get_rng_state(), state)


def test_fill_state_contents_and_momentum_weights_survive_saving(
    model: TwoTower, documents: Features
) -> None:
    queue = DocumentQueue(model, QueueSource(size=5, momentum=0.9))
    for step in range(3):
        move(model, step)
        queue.push(model, documents, np.array([step, step + 1]))
    resumed = DocumentQueue(model, QueueSource(size=5, momentum=0.9))
    resumed.load_state_dict(queue.state_dict())
    for one in (queue, resumed):
        one.push(model, documents, np.array([40]))
    assert resumed.documents.tolist() == queue.documents.tolist() == [1, 2, 2, 3, 40]
    assert torch.equal(resumed.vectors, queue.vectors)


def test_a_saved_state_does_not_change_with_the_queue(model: TwoTower, documents: Features) -> None:
    queue = DocumentQueue(model, QueueSource(size=3, momentum=0.5))
    queue.push(model, documents, np.array([1]))
    state = queue.state_dict()
    before = {name: value.clone() for name, value in state.items()}
    move(model, 0)
    queue.push(model, documents, np.array([2]))
    assert all(torch.equal(before[name], state[name]) for name in state)
