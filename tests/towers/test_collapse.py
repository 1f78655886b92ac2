import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from towers.collapse import alignment, mean_gap, mean_length, spread, uniformity
from towers.exclusions import Exclusions
from towers.hardest import hardest_negatives


def vectors(rows: int, dimension: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, dimension, generator=torch.Generator().manual_seed(seed))


def test_alignment_and_uniformity_are_the_formulas_of_wang_and_isola() -> None:
    query, positive = vectors(7, 5), vectors(7, 5, 1)
    a, b = normalize(query, dim=1), normalize(positive, dim=1)
    distances = [sum((x - y) ** 2 for x, y in zip(p, q, strict=True)) for p, q in zip(a, b, strict=True)]
    assert alignment(query, positive) == pytest.approx(float(sum(distances)) / 7, rel=1e-5)
    pairs = [float(torch.exp(-2 * (a[i] - a[j]).square().sum())) for i in range(7) for j in range(i)]
    assert uniformity(query) == pytest.approx(math.log(sum(pairs) / len(pairs)), rel=1e-5)


def test_a_collapsed_model_is_perfectly_aligned_and_not_at_all_uniform() -> None:
    same = vectors(1, 8).expand(20, 8)
    assert (alignment(same, same), uniformity(same), spread(same)) == pytest.approx((0, 0, 0), abs=1e-12)
    spread_out = vectors(2000, 64)
    assert uniformity(spread_out) < -3.5
    assert spread(normalize(spread_out, dim=1)) == pytest.approx(1 / 8, rel=0.02)
    assert uniformity(vectors(1, 8)) == 0.0


def test_the_gap_is_the_mean_over_rows_that_have_a_negative() -> None:
    query, document = vectors(4, 3), vectors(5, 3, 1)
    mask = torch.zeros(4, 5, dtype=torch.bool)
    mask[0, 3] = True
    mask[2, [0, 1, 3, 4]] = True  # row 2 has none left
    scores = query @ document.T
    gaps = [
        scores[i, i] - max(scores[i, j] for j in range(5) if j != i and not mask[i, j]) for i in (0, 1, 3)
    ]
    measured = mean_gap(hardest_negatives(query, document, Exclusions.from_mask(mask)))
    assert measured == pytest.approx(float(sum(gaps)) / 3, rel=1e-5)
    nothing = Exclusions.from_mask(torch.ones(4, 5, dtype=torch.bool))
    assert mean_gap(hardest_negatives(query, document, nothing)) is None


def test_the_mean_length_is_one_under_cosine() -> None:
    assert mean_length(normalize(vectors(9, 4), dim=1)) == pytest.approx(1)
