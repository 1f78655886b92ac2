"""A run that was killed goes on where it was, and ends where it would have ended."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from pipelines.workspace import STAGES

pytestmark = pytest.mark.crash

LONGER = ["--set", "train.stages.0.steps=60", "--set", "train.stages.1.steps=60"]


@pytest.fixture
def start(prefect_server):
    """Return a function that starts `twotower run` as its own process, with the test's Prefect server."""
    from prefect.settings import get_current_settings

    environment = {**os.environ, "PREFECT_API_URL": get_current_settings().api.url}

    def begin(config, store):
        arguments = ["run", str(config), "--set", f"store={store}", *LONGER, "--json"]
        return subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )

    return begin


def finish(process):
    """Wait for a run and return its summary, digests by stage, and what it said."""
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    summary = json.loads(stdout.splitlines()[-1])
    return summary, {stage["stage"]: stage["digest"] for stage in summary["stages"]}, stderr


def kill_in_training(process, store, step):
    """Send SIGKILL once a step of the training was saved, and return which was."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        saved = [int(path.name[5:]) for path in store.glob("checkpoints/*.progress/step-*")]
        if saved and max(saved) >= step:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.001)
    process.communicate(timeout=30)
    return process.returncode, max(saved, default=0)


def test_a_run_killed_twice_in_training_equals_an_uninterrupted_one(start, shop_config, tmp_path):
    whole, expected, _ = finish(start(shop_config, tmp_path / "whole"))
    store = tmp_path / "killed"
    for step in (1, 80):  # in the first stage of the training, and in the second
        code, saved = kill_in_training(start(shop_config, store), store, step)
        assert code == -signal.SIGKILL
        assert step <= saved < 120
        assert not [path for path in (store / "checkpoints").iterdir() if path.suffix != ".progress"]
    summary, digests, said = finish(start(shop_config, store))
    assert "resumed" in said
    made = STAGES[:-1]  # a promotion depends on which bundle was the champion
    assert {name: digests[name] for name in made} == {name: expected[name] for name in made}
    assert summary["evaluation"] == whole["evaluation"]
    assert [stage["stage"] for stage in summary["stages"] if stage["cached"]] == ["ingest", "examples"]
    again, same, said = finish(start(shop_config, store))
    assert again["all_cached"]
    assert {name: same[name] for name in made} == {name: digests[name] for name in made}
    assert "stage started" not in said
