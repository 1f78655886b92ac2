"""SIGKILL at random moments of a training, some of them while a state is being written."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from features.artifact import Artifact
from towers.train import NoRecorder, TrainConfig, train
from towers.two_tower import TowersConfig

pytestmark = pytest.mark.crash

KILLS = 20
CHILD = """
import json, sys
from pathlib import Path
from towers.train import NoRecorder, TrainConfig, train
from towers.two_tower import TowersConfig

class Telling(NoRecorder):
    def metric(self, name, value, step):
        if name == "train/loss":
            print(step, flush=True)

towers, config = TowersConfig(**json.loads(sys.argv[3])), TrainConfig(**json.loads(sys.argv[4]))
train(Path(sys.argv[1]), Path(sys.argv[2]), towers, config, seed=0, record=Telling())
"""
WORDS = {"width": 16, "word_buckets": 512, "ngram_buckets": 1, "ngram_max": 0}
DEEP = {"kind": "features", "text": WORDS, "straight": False, "hidden": [64, 64, 64]}
TOWERS = TowersConfig.model_validate(
    {"dimension": 16, "learn_temperature": True, "query": DEEP, "document": DEEP}
)
SOURCES = {
    "uniform": {"per_batch": 20},
    "mined": {"per_query": 1, "pool": 4, "refresh_every": 7},
    "queue": {"size": 2000, "momentum": 0.9},
}
COLD = {"name": "cold", "batch_size": 256, "steps": 40, "learning_rate": 0.02, "decay": "none"}
WIDE = {"name": "wide", "batch_size": 300, "steps": 30, "unclicked_per_query": 1, "enter": None}


def configured(checkpoint_seconds: float) -> TrainConfig:
    """A hinge that collapses and comes back, then cross-entropy; every source of negatives, validation."""
    cold = COLD | {"loss": {"kind": "hinge", "margin": 0.2}, "negatives": SOURCES}
    return TrainConfig.model_validate(
        {
            "stages": [cold, WIDE | {"negatives": SOURCES}],
            "allow_cold_hinge": True,
            "guard": {"steps": 5, "recovery_steps": 20},
            "early_stopping": {"metric": "nDCG@10", "every": 10, "patience": 50},
            "checkpoint_seconds": checkpoint_seconds,
            "log_every": 1,
            "num_threads": 1,
            "device": "cpu",
        }
    )


def weights(artifact: Artifact) -> dict[str, Any]:
    """Return the SHA-256 and size of every file of weights."""
    return {name: told for name, told in artifact.manifest["files"].items() if name.endswith(".safetensors")}


def killed_after(step: int, seconds: float, arguments: list[str]) -> int:
    """Start the training and kill it so long after a step, or one after that; returns how it ended."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", CHILD, *arguments]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) >= step:
                break
        time.sleep(seconds)
        child.send_signal(signal.SIGKILL)
        child.stdout.read()
        return child.wait()


def told_by(states: Path) -> dict[str, Any]:
    """Return the progress of the last whole state."""
    last = max(states.glob("step-*"), key=lambda path: int(path.name[5:]))
    assert (last / "negatives.safetensors").is_file()
    told: dict[str, Any] = json.loads((last / "state.json").read_text())
    return told


def test_a_training_killed_at_twenty_random_moments_ends_with_the_weights_of_the_uninterrupted_one(
    coloured_things: Path, tmp_path: Path
) -> None:
    whole = train(coloured_things, tmp_path / "whole", TOWERS, configured(3600), seed=0, record=NoRecorder())
    training = json.loads((whole.path / "training.json").read_text())
    assert len(training["collapses"]) == 1
    config, target = configured(0), tmp_path / "killed"
    arguments = [str(coloured_things), str(target), TOWERS.model_dump_json(), config.model_dump_json()]
    moments, states = random.Random(0), tmp_path / "killed.progress"
    steps = sorted(moments.sample(range(2, training["total"] - 5), KILLS))
    writing, phases = 0, set()
    for step in steps:
        assert killed_after(step, moments.uniform(0, 0.15), arguments) == -signal.SIGKILL
        writing += any(states.glob(".*"))
        told = told_by(states)
        phases.add((told["stage"], told["retries"], told["recovering"]))
    assert phases == {(0, 0, False), (0, 1, True), (0, 1, False), (1, 0, False)}
    assert writing > 0, "no kill came while a state was being written; kill more often"
    resumed = train(coloured_things, target, TOWERS, config, seed=0, record=NoRecorder())
    assert weights(resumed) == weights(whole)
    assert json.loads((resumed.path / "training.json").read_text())["curve"] == training["curve"]
