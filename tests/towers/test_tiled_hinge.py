import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from towers.exclusions import Exclusions
from towers.losses import Hinge, HingeConfig
from towers.tiled_hinge import tiled_hinge
from towers.tiles import TilingConfig

TILING = TilingConfig(rows=8, columns=8)


def embeddings(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(11)
    query = normalize(torch.randn(rows, 8, generator=generator, dtype=torch.float64))
    return query, normalize(torch.randn(columns, 8, generator=generator, dtype=torch.float64))


def test_a_tie_gives_one_of_the_tied_what_the_plain_loss_shares_among_them() -> None:
    query, document = embeddings(20, 30)
    document[25] = document[3]
    document[26] = document[3]
    query[0] = document[3]  # its hardest negative stands in three columns
    query.requires_grad_()
    document.requires_grad_()
    exclusions = Exclusions.none(20, 30)
    config = HingeConfig(margin=2.0, column_weight=0)
    loss = tiled_hinge(config, query, document, exclusions, tiling=TILING)
    expected = Hinge(config)(query @ document.T, exclusions.dense())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    found = torch.autograd.grad(loss, (query, document))
    shared = torch.autograd.grad(expected, (query, document))
    torch.testing.assert_close(found[0], shared[0])
    tied = [3, 25, 26]
    torch.testing.assert_close(found[1][tied].sum(0), shared[1][tied].sum(0))
    assert not torch.allclose(found[1][tied], shared[1][tied])
    rest = [place for place in range(30) if place not in tied]
    torch.testing.assert_close(found[1][rest], shared[1][rest])


def test_equal_columns_of_one_document_pass_the_same_gradient_to_it_as_in_the_plain_loss() -> None:
    query, distinct = embeddings(20, 12)
    place = torch.arange(30) % 12
    mask = place[:20, None] == place[None, :]
    mask.fill_diagonal_(False)
    config = HingeConfig(margin=2.0, column_weight=0)
    distinct.requires_grad_()
    exclusions = Exclusions.from_mask(mask)
    loss = tiled_hinge(config, query, distinct[place], exclusions, tiling=TILING)
    expected = Hinge(config)(query @ distinct[place].T, mask)
    found, shared = (torch.autograd.grad(value, distinct)[0] for value in (loss, expected))
    torch.testing.assert_close(found, shared)


def test_all_equal_embeddings_cost_the_margin() -> None:
    query = normalize(torch.ones(20, 4)).requires_grad_()
    document = normalize(torch.ones(30, 4)).requires_grad_()
    loss = tiled_hinge(HingeConfig(margin=0.3), query, document, Exclusions.none(20, 30), tiling=TILING)
    assert loss.item() == pytest.approx(0.3)
    assert all(torch.isfinite(part).all() for part in torch.autograd.grad(loss, (query, document)))


def test_an_excluded_pair_is_not_the_hardest_even_when_it_scores_highest() -> None:
    query, document = embeddings(20, 30)
    document[25] = query[4] * 5
    exclusions = Exclusions.from_pairs(torch.arange(20), torch.full((20,), 25), 20, 30)
    document.requires_grad_()
    loss = tiled_hinge(HingeConfig(margin=2.0), query, document, exclusions, tiling=TILING)
    gradient = torch.autograd.grad(loss, document)[0]
    assert torch.equal(gradient[25], torch.zeros(8, dtype=torch.float64))
    assert gradient.norm() > 0


def test_rows_that_keep_the_margin_have_no_gradient() -> None:
    document = torch.eye(16).requires_grad_()
    query = torch.eye(16).requires_grad_()
    loss = tiled_hinge(HingeConfig(margin=0.5), query, document, Exclusions.none(16, 16), tiling=TILING)
    assert loss.item() == 0
    assert all(not part.any() for part in torch.autograd.grad(loss, (query, document)))
