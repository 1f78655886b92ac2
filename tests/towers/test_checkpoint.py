import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from features.artifact import Artifact
from features.errors import ArtifactError
from towers.checkpoint import (
    Checkpoints,
    Progress,
    load_weights,
    optimizer_state,
    restore_optimizer,
    weights_of,
)
from towers.record import ListRecorder, NoRecorder
from towers.train import TrainConfig, train
from towers.two_tower import TowersConfig

CHILD = """
import json, os, signal, sys
from pathlib import Path
from towers.train import NoRecorder, TrainConfig, train
from towers.two_tower import TowersConfig

class Killer(NoRecorder):
    def metric(self, name, value, step):
        if name == "train/loss" and step == int(sys.argv[4]):
            os.kill(os.getpid(), signal.SIGKILL)

config = json.loads(sys.argv[3])
towers, training = TowersConfig(**config["towers"]), TrainConfig(**config["train"])
train(Path(sys.argv[1]), Path(sys.argv[2]), towers, training, seed=5, record=Killer())
"""
TOWER = {"kind": "features", "text": {"width": 8, "word_buckets": 256, "ngram_buckets": 1, "ngram_max": 0}}
WILD = {
    "enter": None,
    "unclicked_per_query": 1,
    "loss": {"kind": "hinge"},
    "learning_rate": 100.0,
}  # the best stays in stage a
CONFIG: dict[str, dict[str, Any]] = {
    "towers": {"dimension": 8, "query": TOWER, "document": TOWER | {"id": {"width": 4}}},
    "train": {
        "stages": [
            {"name": "a", "batch_size": 32, "steps": 9, "warmup_steps": 2},
            {"name": "b", "batch_size": 64, "steps": 12} | WILD,
        ],
        "early_stopping": {"every": 3, "metric": "nDCG@10"},
        "log_every": 1,
        "checkpoint_seconds": 0,
        "device": "cpu",
        "num_threads": 1,
    },
}


def trained(examples: Path, target: Path) -> Artifact:
    towers, config = TowersConfig(**CONFIG["towers"]), TrainConfig(**CONFIG["train"])
    return train(examples, target, towers, config, seed=5, record=NoRecorder())


def killed_at(step: int, examples: Path, target: Path) -> int:
    return subprocess.run(
        [sys.executable, "-c", CHILD, str(examples), str(target), json.dumps(CONFIG), str(step)],
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    ).returncode


def test_training_killed_in_each_stage_ends_with_the_weights_of_the_uninterrupted_one(
    coloured_things: Path, tmp_path: Path
) -> None:
    target = tmp_path / "killed"
    for step in (5, 14):
        assert killed_at(step, coloured_things, target) == -signal.SIGKILL
        states = [int(path.name[5:]) for path in (tmp_path / "killed.progress").glob("step-*")]
        assert max(states) == step - 1
        assert not target.exists()
    resumed, whole = (trained(coloured_things, path) for path in (target, tmp_path / "whole"))
    assert resumed.digest == whole.digest
    assert whole.content["best"]["stage"] == "a"
    assert not (tmp_path / "killed.progress").exists()


class Small(nn.Module):
    """Two names for one matrix, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(3, 3)
        self.two = self.one
        self.register_buffer("seen", torch.zeros(()))


def stepped(model: Small, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model.one(torch.rand(4, 3)).square().sum().backward()
        optimizer.step()
        model.seen.add_(1)


def adam(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), fused=True)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Checkpoints, Small, ListRecorder]:
    """Three states of a small training, of which two are kept."""
    record = ListRecorder()
    checkpoints = Checkpoints(tmp_path / "x", "abc", record)
    model = Small()
    optimizer = adam(model)
    for total in (9, 10, 11):
        stepped(model, optimizer, 1)
        best = weights_of(model) if total == 10 else None
        checkpoints.save(Progress(stage=1, step=total, total=total), model, optimizer, best)
    return checkpoints, model, record


def test_the_last_two_states_are_kept(saved: tuple[Checkpoints, Small, ListRecorder]) -> None:
    assert sorted(path.name for path in saved[0].directory.iterdir()) == ["step-10", "step-11"]


def test_a_resumed_optimiser_and_generator_go_on_as_if_never_stopped(
    saved: tuple[Checkpoints, Small, ListRecorder],
) -> None:
    checkpoints, _, record = saved
    results = []
    for _ in range(2):
        model = Small()
        state = checkpoints.resume(model)
        assert state is not None
        progress, best, moments = state.progress, state.best, state.optimizer
        optimizer = adam(model)
        restore_optimizer(model, optimizer, moments)
        stepped(model, optimizer, 3)
        results.append(weights_of(model))
        assert (progress.stage, progress.step, best) == (1, 11, None)
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    assert record.events[0] == ("resumed", {"path": "step-11", "step": 11})

    without = Small()
    assert checkpoints.resume(without) is not None
    stepped(without, adam(without), 3)
    assert not torch.equal(weights_of(without)["one.weight"], results[0]["one.weight"])


def test_moments_that_were_put_back_are_a_copy_that_further_steps_do_not_change() -> None:
    """Else a healthy state would follow the training that it is kept apart from."""
    model = Small()
    optimizer = adam(model)
    stepped(model, optimizer, 1)
    kept = optimizer_state(model, optimizer)
    before = {name: value.clone() for name, value in kept.items()}
    restore_optimizer(model, optimizer, kept)
    stepped(model, optimizer, 2)
    assert before
    assert all(torch.equal(kept[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    "file", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]
)
def test_a_damaged_state_is_reported_and_the_one_before_it_taken(
    saved: tuple[Checkpoints, Small, ListRecorder], file: str
) -> None:
    checkpoints, _, record = saved
    path = checkpoints.directory / "step-11" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    state = checkpoints.resume(Small())
    assert state is not None
    assert (state.progress.total, state.best is not None) == (10, True)
    assert [name for name, _ in record.events] == ["checkpoint_damaged", "resumed"]
    assert record.events[0][1]["path"] == "step-11"


def test_progress_of_another_configuration_is_said_to_be_discarded(
    saved: tuple[Checkpoints, Small, ListRecorder], tmp_path: Path
) -> None:
    record = ListRecorder()
    assert Checkpoints(tmp_path / "x", "other", record).resume(Small()) is None
    assert [name for name, _ in record.events] == ["progress_discarded"] * 2
    assert not list(saved[0].directory.iterdir())


def test_a_half_written_state_is_not_seen(saved: tuple[Checkpoints, Small, ListRecorder]) -> None:
    checkpoints, _, _ = saved
    (checkpoints.directory / ".step-12.abcdef").mkdir()
    state = checkpoints.resume(Small())
    assert state is not None
    assert state.progress.total == 11
    assert not list(checkpoints.directory.glob(".*"))


def test_weights_of_other_towers_are_refused() -> None:
    with pytest.raises(ArtifactError, match="belong to other towers"):
        load_weights(Small(), weights_of(nn.Linear(3, 3)))


def test_nothing_to_resume_is_none(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "x", "abc", NoRecorder()).resume(Small()) is None
