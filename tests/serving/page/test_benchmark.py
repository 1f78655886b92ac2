"""The benchmark of the page runs, its store included."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "page.py"


@pytest.mark.slow
def test_the_benchmark_makes_its_store_and_times_every_query(browser, tmp_path):
    core = str(min(os.sched_getaffinity(0)))
    target = tmp_path / "result.json"
    asked = ["--make", "500", "--queries", "4", "--cores", core, "--json", target]
    done = subprocess.run(
        [sys.executable, BENCHMARK, tmp_path / "store", *asked], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    figures = json.loads(target.read_text(encoding="utf-8"))
    assert (figures["documents"], figures["queries"]) == (500, 4)
    for name in ("enter_to_painted_ms", "last_letter_to_painted_ms", "requests_ms"):
        assert 0 < figures[name]["p50"] <= figures[name]["p100"]
    pause = 60  # that the page waits for after a letter
    assert figures["last_letter_to_painted_ms"]["p50"] > pause
