"""`twotower train` with `train.ranks`: torchrun's ranks behind the usual command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipelines.config import load_config
from towers.train import NoRecorder, train

pytestmark = pytest.mark.slow


@pytest.fixture
def twotower(prefect_server, shop_config):
    """Return a function that runs `twotower train` as its own process, with the test's Prefect server."""
    from prefect.settings import get_current_settings

    environment = {**os.environ, "PREFECT_API_URL": get_current_settings().api.url}

    def run(*changes):
        command = [sys.executable, "-m", "pipelines.cli", "train", str(shop_config), "--json"]
        for change in changes:
            command += ["--set", change]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=240, check=False
        )

    return run


SAME = ["train.device=cpu", "train.stages.0.encode_rows=40", "train.stages.1.encode_rows=40"]
"""With whole batches dropout would depend on the number of ranks."""


def weights(path):
    files = sorted((Path(path) / "two_tower").rglob("*.safetensors"))
    return {f"{file.parent.name}/{name}": value for file in files for name, value in load_file(file).items()}


def test_two_ranks_of_the_command_line_train_what_one_process_trains(twotower, shop_config, tmp_path):
    done = twotower("train.ranks=2", *SAME)
    assert done.returncode == 0, done.stderr
    assert "stage started: name wide" in done.stderr
    assert "Traceback" not in done.stderr
    stages = {stage["stage"]: stage for stage in json.loads(done.stdout.splitlines()[-1])["stages"]}
    checkpoint = Path(stages["train"]["path"])
    config = load_config(shop_config, SAME)
    one = train(
        Path(stages["examples"]["path"]),
        tmp_path / "one",
        config.towers,
        config.train,
        seed=config.seed,
        record=NoRecorder(),
    )
    told, expected = (json.loads((path / "training.json").read_text()) for path in (checkpoint, one.path))
    assert told["settings"]["ranks"] == 2
    assert [point["loss"] for point in told["curve"]] == pytest.approx(
        [point["loss"] for point in expected["curve"]], rel=1e-4
    )
    found = weights(checkpoint)
    for name, value in weights(one.path).items():
        assert torch.allclose(found[name], value, rtol=1e-3, atol=1e-4), name
    assert not list(checkpoint.parent.glob("*.progress"))


def test_what_a_rank_refuses_is_one_line_with_its_exit_code(twotower):
    done = twotower("train.ranks=2", "train.device=cpu", "train.stages.1.batch_size=1000000")
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("twotower:")]
    assert "stage 'wide': batch_size is 1000000 but there are only" in line
    assert "Traceback" not in done.stderr
