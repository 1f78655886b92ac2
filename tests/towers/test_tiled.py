from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from features.errors import ConfigError
from towers.exclusions import Exclusions
from towers.losses import (
    CrossEntropyConfig,
    HingeConfig,
    LossConfig,
    NoiseContrastiveConfig,
    OwnScores,
    SigmoidConfig,
    TripletConfig,
    WeightedSumConfig,
    build_loss,
)
from towers.tiled import require_tiled_form, tiled_loss
from towers.tiles import TilingConfig

SMALL = TilingConfig(rows=24, columns=40)
CONFIGS: list[LossConfig] = [
    CrossEntropyConfig(),
    CrossEntropyConfig(correct_positive=True, column_weight=0.3),
    CrossEntropyConfig(log_q=False, column_weight=0),
    CrossEntropyConfig(list_weight=0.5),
    CrossEntropyConfig(false_negative_prior=0.02, correct_positive=True),
    CrossEntropyConfig(false_negative_prior=0.02, log_q=False),
    HingeConfig(margin=0.5, column_weight=0.7),
    HingeConfig(margin=0.2, column_weight=0),
    SigmoidConfig(),
    SigmoidConfig(bias=-3.0),
    WeightedSumConfig(first=CrossEntropyConfig(), second=HingeConfig(margin=0.3), weight_from=0.4),
]


@dataclass
class Case:
    """A batch, with gradients wanted of its embeddings, own scores and temperature."""

    query: Tensor
    document: Tensor
    excluded: Tensor
    log_q: Tensor
    weight: Tensor
    own: OwnScores
    temperature: Tensor

    @property
    def inputs(self) -> list[Tensor]:
        return [self.query, self.document, self.own.score_BU, self.temperature]


def case(rows: int, columns: int, dtype: torch.dtype = torch.float32, temperature: float = 0.07) -> Case:
    generator = torch.Generator().manual_seed(rows + columns)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64).to(dtype)

    excluded = rand(rows, columns) < 0.1
    excluded[rows // 2] = True  # a row without negatives
    excluded[:, rows // 3] = True  # a column without
    excluded.diagonal().fill_(False)
    own = OwnScores((rand(rows, 3) - 0.5).requires_grad_(), rand(rows, 3) < 0.5, rand(rows, 3).log())
    return Case(
        normalize(rand(rows, 16) - 0.5).requires_grad_(),
        normalize(rand(columns, 16) - 0.5).requires_grad_(),
        excluded,
        rand(columns).log() - 1,
        rand(rows) + 0.5,
        own,
        torch.tensor(temperature, dtype=dtype, requires_grad=True),
    )


def plain(config: LossConfig, it: Case) -> Tensor:
    score = it.query @ it.document.T
    return build_loss(config)(
        score,
        it.excluded,
        temperature=it.temperature,
        log_q_N=it.log_q,
        weight_B=it.weight,
        own=it.own,
    )


def tiled(config: LossConfig, it: Case, tiling: TilingConfig = SMALL) -> Tensor:
    return tiled_loss(
        config,
        it.query,
        it.document,
        Exclusions.from_mask(it.excluded),
        temperature=it.temperature,
        log_q_N=it.log_q,
        weight_B=it.weight,
        own=it.own,
        tiling=tiling,
    )


def gradients(loss: Tensor, it: Case) -> list[Tensor]:
    found = torch.autograd.grad(loss, it.inputs, allow_unused=True)
    return [
        torch.zeros_like(given) if gradient is None else gradient
        for gradient, given in zip(found, it.inputs, strict=True)
    ]


def farthest(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest of the relative differences, each of a whole gradient."""
    return max(
        ((a - b).norm() / b.norm().clamp(min=1e-6)).item() for a, b in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (24, 40), (50, 50), (61, 97), (130, 200)])
def test_value_and_gradients_equal_the_plain_loss(config: LossConfig, shape: tuple[int, int]) -> None:
    it = case(*shape)
    expected, found = plain(config, it), tiled(config, it)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert farthest(gradients(found, it), gradients(expected, it)) < 1e-5


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_in_float64_the_two_are_one_computation(config: LossConfig) -> None:
    it = case(61, 97, torch.float64)
    expected, found = plain(config, it), tiled(config, it)
    assert found.item() == pytest.approx(expected.item(), rel=1e-13)
    assert farthest(gradients(found, it), gradients(expected, it)) < 1e-12


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_the_size_of_the_tiles_does_not_matter(config: LossConfig) -> None:
    it = case(50, 70, torch.float64)
    one = tiled(config, it, TilingConfig(rows=1000, columns=1000))
    many = tiled(config, it, TilingConfig(rows=7, columns=3))
    assert many.item() == pytest.approx(one.item(), rel=1e-13)
    assert farthest(gradients(many, it), gradients(one, it)) < 1e-12


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_the_size_of_the_strips_of_a_tile_does_not_matter(
    config: LossConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = case(50, 70, torch.float64)
    whole = tiled(config, it)
    expected = gradients(whole, it)
    monkeypatch.setattr("towers.tiles._STRIP", 200)  # 5 rows of 40 columns
    cut = tiled(config, it)
    assert cut.item() == pytest.approx(whole.item(), rel=1e-13)
    assert farthest(gradients(cut, it), expected) < 1e-12


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_gradcheck_passes(config: LossConfig) -> None:
    it = case(5, 8, torch.float64, temperature=0.4)

    def compute(query: Tensor, document: Tensor, own_score: Tensor, temperature: Tensor) -> Tensor:
        own = OwnScores(own_score, it.own.excluded_BU, it.own.log_q_BU)
        moved = Case(query, document, it.excluded, it.log_q, it.weight, own, temperature)
        return tiled(config, moved, TilingConfig(rows=2, columns=3))

    assert torch.autograd.gradcheck(compute, it.inputs, fast_mode=True)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_without_any_negative_the_loss_is_finite(
    config: LossConfig,
) -> None:
    it = case(9, 12)
    it.excluded.fill_(True).fill_diagonal_(False)
    it.own.excluded_BU.fill_(True)
    expected, found = plain(config, it), tiled(config, it, TilingConfig(rows=4, columns=5))
    assert torch.isfinite(found)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-7)
    for one, other in zip(gradients(found, it), gradients(expected, it), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("temperature", [0.02, 0.01, 0.002])
def test_logits_past_the_range_of_one_exponential(temperature: float) -> None:
    it = case(61, 97, temperature=temperature)
    config = CrossEntropyConfig(column_weight=0.7)
    expected, found = plain(config, it), tiled(config, it)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert farthest(gradients(found, it), gradients(expected, it)) < 1e-5


def test_vectors_that_are_not_of_unit_length() -> None:
    it = case(61, 97, temperature=0.05)
    lengths = torch.linspace(0.01, 10, 97)[:, None]
    it.document = (it.document * lengths).detach().requires_grad_()
    it.query = (it.query * lengths[:61]).detach().requires_grad_()
    config = CrossEntropyConfig()
    expected, found = plain(config, it), tiled(config, it)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert farthest(gradients(found, it), gradients(expected, it)) < 1e-5


def test_log_q_of_any_span() -> None:
    it = case(61, 97)
    it.log_q = torch.linspace(-250, 2, 97)
    config = CrossEntropyConfig()
    expected, found = plain(config, it), tiled(config, it)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert farthest(gradients(found, it), gradients(expected, it)) < 1e-5


def test_own_masks_weights_and_corrections_may_be_absent() -> None:
    it = case(30, 45)
    exclusions = Exclusions.none(30, 45)
    for config in CONFIGS:
        found = tiled_loss(config, it.query, it.document, exclusions, temperature=0.1, tiling=SMALL)
        score = it.query @ it.document.T
        expected = build_loss(config)(score, torch.zeros(30, 45).bool(), temperature=0.1)
        assert found.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_graph_that_is_kept_gives_the_same_gradient_twice(config: LossConfig) -> None:
    it = case(30, 45)
    loss = tiled(config, it)
    first = torch.autograd.grad(loss, it.query, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(loss, it.query)[0])


def test_a_loss_that_is_scaled_has_a_scaled_gradient() -> None:
    it = case(30, 45)
    for config in CONFIGS:
        once, thrice = gradients(tiled(config, it), it), gradients(3 * tiled(config, it), it)
        assert farthest(thrice, [3 * gradient for gradient in once]) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_embeddings_are_widened(dtype: torch.dtype) -> None:
    it = case(30, 45)
    exclusions = Exclusions.from_mask(it.excluded)
    for config in CONFIGS:
        narrow_query, narrow_document = it.query.to(dtype), it.document.to(dtype)
        narrow = tiled_loss(config, narrow_query, narrow_document, exclusions, temperature=0.1)
        wide = tiled_loss(config, narrow_query.float(), narrow_document.float(), exclusions, temperature=0.1)
        assert narrow.dtype == torch.float32
        assert narrow.item() == wide.item()


def test_a_nan_in_the_embeddings_is_a_nan_in_the_loss() -> None:
    it = case(30, 45)
    it.query.data[3, 2] = torch.nan
    for config in CONFIGS:
        assert torch.isnan(tiled(config, it))


def test_objectives_without_a_tiled_form_are_refused() -> None:
    untiled: list[LossConfig] = [
        NoiseContrastiveConfig(),
        TripletConfig(),
        HingeConfig(negative="semi_hard"),
        HingeConfig(negative="top_k_mean"),
        WeightedSumConfig(first=CrossEntropyConfig(), second=TripletConfig()),
    ]
    it = case(4, 6)
    for config in untiled:
        with pytest.raises(ConfigError, match="no tiled form"):
            require_tiled_form(config)
        with pytest.raises(ConfigError, match="plain"):
            tiled(config, it)
    for config in CONFIGS:
        require_tiled_form(config)


def test_progress_moves_a_weighted_sum() -> None:
    it = case(30, 45)
    config = WeightedSumConfig(first=CrossEntropyConfig(), second=HingeConfig())
    exclusions = Exclusions.from_mask(it.excluded)
    ends = [
        tiled_loss(config, it.query, it.document, exclusions, temperature=0.1, progress=progress)
        for progress in (0.0, 1.0)
    ]
    parts = [
        tiled_loss(part, it.query, it.document, exclusions, temperature=0.1)
        for part in (config.first, config.second)
    ]
    assert [end.item() for end in ends] == [part.item() for part in parts]


@pytest.mark.parametrize("temperature", [0.0, -0.1, float("nan")])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float) -> None:
    it = case(4, 6)
    for config in (CrossEntropyConfig(), SigmoidConfig()):
        with pytest.raises(ValueError, match="temperature must be > 0"):
            tiled_loss(config, it.query, it.document, Exclusions.none(4, 6), temperature=temperature)


def test_shapes_that_do_not_fit_are_refused() -> None:
    it = case(4, 6)
    for config in (CrossEntropyConfig(), HingeConfig(), SigmoidConfig()):
        with pytest.raises(ValueError, match="the exclusions are 4 x 7"):
            tiled_loss(config, it.query, it.document, Exclusions.none(4, 7), temperature=0.1)
        with pytest.raises(ValueError, match="N >= B"):
            tiled_loss(config, it.document, it.query, Exclusions.none(4, 6), temperature=0.1)
        with pytest.raises(ValueError, match="equal width"):
            tiled_loss(config, it.query[:, :5], it.document, Exclusions.none(4, 6), temperature=0.1)
