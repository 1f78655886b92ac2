import pytest
import torch

from towers.exclusions import Exclusions
from towers.hardest import hardest_negatives
from towers.losses import OwnScores
from towers.tiles import TilingConfig


@pytest.mark.parametrize("tiling", [None, TilingConfig(rows=1, columns=1), TilingConfig(rows=4, columns=5)])
def test_the_hardest_allowed_negative_is_found_in_tiles_of_any_size(tiling: TilingConfig | None) -> None:
    generator = torch.Generator().manual_seed(0)
    query, document = (torch.randn(rows, 8, generator=generator) for rows in (9, 14))
    mask = torch.rand(9, 14, generator=generator) < 0.4
    mask.diagonal().fill_(False)
    own = torch.randn(9, 3, generator=generator) * 3
    own_mask = torch.rand(9, 3, generator=generator) < 0.3
    exclusions = Exclusions.from_mask(mask)
    found = hardest_negatives(query, document, exclusions, OwnScores(own, own_mask), tiling)
    for i in range(9):
        negatives = [((query[i] @ document[j]).item(), j) for j in range(14) if j != i and not mask[i, j]]
        negatives += [(own[i, u].item(), 14 + u) for u in range(3) if not own_mask[i, u]]
        score, column = max(negatives)
        assert found.negative_B[i].item() == pytest.approx(score, rel=1e-5)
        assert found.column_B[i] == column
        assert found.positive_B[i].item() == pytest.approx((query[i] @ document[i]).item(), rel=1e-5)
    assert (found.column_B >= 14).any()
    assert (found.column_B < 14).any()


def test_a_row_without_any_negative_has_none() -> None:
    found = hardest_negatives(torch.ones(1, 2), torch.ones(1, 2), Exclusions.none(1, 1))
    assert found.negative_B.tolist() == [-torch.inf]
