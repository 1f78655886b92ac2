from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from features.errors import ConfigError, TrainingError
from towers.data import Ints, Lists, TrainingData, read_training_data
from towers.mining import Corpus, Miner, mine, weights_digest
from towers.sources import MinedSource
from towers.step import Inputs
from towers.two_tower import TowersConfig, TwoTower, build_two_tower

TOWER = {"kind": "features", "text": {"width": 8, "word_buckets": 256, "ngram_buckets": 1, "ngram_max": 0}}
TOWERS = {"dimension": 8, "query": TOWER, "document": TOWER | {"id": {"width": 4}}}


@pytest.fixture(scope="module")
def data(coloured_things: Path) -> TrainingData:
    return read_training_data(coloured_things)


def towers(data: TrainingData, **changes: Any) -> TwoTower:
    torch.manual_seed(0)
    model = build_two_tower(TowersConfig.model_validate(TOWERS | changes), data.documents, data.queries)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model.train()


def inputs_of(model: TwoTower, data: TrainingData) -> Inputs:
    return Inputs(model.prepare_queries(data.queries), model.prepare_documents(data.documents))


def mined(data: TrainingData, examples: Ints, **config: Any) -> Ints:
    model = towers(data)
    inputs = inputs_of(model, data)
    corpus = Corpus(model, inputs.documents, MinedSource(**config))
    return mine(model, corpus, data, inputs.queries, examples)


def naive(data: TrainingData, examples: Ints, config: MinedSource) -> list[list[int]]:
    """The definition, one example and one document at a time."""
    model = towers(data).eval()
    inputs = inputs_of(model, data)
    with torch.no_grad():
        query, document = model.encode_queries(inputs.queries), model.encode_documents(inputs.documents)
        score = (query @ document.T).numpy()
    content, known = data.catalogue.content, data.catalogue.known
    lists = []
    for example in examples.tolist():
        scores, key = score[data.query[example]], int(data.query_key[example])
        positive = int(data.document[example])
        clicked = set(known.values[known.offsets[key] : known.offsets[key + 1]].tolist())
        kept = []
        for row in sorted(range(len(scores)), key=lambda row: (-scores[row], row))[: config.depth]:
            if content[row] == content[positive] or int(content[row]) in clicked:
                continue
            share = config.score_share
            cap = np.inf if share is None else min(share * scores[positive], scores[positive])
            if scores[row] <= cap:
                kept.append(row)
        lists.append(kept[config.skip_top : config.skip_top + config.pool])
    return lists


@pytest.mark.parametrize(
    "config",
    [
        {"score_share": None},
        {"score_share": 0.95, "depth": 60},
        {"score_share": 0.5, "depth": 30, "pool": 4},
        {"score_share": None, "skip_top": 3, "pool": 5},
        {"score_share": None, "depth": 5},
    ],
)
def test_what_is_mined_equals_the_definition(data: TrainingData, config: dict[str, Any]) -> None:
    examples = np.arange(0, 400, 3)
    found = mined(data, examples, **config)
    expected = naive(data, examples, MinedSource(**config))
    assert [row[row >= 0].tolist() for row in found] == expected
    assert sum(map(len, expected)) > len(examples)


def test_neither_a_known_positive_nor_the_positives_content_is_mined(data: TrainingData) -> None:
    """The two copies of each thing get one content: the copy that was never clicked must go as well."""
    content = pd.factorize(data.documents["title"])[0].astype(np.int64)
    key, document = data.query_key, content[data.document]
    pairs = np.unique(key * 100 + document)
    offsets = np.searchsorted(pairs, np.arange(key.max() + 2) * 100).astype(np.int64)
    catalogue = replace(data.catalogue, content=content, known=Lists(pairs % 100, offsets))
    examples = np.arange(50)
    found = mined(replace(data, catalogue=catalogue), examples, score_share=None, depth=60, pool=60)
    for example, row in zip(examples, found, strict=True):
        assert (row >= 0).sum() == 58
        assert content[data.document[example]] not in content[row[row >= 0]]


def test_a_corpus_smaller_than_the_depth_is_mined_whole(data: TrainingData) -> None:
    found = mined(data, np.arange(10), score_share=None, depth=5000, pool=100)
    assert found.shape == (10, 100)
    assert 56 <= (found >= 0).sum(axis=1).min() <= (found >= 0).sum(axis=1).max() <= 59


def test_an_example_whose_candidates_are_all_refused_has_no_mined_negative(data: TrainingData) -> None:
    model = towers(data)
    inputs = inputs_of(model, data)
    miner = Miner(data, inputs, MinedSource(score_share=None, skip_top=90, depth=91))
    miner.refresh(model, np.arange(20))
    documents, owner, chance = miner.draw(np.arange(20), np.random.default_rng(0))
    assert len(documents) == len(owner) == len(chance) == 0


def test_equal_weights_are_not_mined_twice_and_other_weights_or_examples_are(data: TrainingData) -> None:
    model = towers(data)
    miner = Miner(data, inputs_of(model, data), MinedSource(score_share=None))
    assert miner.refresh(model, np.arange(100))
    corpus = miner._corpus
    assert not miner.refresh(model, np.array([5, 5, 99]))
    assert miner.refresh(model, np.arange(50, 150))
    assert miner._corpus is corpus  # the same weights: the same index
    with torch.no_grad():
        next(model.document.parameters()).normal_()
    before = miner.documents
    assert miner.refresh(model, np.arange(50, 150))
    assert miner._corpus is not corpus
    assert not np.array_equal(miner.documents, before)


def test_mining_changes_neither_mode_nor_random_state(data: TrainingData) -> None:
    model = towers(data)
    state, digest = torch.get_rng_state(), weights_digest(model)
    Miner(data, inputs_of(model, data), MinedSource()).refresh(model, np.arange(10))
    assert model.training
    assert model.document.training
    assert torch.equal(torch.get_rng_state(), state)
    assert weights_digest(model) == digest


def test_draws_are_decided_by_the_generator_alone_and_state_the_chance_of_each(data: TrainingData) -> None:
    model = towers(data)
    config = MinedSource(score_share=0.95, pool=4, per_query=2, depth=40)
    miner = Miner(data, inputs_of(model, data), config)
    miner.refresh(model, np.arange(400))
    rows = np.random.default_rng(0).permutation(400)[:64]
    drawn = [miner.draw(rows, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert all(np.array_equal(a, b) for a, b in zip(drawn[0], drawn[1], strict=True))
    assert not np.array_equal(drawn[0][0], drawn[2][0])
    count = np.zeros((64, 60))
    for seed in range(400):
        documents, owner, chance = miner.draw(rows, np.random.default_rng(seed))
        count[owner, documents] += 1
    assert (np.diff(owner) >= 0).all()
    assert np.bincount(owner).max() == 2
    assert np.abs(count[owner, documents] / 400 - chance).max() < 0.12
    sizes = (miner.documents[np.searchsorted(miner.examples, rows)] >= 0).sum(axis=1)
    assert np.array_equal(np.bincount(owner, minlength=64), np.minimum(sizes, 2))


def test_the_table_survives_saving_bit_for_bit(data: TrainingData) -> None:
    model = towers(data)
    miner = Miner(data, inputs_of(model, data), MinedSource())
    empty = miner.state_dict()
    miner.refresh(model, np.arange(30))
    other = Miner(data, inputs_of(model, data), MinedSource())
    other.load_state_dict(miner.state_dict())
    assert not other.refresh(model, np.arange(30))  # the digest came along
    draws = [one.draw(np.arange(30), np.random.default_rng(0)) for one in (miner, other)]
    assert all(np.array_equal(a, b) for a, b in zip(*draws, strict=True))
    other.load_state_dict(empty)
    assert (other.weights, len(other.examples)) == ("", 0)


def test_examples_that_were_not_mined_are_refused(data: TrainingData) -> None:
    model = towers(data)
    miner = Miner(data, inputs_of(model, data), MinedSource())
    miner.refresh(model, np.arange(10))
    for rows in ([3, 10], [400]):
        with pytest.raises(TrainingError, match="were not mined"):
            miner.draw(np.array(rows), np.random.default_rng(0))


def test_a_share_of_the_positives_score_needs_cosines(data: TrainingData) -> None:
    model = towers(data, similarity="dot")
    inputs = inputs_of(model, data)
    with pytest.raises(ConfigError, match=r"score_share compares cosines, but towers\.similarity is dot"):
        Miner(data, inputs, MinedSource()).refresh(model, np.arange(10))
    assert Miner(data, inputs, MinedSource(score_share=None)).refresh(model, np.arange(10))


def test_vectors_that_are_no_cosines_are_refused(data: TrainingData) -> None:
    class Longer(TwoTower):
        def encode_documents(self, features: Any) -> Tensor:
            return 2 * super().encode_documents(features)

    model = towers(data)
    longer = Longer(model.config, model.query, model.document)
    with pytest.raises(TrainingError, match="not of unit length"):
        Miner(data, inputs_of(model, data), MinedSource()).refresh(longer, np.arange(10))
    with torch.no_grad():
        next(model.document.parameters()).fill_(torch.nan)
    with pytest.raises(TrainingError, match="not finite"):
        Miner(data, inputs_of(model, data), MinedSource()).refresh(model, np.arange(10))


def test_an_index_that_faiss_cannot_build_is_refused_in_one_line(data: TrainingData) -> None:
    model = towers(data)
    miner = Miner(data, inputs_of(model, data), MinedSource(factory="IVF1000,Flat"))
    with pytest.raises(ConfigError, match=r"cannot index 60 documents: .*; use Flat"):
        miner.refresh(model, np.arange(10))


def test_an_inverted_index_searched_in_full_finds_the_same(data: TrainingData) -> None:
    settings: dict[str, Any] = {"score_share": None, "depth": 60}
    exact = mined(data, np.arange(50), **settings)
    assert np.array_equal(mined(data, np.arange(50), factory="IVF2,Flat", nprobe=2, **settings), exact)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"per_query": 5, "pool": 4}, "pool is 4, fewer than per_query"),
        ({"depth": 10, "skip_top": 10}, "depth is 10, too few"),
        ({"score_share": 1.5}, "less than or equal to 1"),
        ({"score_share": 0.0}, "greater than 0"),
    ],
)
def test_settings_that_can_mine_nothing_are_refused(config: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        MinedSource(**config)
