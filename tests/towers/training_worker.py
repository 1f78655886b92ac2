"""A training that torchrun starts on several ranks, or the test in its own process."""

import json
import os
import sys
from pathlib import Path

import torch

from towers.record import ListRecorder
from towers.schedule import TrainConfig
from towers.train import train
from towers.two_tower import TowersConfig

TOWER = {
    "kind": "features",
    "text": {"width": 8, "word_buckets": 256, "ngram_buckets": 1, "ngram_max": 0},
    "hidden": [16],
    "dropout": 0.2,
}
TOWERS = TowersConfig.model_validate({"dimension": 8, "query": TOWER, "document": TOWER})
STAGE = {"encode_rows": 16, "unclicked_per_query": 1, "learning_rate": 0.01, "decay": "none"}
TRAIN = TrainConfig.model_validate(
    {
        "stages": [
            STAGE | {"name": "small", "batch_size": 32, "steps": 6},
            STAGE
            | {"name": "large", "batch_size": 64, "steps": 6, "unclicked_scope": "batch"}
            | {"tiled": True},
        ],
        "early_stopping": {"metric": "R@10", "every": 4},
        "log_every": 1,
        "checkpoint_seconds": 0,
        "num_threads": 1,
        "device": "cpu",
    }
)


def run(examples: Path, target: Path) -> list[str]:
    """Train and return the names of the events that this rank recorded."""
    record = ListRecorder()
    train(examples, target, TOWERS, TRAIN, seed=0, record=record)
    return [name for name, _ in record.events]


if __name__ == "__main__":
    torch.set_num_threads(1)
    examples, target, out = map(Path, sys.argv[1:])
    (out / f"{os.environ['RANK']}.json").write_text(json.dumps(run(examples, target)), encoding="utf-8")
