"""Promotions and overload against a real server process, by the benchmarks themselves, shorter."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from serving.store import Store

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(script: str, *arguments: object) -> dict:
    """Run a benchmark and return its figures."""
    command = [sys.executable, str(BENCHMARKS / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1_700)
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-2_000:]
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_a_hundred_promotions_under_load_fail_no_request_mix_no_reply_and_leak_nothing(tmp_path, make):
    make.shop(tmp_path), make.shop(tmp_path, seed=9)
    Store(tmp_path).set_champion(Store(tmp_path).bundle_ids()[0], "first")
    figures = run("soak.py", tmp_path, "--promotions", 100, "--swap-seconds", 0.05, "--callers", 2)
    assert figures["promotions"] == 100
    assert set(figures["statuses"]) == {"200"}
    assert figures["connection_errors"] == figures["mixed_replies"] == figures["errors_counted"] == 0
    assert len(figures["replies_by_bundle"]) == 2
    assert figures["memory_growth"] <= 0.05


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_three_times_the_load_is_refused_with_retry_after_and_leaves_the_rest_in_time(tmp_path, make):
    Store(tmp_path).set_champion(make.shop(tmp_path).path.name, "first")
    figures = run("overload.py", tmp_path, "--seconds", 10)
    assert figures["3x"]["refused"] > 0
    assert (
        figures["3x"]["refused_without_retry_after"] == figures["3x"]["other"] == figures["3x"]["lost"] == 0
    )
    assert figures["3x"]["answered_per_s"] >= 0.4 * figures["saturation"]
    assert figures["recovery_seconds"] is not None
    assert figures["recovery_seconds"] <= 5
    assert figures["memory_mb"]["most"] <= 1.1 * figures["memory_mb"]["before"]
