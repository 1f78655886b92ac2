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
    def event(self, name, details):
        print(name, flush=True)

towers, config = TowersConfig(**json.loads(sys.argv[3])), TrainConfig(**json.loads(sys.argv[4]))
train(Path(sys.argv[1]), Path(sys.argv[2]), towers, config, seed=0, record=Telling())
"""
WORDS = {"width": 16, "word_buckets": 512, "ngram_buckets": 1, "ngram_max": 0}
DEEP = {"kind": "features", "text": WORDS, "straight": False, "hidden": [64, 64, 64]}
TOWERS = TowersConfig.model_validate(
    {"dimension": 16, "learn_temperature": True, "query": DEEP, "document": DEEP}
)
COLD = {"name": "cold", "batch_size": 256, "steps": 60, "learning_rate": 0.02, "decay": "none"}
WIDE = {"name": "wide", "batch_size": 300, "steps": 40, "unclicked_per_query": 1, "enter": None}


def configured(checkpoint_seconds: float) -> TrainConfig:
    """A hinge that collapses and comes back, then cross-entropy with validation."""
    return TrainConfig.model_validate(
        {
            "stages": [COLD | {"loss": {"kind": "hinge", "margin": 0.2}}, WIDE],
            "allow_cold_hinge": True,
            "guard": {"steps": 5, "recovery_steps": 20},
            "early_stopping": {"metric": "nDCG@10", "every": 10, "patience": 50},
            "checkpoint_seconds": checkpoint_seconds,
            "num_threads": 1,
            "device": "cpu",
        }
    )


def weights(artifact: Artifact) -> dict[str, Any]:
    """Return the SHA-256 and size of every file of weights."""
    return {name: told for name, told in artifact.manifest["files"].items() if name.endswith(".safetensors")}


def killed_after(seconds: float, arguments: list[str]) -> tuple[int, bool]:
    """Start the training and kill it so long after it has its data; how it ended, and if it was writing."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", CHILD, *arguments]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith(("prepared", "resumed")):
                break
        time.sleep(seconds)
        child.send_signal(signal.SIGKILL)
        child.stdout.read()
        code = child.wait()
    states = Path(f"{arguments[1]}.progress")
    return code, any(states.glob(".*"))


def test_a_training_killed_at_twenty_random_moments_ends_with_the_weights_of_the_uninterrupted_one(
    coloured_things: Path, tmp_path: Path
) -> None:
    whole = train(coloured_things, tmp_path / "whole", TOWERS, configured(3600), seed=0, record=NoRecorder())
    assert json.loads((whole.path / "training.json").read_text())["collapses"]
    config, target = configured(0), tmp_path / "killed"
    arguments = [str(coloured_things), str(target), TOWERS.model_dump_json(), config.model_dump_json()]
    moments, kills, writing = random.Random(0), 0, 0
    for _ in range(KILLS):
        code, was_writing = killed_after(moments.uniform(0, 0.6), arguments)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills, writing = kills + 1, writing + was_writing
    assert kills == KILLS, f"the training ended after {kills} kills; make it longer"
    assert writing > 0, "no kill came while a state was being written; kill more often"
    resumed = train(coloured_things, target, TOWERS, config, seed=0, record=NoRecorder())
    assert weights(resumed) == weights(whole)
