import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from towers.distributed import Ranks

HERE = Path(__file__).parent
ROOT = Path(__file__).parents[2]


def loaded(name: str) -> ModuleType:
    """Return a worker as a module, so that what a rank does can be done in this process."""
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def torchrun(ranks: int, name: str, *arguments: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [*command, str(HERE / f"{name}.py"), *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("ranks", [2, 3])
def test_several_ranks_take_the_step_of_one(ranks: int, coloured_things: Path, tmp_path: Path) -> None:
    """Loss, gradient norm and every gradient, on every rank; parts are uneven and columns more than rows."""
    worker = loaded("ranks_worker")
    (tmp_path / "out").mkdir()
    torchrun(ranks, "ranks_worker", coloured_things, tmp_path / "out")
    for case in worker.CASES:
        numbers, gradients = worker.one_step(coloured_things, case, Ranks())
        for rank in range(ranks):
            found = json.loads((tmp_path / "out" / f"{case}-{rank}.json").read_text(encoding="utf-8"))
            assert found["loss"] == pytest.approx(numbers["loss"], rel=1e-6)
            assert found["gradient_norm"] == pytest.approx(numbers["gradient_norm"], rel=1e-5)
            assert found["all_reduces"] == 2  # gradients of the vectors, gradients of the weights
            assert found["agreed"] == 0
            weights = load_file(tmp_path / "out" / f"{case}-{rank}.safetensors")
            assert weights.keys() == gradients.keys()
            for name, gradient in gradients.items():
                assert torch.allclose(weights[name], gradient, rtol=1e-4, atol=1e-6), (case, name)


def test_tiles_change_nothing_but_rounding(coloured_things: Path) -> None:
    worker = loaded("ranks_worker")
    plain, plain_gradients = worker.one_step(coloured_things, "plain", Ranks())
    tiled, tiled_gradients = worker.one_step(coloured_things, "tiled", Ranks())
    assert tiled["loss"] == pytest.approx(plain["loss"], rel=1e-6)
    for name, gradient in plain_gradients.items():
        assert torch.allclose(tiled_gradients[name], gradient, rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("items", [0, 1, 2, 3, 7])
def test_every_item_has_one_rank_and_ranks_differ_by_one_at_most(items: int) -> None:
    shares = [Ranks(rank, 3).share(range(items)) for rank in range(3)]
    assert [item for share in shares for item in share] == list(range(items))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_single_process_is_one_rank() -> None:
    assert Ranks.of_group() == Ranks(0, 1)
