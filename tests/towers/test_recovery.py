"""A collapse that nobody stages: a deep tower, a hinge from scratch, a batch of most of the data."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from features.artifact import Artifact
from features.errors import TrainingError
from towers.checkpoint import Progress
from towers.data import read_training_data
from towers.loop import stage_batches
from towers.negatives import Source
from towers.recovery import phase_of, smaller_batch
from towers.sources import UniformSource
from towers.step import Inputs
from towers.supply import Supply
from towers.train import ListRecorder, NoRecorder, TrainConfig, train
from towers.two_tower import TowersConfig, build_two_tower

MARGIN = 0.2
WORDS = {"width": 16, "word_buckets": 512, "ngram_buckets": 1, "ngram_max": 0}
DEEP = {"kind": "features", "text": WORDS, "straight": False, "hidden": [64, 64, 64]}
TOWERS = TowersConfig.model_validate({"dimension": 16, "query": DEEP, "document": DEEP})
COLD = {"name": "cold", "loss": {"kind": "hinge", "margin": MARGIN}, "batch_size": 256, "steps": 120}


def configured(**changes: Any) -> TrainConfig:
    stage = COLD | {"learning_rate": 0.02, "decay": "none"} | changes.pop("stage", {})
    plain = {"stages": [stage], "allow_cold_hinge": True, "early_stopping": None, "device": "cpu"}
    return TrainConfig.model_validate(plain | {"num_threads": 1, "log_every": 10} | changes)


def weights(artifact: Artifact) -> dict[str, Any]:
    """Return the SHA-256 of every file of weights."""
    return {name: told for name, told in artifact.manifest["files"].items() if name.endswith(".safetensors")}


def told_by(path: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((path / "training.json").read_text())
    return told


def test_without_the_guard_a_hinge_from_scratch_ends_with_equal_scores_and_the_margin_as_loss(
    coloured_things: Path, tmp_path: Path
) -> None:
    config = configured(guard=None)
    told = told_by(train(coloured_things, tmp_path / "x", TOWERS, config, seed=0, record=NoRecorder()).path)
    last, probe = told["curve"][-1], told["probes"][-1]
    assert last["loss"] == pytest.approx(MARGIN, rel=0.01)
    assert abs(last["gap"]) < 0.002
    assert max(last["query_std"], last["document_std"]) < 0.1 / 16**0.5
    assert probe["alignment"] < 0.05
    assert probe["uniformity"] > -0.1
    assert told["collapses"] == []


def test_the_guard_sees_the_collapse_goes_back_warms_up_and_the_hinge_then_learns(
    coloured_things: Path, tmp_path: Path
) -> None:
    record = ListRecorder()
    result = train(coloured_things, tmp_path / "x", TOWERS, configured(), seed=0, record=record)
    told = told_by(result.path)
    names = [name for name, _ in record.events if name not in ("prepared", "stage_finished")]
    assert names[:4] == ["stage_started", "collapse_alarm", "rolled_back", "stage_started"]
    assert names[-1] == "recovered"
    alarm = dict(record.events)["collapse_alarm"]
    assert alarm["loss"] == pytest.approx(alarm["loss_of_equal_scores"], rel=0.05)
    assert alarm["relative_spread"] < 0.1
    started = [details for name, details in record.events if name == "stage_started"]
    assert [details["loss"] for details in started[:3]] == ["hinge", "cross_entropy", "hinge"]
    assert started[1]["batch_size"] == 128
    assert [details["uniform_negatives"] for details in started[:3]] == [0, 64, 0]
    assert started[2]["learning_rate"] == started[1]["learning_rate"] == 0.01
    assert [stage["reason"] for stage in told["stages"][:2]] == ["collapsed", "separated"]
    back = [point for point in told["curve"] if point["stage"] == "cold, recovery 1"]
    assert back
    assert all(point["share_uniform"] > 0 and 48 < point["uniform_negatives"] <= 64 for point in back)
    last = told["curve"][-1]
    assert last["loss"] < MARGIN / 2
    assert last["gap"] > MARGIN / 2
    assert min(last["query_std"], last["document_std"]) > 0.5 / 16**0.5


def test_no_alarm_rings_before_the_hinge_of_a_weighted_sum_counts(
    coloured_things: Path, tmp_path: Path
) -> None:
    """Cross-entropy of fresh towers may look collapsed; here whatever is looked at does."""
    ramp = {"weight_from": 0.0, "weight_to": 1.0, "ramp_start": 0.5, "ramp_end": 0.5}
    loss = {"kind": "weighted_sum", "first": {"kind": "cross_entropy"}, "second": COLD["loss"], **ramp}
    always = {"spread": 0.99, "healthy_spread": 1.0, "gap_tolerance": 99, "loss_tolerance": 0.99}
    config = configured(stage={"loss": loss, "steps": 8}, guard=always | {"steps": 2, "retries": 0})
    with pytest.raises(TrainingError, match="stage 'cold' collapsed at step 6:"):
        train(coloured_things, tmp_path / "x", TOWERS, config, seed=0, record=NoRecorder())


def test_ways_back_are_bounded_and_the_failure_says_what_was_seen(
    coloured_things: Path, tmp_path: Path
) -> None:
    """One step of cross-entropy helps too little before a batch of all the data at a rate that stays."""
    hopeless = {"retries": 2, "recovery_steps": 1, "learning_rate_factor": 1.0}
    config = configured(guard=hopeless, stage={"batch_size": 400})
    record = ListRecorder()
    with pytest.raises(TrainingError, match=r"stage 'cold' collapsed at step \d+.*2 ways back did not help"):
        train(coloured_things, tmp_path / "x", TOWERS, config, seed=0, record=record)
    names = [name for name, _ in record.events]
    assert names.count("collapse_alarm") == 3
    assert names.count("rolled_back") == 2
    assert names[-1] == "recovery_given_up"
    assert not (tmp_path / "x").exists()


CHILD = """
import json, os, signal, sys
from pathlib import Path
from towers.train import NoRecorder, TrainConfig, train
from towers.two_tower import TowersConfig

class Killer(NoRecorder):
    def metric(self, name, value, step):
        if name == "train/loss" and step == int(sys.argv[5]):
            os.kill(os.getpid(), signal.SIGKILL)

towers, config = TowersConfig(**json.loads(sys.argv[3])), TrainConfig(**json.loads(sys.argv[4]))
train(Path(sys.argv[1]), Path(sys.argv[2]), towers, config, seed=0, record=Killer())
"""


def test_a_training_killed_on_its_way_back_ends_with_the_weights_of_the_uninterrupted_one(
    coloured_things: Path, tmp_path: Path
) -> None:
    short = {"stage": {"steps": 40}, "guard": {"steps": 5, "recovery_steps": 15}, "log_every": 1}
    config, record = configured(checkpoint_seconds=0, **short), ListRecorder()
    whole = train(coloured_things, tmp_path / "whole", TOWERS, configured(**short), seed=0, record=record)
    alarm = dict(record.events)["collapse_alarm"]["step"]
    target = tmp_path / "killed"
    arguments = [str(coloured_things), str(target), TOWERS.model_dump_json(), config.model_dump_json()]
    for step in (alarm - 3, alarm + 5):  # while suspicion grows; while it recovers
        code = subprocess.run(
            [sys.executable, "-c", CHILD, *arguments, str(step)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            timeout=120,
            check=False,
        ).returncode
        assert code == -signal.SIGKILL
    resumed = train(coloured_things, target, TOWERS, config, seed=0, record=NoRecorder())
    assert weights(resumed) == weights(whole)
    assert told_by(resumed.path)["collapses"] == told_by(whole.path)["collapses"]


def test_a_way_back_goes_down_the_batch_stages_and_then_halves() -> None:
    sizes = [64, 256, 256, 1024]
    stages = [{"name": str(n), "batch_size": size, "steps": 5} for n, size in enumerate(sizes)]
    config = TrainConfig.model_validate({"stages": stages})
    assert [smaller_batch(config, 3, down) for down in (1, 2, 3, 4)] == [256, 64, 32, 16]
    assert smaller_batch(config, 0, 9) == 2


@pytest.mark.parametrize("retries", [1, 2])
def test_each_way_back_has_more_uniform_negatives_and_log_q_counts_them(
    retries: int, coloured_things: Path
) -> None:
    sources = {"uniform": {"per_batch": 10}, "queue": {"size": 8}}
    config = configured(stage={"negatives": sources}, guard={"uniform_negatives": 0.25})
    back = phase_of(config, Progress(retries=retries, recovering=True))
    assert back.batch_size == 256 >> retries
    added = back.batch_size * retries // 4
    assert back.negatives.uniform == UniformSource(per_batch=10 + added)
    assert back.negatives.queue == config.stages[0].negatives.queue
    data = read_training_data(coloured_things)
    model = build_two_tower(TOWERS, data.documents, data.queries)
    inputs = Inputs(model.prepare_queries(data.queries), model.prepare_documents(data.documents))
    batches = stage_batches(data, back, (0, 0, retries, 1))
    supply = Supply(back.negatives, model, data, inputs, batches)
    batch = batches.batch(0, supply.draws(model, 0, 10, NoRecorder()))
    assert int((batch.source == Source.UNIFORM).sum()) == 10 + added
    share, corpus = data.catalogue.positive_share, len(data.catalogue.content)
    columns = batch.document_rows[batch.document_place].numpy()
    expected = back.batch_size * share[columns] + (10 + added) / corpus
    assert batch.log_q.exp().numpy() == pytest.approx(expected, rel=1e-5)


def test_a_guard_without_more_uniform_negatives_keeps_the_stages_own() -> None:
    config = configured(guard={"uniform_negatives": 0})
    assert phase_of(config, Progress(retries=3, recovering=True)).negatives == config.stages[0].negatives


def test_what_runs_is_a_function_of_the_configuration_and_the_progress() -> None:
    config = configured(guard={"learning_rate_factor": 0.5, "recovery_steps": 40})
    assert phase_of(config, Progress()) is config.stages[0]
    back = phase_of(config, Progress(retries=2, recovering=True))
    assert (back.loss.kind, back.batch_size, back.steps, back.learning_rate) == (
        "cross_entropy",
        64,
        40,
        0.005,
    )
    assert back.leave is not None
    again = phase_of(config, Progress(retries=2))
    assert again == config.stages[0].model_copy(update={"learning_rate": 0.005})
