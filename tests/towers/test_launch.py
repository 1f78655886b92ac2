"""Trainings on two ranks, each started as `twotower train` starts them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from features.artifact import Artifact
from features.errors import ConfigError, TrainingError
from towers.launch import train_on_ranks
from towers.record import ListRecorder, NoRecorder
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
SOURCES = {
    "uniform": {"per_batch": 9},
    "mined": {"per_query": 2, "pool": 5, "refresh_every": 4, "score_share": None},
    "queue": {"size": 150, "momentum": 0.9},
}
STAGE = {"encode_rows": 16, "unclicked_per_query": 1, "learning_rate": 0.01, "decay": "none", "steps": 6}
STAGES = [
    STAGE | {"name": "small", "batch_size": 32, "negatives": SOURCES},
    STAGE | {"name": "large", "batch_size": 64, "tiled": True, "negatives": SOURCES},
]


def configured(**changes: Any) -> TrainConfig:
    plain = {"stages": STAGES, "early_stopping": {"metric": "R@10", "every": 4}, "log_every": 1}
    return TrainConfig.model_validate(
        plain | {"checkpoint_seconds": 0, "num_threads": 1, "device": "cpu"} | changes
    )


def weights(artifact: Artifact) -> dict[str, torch.Tensor]:
    files = sorted((artifact.path / "two_tower").rglob("*.safetensors"))
    return {f"{file.parent.name}/{name}": value for file in files for name, value in load_file(file).items()}


def steps_of(record: ListRecorder) -> list[tuple[str, int]]:
    """Return what was measured when, except whose negative was hardest: equal ones tie, rounding decides."""
    return [(name, step) for name, _, step in record.metrics if not name.startswith("train/hardest")]


def test_two_ranks_with_every_source_of_negatives_train_as_one_and_tell_the_same(
    coloured_things: Path, tmp_path: Path
) -> None:
    """Uniform, mined and queued negatives, gradient caching with dropout, tiles, validation, checkpoints."""
    alone, together = ListRecorder(), ListRecorder()
    one = train(coloured_things, tmp_path / "one", TOWERS, configured(), seed=0, record=alone)
    two = train_on_ranks(
        coloured_things, tmp_path / "two", TOWERS, configured(ranks=2), seed=0, record=together
    )
    assert [name for name, _ in together.events] == [name for name, _ in alone.events]
    assert [name for name, _ in together.events].count("mined") == 4
    assert steps_of(together) == steps_of(alone)
    told, expected = (
        json.loads((artifact.path / "training.json").read_text(encoding="utf-8")) for artifact in (two, one)
    )
    assert told["settings"]["ranks"] == 2
    for a, b in zip(expected["curve"], told["curve"], strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
        assert b["gradient_norm"] == pytest.approx(a["gradient_norm"], rel=1e-3)
    found = weights(two)
    assert found.keys() == weights(one).keys()
    for name, value in weights(one).items():
        assert torch.allclose(found[name], value, rtol=1e-4, atol=1e-5), name
    assert not (tmp_path / "two.progress").exists()


def test_what_a_rank_raises_is_raised_here(coloured_things: Path, tmp_path: Path) -> None:
    config = configured(ranks=2, stages=[STAGES[0] | {"batch_size": 5000}])
    with pytest.raises(ConfigError, match="stage 'small': batch_size is 5000 but there are only 400"):
        train_on_ranks(coloured_things, tmp_path / "x", TOWERS, config, seed=0, record=NoRecorder())


@pytest.mark.crash
def test_a_defect_in_a_rank_is_one_line_that_names_the_file_with_the_traceback(
    coloured_things: Path, tmp_path: Path
) -> None:
    """Somebody put something among the states."""
    (tmp_path / "x.progress" / "step-one").mkdir(parents=True)
    with pytest.raises(
        TrainingError, match=r"a rank .* ended with \w+Error: .*ranks\.log says where"
    ) as told:
        train_on_ranks(
            coloured_things, tmp_path / "x", TOWERS, configured(ranks=2), seed=0, record=NoRecorder()
        )
    assert "\n" not in str(told.value)
    assert "Traceback" in (tmp_path / "x.progress" / "ranks.log").read_text()


def test_ranks_that_nobody_started_are_refused(coloured_things: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.ranks is 2, but processes that train: 1"):
        train(coloured_things, tmp_path / "x", TOWERS, configured(ranks=2), seed=0, record=NoRecorder())


CHILD = """
import json, sys
from pathlib import Path
from towers.launch import train_on_ranks
from towers.record import NoRecorder
from towers.schedule import TrainConfig
from towers.two_tower import TowersConfig

class Telling(NoRecorder):
    def metric(self, name, value, step):
        print(step, flush=True)

towers, config = TowersConfig(**json.loads(sys.argv[3])), TrainConfig(**json.loads(sys.argv[4]))
train_on_ranks(Path(sys.argv[1]), Path(sys.argv[2]), towers, config, seed=0, record=Telling())
"""


def processes_of(job: Path) -> list[int]:
    """Return the ids of the processes whose command line names a job."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(job).encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:  # it ended meanwhile
            continue
    return found


@pytest.mark.crash
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
def test_ranks_end_with_the_process_that_started_them_and_the_next_one_goes_on(
    coloured_things: Path, tmp_path: Path
) -> None:
    config, target = configured(ranks=2), tmp_path / "x"
    arguments = [str(coloured_things), str(target), TOWERS.model_dump_json(), config.model_dump_json()]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", CHILD, *arguments]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        next(line for line in child.stdout if int(line) >= 5)
        job = tmp_path / "x.progress" / "job.json"
        assert len(processes_of(job)) == 3
        child.send_signal(signal.SIGKILL)
        child.stdout.read()
    deadline = time.monotonic() + 30
    while processes_of(job) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_of(job) == []
    record = ListRecorder()
    resumed = train_on_ranks(coloured_things, target, TOWERS, config, seed=0, record=record)
    assert "resumed" in dict(record.events)
    whole = train_on_ranks(coloured_things, tmp_path / "whole", TOWERS, config, seed=0, record=NoRecorder())
    assert resumed.digest == whole.digest


class Interrupter(NoRecorder):
    """Stands for Ctrl-C."""

    def metric(self, name: str, value: float, step: int) -> None:
        if step >= 3:
            raise KeyboardInterrupt


@pytest.mark.crash
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
def test_no_rank_is_left_after_an_interrupt(coloured_things: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_on_ranks(
            coloured_things, tmp_path / "x", TOWERS, configured(ranks=2), seed=0, record=Interrupter()
        )
    assert processes_of(tmp_path / "x.progress" / "job.json") == []
