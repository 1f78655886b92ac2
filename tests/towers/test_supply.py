import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from features.artifact import Artifact, publish
from features.errors import ConfigError
from towers.collate import Batches, Draw, collate
from towers.data import TrainingData, read_training_data
from towers.losses import CrossEntropyConfig, HingeConfig, LossConfig
from towers.negatives import Source, log_expected_columns
from towers.objective import build_objective
from towers.record import ListRecorder, NoRecorder, Recorder
from towers.schedule import OptimizerConfig, TrainConfig, build_optimizer
from towers.sources import NegativesConfig
from towers.step import Inputs, Means, take_step
from towers.supply import Supply
from towers.train import train
from towers.two_tower import TowersConfig, build_two_tower

TOWER = {"kind": "features", "text": {"width": 8, "word_buckets": 256, "ngram_buckets": 1, "ngram_max": 0}}
TOWERS: dict[str, Any] = {"dimension": 8, "query": TOWER, "document": TOWER | {"id": {"width": 4}}}
EVERYTHING: dict[str, Any] = {
    "uniform": {"per_batch": 20},
    "mined": {"per_query": 2, "pool": 6, "refresh_every": 4, "score_share": None},
    "queue": {"size": 70, "momentum": 0.9},
}
TRAIN: dict[str, Any] = {
    "stages": [
        {"name": "a", "batch_size": 32, "steps": 10, "unclicked_per_query": 1, "negatives": EVERYTHING},
        {"name": "b", "batch_size": 48, "steps": 9, "negatives": EVERYTHING},
    ],
    "early_stopping": {"every": 3, "metric": "nDCG@10"},
    "log_every": 1,
    "checkpoint_seconds": 0,
    "device": "cpu",
    "num_threads": 1,
}
SHARES = {f"share_{source.name.lower()}" for source in Source}


@pytest.fixture(scope="module")
def data(coloured_things: Path) -> TrainingData:
    return read_training_data(coloured_things)


class Stage:
    """Small towers, and the further sources of a stage of batches of 32."""

    def __init__(self, data: TrainingData, **negatives: Any) -> None:
        torch.manual_seed(0)
        self.data = data
        self.model = build_two_tower(TowersConfig.model_validate(TOWERS), data.documents, data.queries)
        self.model.train()
        self.inputs = Inputs(
            self.model.prepare_queries(data.queries), self.model.prepare_documents(data.documents)
        )
        self.batches = Batches(data, 32, 0, "own", (3, 0))
        self.optimizer = build_optimizer(self.model, OptimizerConfig())
        self.supply = Supply(
            NegativesConfig.model_validate(negatives), self.model, data, self.inputs, self.batches
        )

    def step(self, number: int, record: Recorder | None = None) -> list[Draw]:
        draws = self.supply.draws(self.model, number, 10, record or NoRecorder())
        batch = self.batches.batch(number, draws)
        objective = build_objective(CrossEntropyConfig(), tiled=False)
        take_step(self.model, self.inputs, batch, objective, self.optimizer, Means())
        self.supply.learn(self.model, number)
        return draws


def test_sources_come_in_one_order_and_each_is_counted(data: TrainingData) -> None:
    stage = Stage(data, **EVERYTHING)
    stage.step(0)
    draws = stage.supply.draws(stage.model, 1, 10, NoRecorder())
    batch = stage.batches.batch(1, draws)
    assert [draw.source for draw in draws] == [Source.UNIFORM, Source.MINED, Source.QUEUE]
    counts = torch.bincount(batch.source, minlength=5).tolist()
    assert counts == [32, 0, 20, 0, 32]
    assert torch.bincount(batch.own_source[~batch.own_excluded], minlength=5)[Source.MINED] == 64
    assert len(batch.queued) == 32
    assert len(batch.document_place) == 32 + 20


def test_a_queued_document_is_masked_like_any_other(data: TrainingData) -> None:
    """It may be the positive of a row, known for its query, or of equal content."""
    stage = Stage(data, queue={"size": 64})
    stage.step(0)
    stage.step(1)
    draws = stage.supply.draws(stage.model, 2, 10, NoRecorder())
    excluded = stage.batches.batch(2, draws).excluded.dense()
    rows, (queue,) = stage.batches.rows(2), draws
    queued = queue.document.tolist()
    assert queued == np.concatenate([data.document[stage.batches.rows(step)] for step in (0, 1)]).tolist()
    content, known, hits = data.catalogue.content, data.catalogue.known, 0
    for i, row in enumerate(rows.tolist()):
        key = data.query_key[row]
        clicked = set(known.values[known.offsets[key] : known.offsets[key + 1]].tolist())
        for f, document in enumerate(queued):
            barred = content[document] in clicked or content[document] == content[data.document[row]]
            assert bool(excluded[i, 32 + f]) == barred
            hits += barred
    assert hits > 0


def test_queued_vectors_are_scored_and_get_no_gradient(data: TrainingData) -> None:
    """The last columns' scores are those of the queue, not of the documents encoded anew."""
    stage = Stage(data, queue={"size": 32, "momentum": 0.9})
    stage.step(0)
    draws = stage.supply.draws(stage.model, 1, 10, NoRecorder())
    batch = stage.batches.batch(1, draws)
    objective = build_objective(CrossEntropyConfig(), tiled=False)
    step = take_step(stage.model, stage.inputs, batch, objective, stage.optimizer, Means())
    assert draws[0].vectors is not None
    assert torch.equal(step.document[32:], draws[0].vectors)
    with torch.no_grad():
        anew = stage.model.encode_documents(stage.inputs.documents.take(torch.from_numpy(draws[0].document)))
    assert not torch.allclose(anew, draws[0].vectors, atol=1e-3)


@pytest.mark.parametrize("loss", [CrossEntropyConfig(), HingeConfig(margin=0.2)])
def test_every_source_composes_with_tiles_and_gradient_caching(data: TrainingData, loss: LossConfig) -> None:
    """One step as a whole, and in tiles with 7 rows encoded at a time: the same loss and gradients."""
    found = []
    for tiled, means in ((False, Means()), (True, Means(encode_rows=7))):
        stage = Stage(data, **EVERYTHING)
        stage.model.eval()
        positives = data.document[stage.batches.rows(0)]
        stage.supply.learn(stage.model, 0)
        with torch.no_grad():  # else queued vectors tie with the same documents encoded anew
            next(stage.model.document.parameters()).normal_(generator=torch.Generator().manual_seed(1))
        batch = stage.batches.batch(0, stage.supply.draws(stage.model, 0, 1, NoRecorder()))
        assert len(batch.queued) == len(positives)
        objective = build_objective(loss, tiled=tiled)
        step = take_step(stage.model, stage.inputs, batch, objective, stage.optimizer, means)
        gradients = {
            name: parameter.grad.clone()
            for name, parameter in stage.model.named_parameters()
            if parameter.grad is not None
        }
        found.append((step.loss, gradients))
    (plain, one), (tiles, two) = found
    assert tiles == pytest.approx(plain, rel=1e-5)
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[name], two[name], rtol=1e-4, atol=1e-6) for name in one)


def test_only_the_windows_examples_are_mined_and_only_when_it_begins(data: TrainingData) -> None:
    stage, record = Stage(data, mined={"refresh_every": 4, "score_share": None}), ListRecorder()
    for number in range(10):
        stage.step(number, record)
    mined = [details for name, details in record.events if name == "mined"]
    assert [details["step"] for details in mined] == [0, 4, 8]
    assert [details["examples"] for details in mined] == [128, 128, 64]
    assert all(details["searched"] and details["without"] == 0 for details in mined)
    assert len({details["weights"] for details in mined}) == 3


def test_a_stage_that_goes_on_in_the_midst_of_a_window_mines_for_the_rest_of_it(data: TrainingData) -> None:
    """A stage of 10 steps waits for a separation; the window of step 8 was mined for its last two steps."""
    stage, record = Stage(data, mined={"refresh_every": 4, "score_share": None}), ListRecorder()
    for number in range(14):
        stage.step(number, record)
    mined = [details for name, details in record.events if name == "mined"]
    assert [details["step"] for details in mined] == [0, 4, 8, 10, 12]
    assert [details["examples"] for details in mined] == [128, 128, 64, 64, 128]


def test_draws_depend_on_seed_stage_step_and_history_alone(data: TrainingData) -> None:
    runs = []
    for _ in range(2):
        stage = Stage(data, **EVERYTHING)
        runs.append([draw.document for number in range(6) for draw in stage.step(number)])
    assert all(np.array_equal(a, b) for a, b in zip(*runs, strict=True))
    uniform = runs[0][::3]
    assert not np.array_equal(uniform[0], uniform[1])


def test_log_q_of_a_mixture_is_the_log_of_the_expected_number_of_columns(data: TrainingData) -> None:
    """Counted over simulated batches: B and F by the positives' share, U uniformly."""
    random = np.random.default_rng(0)
    corpus, share = len(data.catalogue.content), data.catalogue.positive_share
    rows, queued, uniform, batches = 8, 30, 25, 3000
    positives = random.choice(corpus, (batches, rows + queued), p=share / share.sum())
    drawn = random.integers(corpus, size=(batches, uniform))
    mean = (np.bincount(positives.ravel()) + np.bincount(drawn.ravel())) / batches
    found = log_expected_columns(np.arange(corpus), rows + queued, 0.0, data.catalogue, uniform=uniform)
    assert np.exp(found) == pytest.approx(mean, rel=0.12)


def test_collation_counts_what_each_source_brought_in_log_q(data: TrainingData) -> None:
    rows = np.arange(16)
    corpus, share = len(data.catalogue.content), data.catalogue.positive_share
    draws = [
        Draw(Source.UNIFORM, np.array([5, 6, 7])),
        Draw(Source.MINED, np.array([8, 9]), np.array([0, 3]), np.array([0.5, 1.0])),
        Draw(Source.QUEUE, np.array([10, 11]), vectors=torch.zeros(2, 8)),
    ]
    batch = collate(data, rows, draws)
    expected = (16 + 2) * share + 3 / corpus
    columns = [*data.document[rows], 5, 6, 7, 10, 11]
    assert batch.log_q.exp().numpy() == pytest.approx(expected[columns], rel=1e-5)
    assert batch.own_log_q[0, 0].exp().item() == pytest.approx(expected[8] + 0.5, rel=1e-5)
    assert batch.own_log_q[3, 0].exp().item() == pytest.approx(expected[9] + 1.0, rel=1e-5)


def test_the_corrected_sum_estimates_the_sum_over_the_catalogue_and_the_opposite_sign_does_not() -> None:
    """The sign test: Σ over drawn columns of exp(s - log Q) is on average Σ over the catalogue of exp(s)."""
    random = np.random.default_rng(1)
    corpus, rows, uniform, batches = 40, 12, 9, 4000
    share = random.dirichlet(np.full(corpus, 0.5)) + 1e-3
    share /= share.sum()
    score = random.normal(size=corpus)
    log_q = np.log(rows * share + uniform / corpus)
    drawn = np.concatenate(
        [random.choice(corpus, (batches, rows), p=share), random.integers(corpus, size=(batches, uniform))],
        axis=1,
    )
    truth = np.exp(score).sum()
    assert np.exp(score - log_q)[drawn].sum(axis=1).mean() == pytest.approx(truth, rel=0.03)
    assert abs(np.exp(score + log_q)[drawn].sum(axis=1).mean() / truth - 1) > 0.3
    assert abs(np.exp(score)[drawn].sum(axis=1).mean() / truth - 1) > 0.1


def test_each_sources_count_and_share_of_the_loss_is_on_the_curve(
    coloured_things: Path, tmp_path: Path
) -> None:
    hinge = {"name": "h", "batch_size": 48, "steps": 5, "negatives": EVERYTHING, "enter": None}
    stages = [TRAIN["stages"][0], hinge | {"loss": {"kind": "hinge"}}]
    config = TrainConfig.model_validate(TRAIN | {"stages": stages, "guard": None})
    towers = TowersConfig.model_validate(TOWERS)
    result = train(coloured_things, tmp_path / "x", towers, config, seed=5, record=NoRecorder())
    curve = json.loads((result.path / "training.json").read_text())["curve"]
    assert len(curve) == 15
    for point in curve:
        shares = {name: value for name, value in point.items() if name.startswith("share_")}
        assert sum(shares.values()) == pytest.approx(1)
        assert 0 < point["mined_negatives"] <= 2
        assert 0 < point["uniform_negatives"] <= 20
    full = curve[5]
    assert {name for name in full if name.startswith("share_")} == SHARES
    assert all(full[name] > 0 for name in SHARES)
    assert "share_queue" not in curve[0]  # nothing was queued yet
    assert 32 < full["queue_negatives"] < 70


class Interrupter(NoRecorder):
    """Ends a training in the middle of a step."""

    def __init__(self, step: int) -> None:
        self._step = step

    def metric(self, name: str, value: float, step: int) -> None:
        if name == "train/loss" and step == self._step:
            raise InterruptedError


def test_an_interrupted_training_with_queue_and_mining_ends_as_the_uninterrupted_one(
    coloured_things: Path, tmp_path: Path
) -> None:
    """Inside a mined window with a queue that is partly filled, then full, then in the next stage."""
    towers, training = TowersConfig.model_validate(TOWERS), TrainConfig.model_validate(TRAIN)
    target = tmp_path / "interrupted"
    for step in (3, 7, 14):
        with pytest.raises(InterruptedError):
            train(coloured_things, target, towers, training, seed=5, record=Interrupter(step))
        states = [int(path.name[5:]) for path in (tmp_path / "interrupted.progress").glob("step-*")]
        assert max(states) == step - 1
    resumed, whole = (
        train(coloured_things, path, towers, training, seed=5, record=NoRecorder())
        for path in (target, tmp_path / "whole")
    )
    assert resumed.digest == whole.digest


def test_a_share_of_the_score_under_dot_products_is_refused_before_training(
    coloured_things: Path, tmp_path: Path
) -> None:
    towers = TowersConfig.model_validate(TOWERS | {"similarity": "dot"})
    stage = {"name": "late", "batch_size": 32, "steps": 2, "negatives": {"mined": {}}}
    config = TrainConfig.model_validate({"stages": [TRAIN["stages"][1], stage | {"batch_size": 48}]})
    record = ListRecorder()
    with pytest.raises(ConfigError, match="score_share compares cosines"):
        train(coloured_things, tmp_path / "x", towers, config, seed=0, record=record)
    assert record.events == []


def without_unclicked(examples: Path, target: Path) -> Path:
    """Copy an examples artifact as a log of clicks alone would give it."""
    with publish(target, "examples", {}) as staging:
        for file in Artifact.read(examples, "examples").path.glob("*.parquet"):
            table = pq.read_table(file)
            if file.name == "train.parquet":
                nothing = pa.array([[]] * len(table), pa.list_(pa.string()))
                column = table.column_names.index("unclicked_doc_ids")
                table = table.set_column(column, "unclicked_doc_ids", nothing)
            pq.write_table(table, staging / file.name)
    return target


def test_a_log_without_unclicked_rows_trains_and_says_so(coloured_things: Path, tmp_path: Path) -> None:
    stage = {"name": "a", "batch_size": 32, "steps": 4, "unclicked_per_query": 2}
    config = TrainConfig.model_validate(TRAIN | {"stages": [stage | {"negatives": EVERYTHING}]})
    examples, record = without_unclicked(coloured_things, tmp_path / "examples"), ListRecorder()
    towers = TowersConfig.model_validate(TOWERS)
    result = train(examples, tmp_path / "x", towers, config, seed=0, record=record)
    assert ("nothing_unclicked", {"name": "a"}) in record.events
    curve = json.loads((result.path / "training.json").read_text())["curve"]
    assert all(point["unclicked_negatives"] == 0 and "share_unclicked" not in point for point in curve)
