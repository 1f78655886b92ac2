import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from towers.exclusions import Exclusions
from towers.guard import GuardConfig, Look, relative_spread, signs_of, watched
from towers.losses import (
    CrossEntropyConfig,
    HingeConfig,
    NoiseContrastiveConfig,
    PairConfig,
    SigmoidConfig,
    SingleLossConfig,
    SupervisedContrastiveConfig,
    WeightedSumConfig,
    build_loss,
)

MARGIN = 0.2
HINGE = HingeConfig(margin=MARGIN)


def look(query: Tensor, document: Tensor) -> Look:
    log_q = torch.linspace(-1.0, 1.0, len(query))
    return Look(query, document, Exclusions.none(len(query), len(query)), torch.tensor(0.05), log_q)


def scattered(rows: int, dimension: int, width: float, seed: int) -> Tensor:
    """Unit vectors around one direction; width 0 makes them equal."""
    noise = torch.randn(rows, dimension, generator=torch.Generator().manual_seed(seed))
    return normalize(torch.eye(1, dimension) + width * noise, dim=1)


def collapsed(seen: Look) -> bool:
    return signs_of(seen, build_loss(HINGE), relative_spread(seen)).collapsed(GuardConfig())


def test_equal_vectors_show_all_three_signs() -> None:
    signs = signs_of(
        seen := look(scattered(64, 16, 0.002, 0), scattered(64, 16, 0.002, 1)),
        build_loss(HINGE),
        relative_spread(seen),
    )
    assert signs.equal == pytest.approx(MARGIN)
    assert signs.loss == pytest.approx(MARGIN, rel=0.01)
    assert abs(signs.gap) < 0.001
    assert signs.spread < 0.02
    assert signs.collapsed(GuardConfig())


def test_a_loss_at_the_margin_alone_is_no_alarm() -> None:
    """Every positive ties with its hardest negative, but the vectors fill the space."""
    documents = scattered(64, 16, 100.0, 0)
    twins = torch.cat([documents, documents])
    seen = look(twins, twins)
    signs = signs_of(seen, build_loss(HINGE), relative_spread(seen))
    assert signs.loss == pytest.approx(MARGIN, rel=1e-4)
    assert signs.gap == pytest.approx(0, abs=1e-5)
    assert signs.spread > 0.8
    assert not signs.collapsed(GuardConfig())


def test_close_vectors_that_still_tell_positives_apart_are_no_alarm() -> None:
    near = scattered(64, 16, 0.02, 0)
    seen = look(near, near)  # each query is its positive
    assert relative_spread(seen) < GuardConfig().spread
    centred = normalize(near - near.mean(0), dim=1)
    assert not collapsed(look(centred, centred))


def test_either_tower_alone_can_collapse_and_a_dot_product_shrink() -> None:
    alive, dead = scattered(64, 16, 100.0, 0), scattered(64, 16, 0.002, 1)
    assert relative_spread(look(alive, dead)) < 0.02
    assert collapsed(look(1e-3 * alive, 1e-3 * scattered(64, 16, 100.0, 2)))
    assert relative_spread(look(50 * alive, 50 * alive)) == pytest.approx(relative_spread(look(alive, alive)))


@pytest.mark.parametrize(
    "beside",
    [
        CrossEntropyConfig(list_weight=1.0),
        NoiseContrastiveConfig(),
        PairConfig(),
        SigmoidConfig(),
        SupervisedContrastiveConfig(),
    ],
)
def test_a_hinge_is_watched_beside_any_other_objective(beside: SingleLossConfig) -> None:
    """Noise-contrastive estimation among them, which needs log Q of what is looked at."""
    both = WeightedSumConfig(first=beside, second=HINGE, weight_from=0.5, weight_to=0.5)
    seen = look(scattered(64, 16, 1e-4, 0), scattered(64, 16, 1e-4, 1))
    signs = signs_of(seen, build_loss(both), relative_spread(seen))
    alone = build_loss(beside)(
        torch.ones(64, 64), seen.excluded.dense(), temperature=seen.temperature, log_q_N=seen.log_q
    )
    assert signs.equal == pytest.approx((alone.item() + MARGIN) / 2, rel=1e-3)
    assert signs.collapsed(GuardConfig())


def test_only_an_objective_with_a_margin_is_watched() -> None:
    softmax = CrossEntropyConfig()
    assert watched(HINGE)
    assert not watched(softmax)
    assert watched(WeightedSumConfig(first=softmax, second=HINGE))
    assert not watched(WeightedSumConfig(first=softmax, second=softmax))
    late = WeightedSumConfig(first=softmax, second=HINGE, ramp_start=0.5)
    assert watched(late)
    assert [watched(late, progress) for progress in (0.0, 0.5, 0.6, 1.0)] == [False, False, True, True]
