"""What the walk itself must hold: its memory, its precision, its refusals."""

import subprocess
import sys

import pytest
import torch
from torch.nn.functional import normalize

from features.errors import ConfigError
from towers.exclusions import Exclusions
from towers.losses import CrossEntropyConfig, HingeConfig, LossConfig, SigmoidConfig
from towers.tiled import tiled_loss
from towers.tiles import Tiles, TilingConfig, products_in

NATIVE = torch.cpu.get_capabilities().get("avx512_bf16") or torch.cpu.get_capabilities().get("amx_bf16")
PEAK = """
import resource, sys
import torch
from towers.exclusions import Exclusions
from towers.losses import CrossEntropyConfig, HingeConfig, SigmoidConfig
from towers.tiled import tiled_loss

torch.set_num_threads(1)
configs = {"cross_entropy": CrossEntropyConfig(), "hinge": HingeConfig(), "sigmoid": SigmoidConfig()}

def train(rows):
    query, document = (torch.nn.functional.normalize(torch.randn(rows, 8)).requires_grad_() for _ in "qd")
    loss = tiled_loss(configs[sys.argv[1]], query, document, Exclusions.none(rows, rows), temperature=0.1)
    torch.autograd.backward(loss)

train(64)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
train(int(sys.argv[2]))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_tiles_cover_every_pair_once() -> None:
    query, document = torch.randn(5, 3), torch.randn(11, 3)
    tiles = Tiles(query, document, Exclusions.none(5, 11), TilingConfig(rows=2, columns=4))
    whole = torch.full((5, 11), torch.nan)
    for rows in tiles.row_blocks():
        for tile in tiles.of(rows, query[rows]):
            assert whole[rows, tile.columns].isnan().all()
            whole[rows, tile.columns] = tile.score
    torch.testing.assert_close(whole, query @ document.T)


def test_every_excluded_pair_and_the_diagonal_are_excluded_and_nothing_else() -> None:
    mask = torch.rand(9, 13, generator=torch.Generator().manual_seed(3)) < 0.3
    mask.diagonal().fill_(False)
    query, document = torch.ones(9, 2), torch.ones(13, 2)
    tiles = Tiles(query, document, Exclusions.from_mask(mask), TilingConfig(rows=4, columns=5))
    found = torch.zeros(9, 13).bool()
    for rows in tiles.row_blocks():
        for tile in tiles.of(rows, query[rows]):
            found[rows, tile.columns] = tile.exclude(-7.0) == -7.0
    assert torch.equal(found, mask.fill_diagonal_(True))


@pytest.mark.parametrize("name", ["cross_entropy", "hinge", "sigmoid"])
def test_memory_does_not_grow_with_the_square_of_the_batch(name: str) -> None:
    """At 12,000 rows the matrix alone would take 549 MiB."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, name, "12000"], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 48


@pytest.mark.skipif(not NATIVE, reason="this processor has no bfloat16 products")
@pytest.mark.parametrize("config", [CrossEntropyConfig(), HingeConfig(margin=0.9), SigmoidConfig()], ids=str)
def test_bfloat16_is_near_float32(config: LossConfig) -> None:
    """2⁻⁹ of each factor is lost, which moves a logit of unit vectors at t = 0.07 by about 0.01.

    A loss's value then moves by less than 0.2%, a gradient by less than 5%; the hinge's by less than 10%,
    since some rows find another hardest negative, of nearly the same score.
    """
    generator = torch.Generator().manual_seed(5)
    query = normalize(torch.randn(300, 64, generator=generator)).requires_grad_()
    document = normalize(query.detach() + 0.1 * torch.randn(300, 64, generator=generator)).requires_grad_()
    values, gradients = [], []
    for precision in ("float32", "bfloat16"):
        tiling = TilingConfig(rows=128, columns=128, precision=precision)
        exclusions = Exclusions.none(300, 300)
        loss = tiled_loss(config, query, document, exclusions, temperature=0.07, tiling=tiling)
        values.append(loss.item())
        gradients.append(torch.cat(torch.autograd.grad(loss, (query, document))))
    assert values[0] != values[1]
    assert values[1] == pytest.approx(values[0], rel=2e-3)
    assert (gradients[0] - gradients[1]).norm() / gradients[0].norm() < (
        0.1 if isinstance(config, HingeConfig) else 0.05
    )


@pytest.mark.skipif(not NATIVE, reason="this processor has no bfloat16 products")
def test_only_products_inside_are_in_bfloat16() -> None:
    left, right = torch.randn(64, 64), torch.randn(64, 64)
    exact = left @ right
    with products_in("bfloat16", torch.device("cpu")):
        assert not torch.equal(left @ right, exact)
    assert torch.equal(left @ right, exact)
    with pytest.raises(KeyError), products_in("bfloat16", torch.device("cpu")):
        raise KeyError
    assert torch.equal(left @ right, exact)


def test_bfloat16_is_refused_where_there_are_no_instructions_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": "an old one"})
    query = torch.randn(4, 3)
    tiling = TilingConfig(precision="bfloat16")
    with pytest.raises(ConfigError, match="an old one: set precision to float32"):
        tiled_loss(HingeConfig(), query, query, Exclusions.none(4, 4), temperature=0.1, tiling=tiling)
