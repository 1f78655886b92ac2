import pytest
import torch

from towers.exclusions import Exclusions


@pytest.fixture(params=[(1, 1), (5, 5), (7, 20)])
def mask(request: pytest.FixtureRequest) -> torch.Tensor:
    rows, width = request.param
    mask = torch.rand(rows, width, generator=torch.Generator().manual_seed(rows)) < 0.4
    mask.diagonal().fill_(False)
    mask[rows // 2] = False
    return mask


def test_a_mask_becomes_ascending_lists_and_comes_back(mask: torch.Tensor) -> None:
    exclusions = Exclusions.from_mask(mask)
    for row, (first, end) in enumerate(zip(exclusions.offsets, exclusions.offsets[1:], strict=False)):
        assert exclusions.columns[first:end].tolist() == [
            column for column in range(mask.shape[1]) if mask[row, column]
        ]
    assert torch.equal(exclusions.dense(), mask)
    assert exclusions.counts.tolist() == mask.sum(1).tolist()


def test_pairs_may_come_in_any_order_repeated_and_with_the_diagonal(mask: torch.Tensor) -> None:
    row, column = mask.nonzero(as_tuple=True)
    diagonal = torch.arange(len(mask))
    row, column = torch.cat([row, diagonal, row]).flip(0), torch.cat([column, diagonal, column]).flip(0)
    exclusions = Exclusions.from_pairs(row, column, *mask.shape)
    assert torch.equal(exclusions.dense(), mask)
    assert torch.equal(exclusions.columns, Exclusions.from_mask(mask).columns)


def test_a_block_holds_the_pairs_of_its_rows(mask: torch.Tensor) -> None:
    exclusions = Exclusions.from_mask(mask)
    for first in range(len(mask) + 1):
        for end in range(first, len(mask) + 1):
            row, column = exclusions.block(first, end)
            tile = torch.zeros(end - first, mask.shape[1], dtype=torch.bool)
            tile[row, column] = True
            assert torch.equal(tile, mask[first:end])


def test_nothing_excluded_is_an_empty_mask() -> None:
    assert torch.equal(Exclusions.none(3, 8).dense(), torch.zeros(3, 8, dtype=torch.bool))


def test_fewer_columns_than_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="width must be at least the number of rows; 8 < 9"):
        Exclusions.none(9, 8)
