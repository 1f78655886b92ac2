import os
import subprocess
import sys

import pytest

from pipelines.environment import usable_cores


@pytest.mark.parametrize(("quota", "cores"), [("100000 100000", 1), ("50000 100000", 1)])
def test_a_container_quota_limits_the_cores(tmp_path, quota, cores):
    (tmp_path / "cpu.max").write_text(quota)
    assert usable_cores(tmp_path / "cpu.max") == cores


@pytest.mark.parametrize("quota", ["max 100000", "9900000 100000", ""])
def test_without_a_smaller_quota_the_affinity_counts(tmp_path, quota):
    (tmp_path / "cpu.max").write_text(quota)
    assert usable_cores(tmp_path / "cpu.max") == len(os.sched_getaffinity(0))


def imported(variable, **environment):
    inherited = {key: value for key, value in os.environ.items() if key != variable}
    program = f"import os, pipelines; print(os.environ['{variable}'])"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_importing_pipelines_makes_openmp_threads_wait_passively():
    assert imported("OMP_WAIT_POLICY") == "PASSIVE"


def test_what_the_user_has_set_stays():
    assert imported("OMP_WAIT_POLICY", OMP_WAIT_POLICY="ACTIVE") == "ACTIVE"
