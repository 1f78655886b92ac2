import pytest
import torch
from torch import Tensor

from towers.distributed import Ranks
from towers.exclusions import Exclusions
from towers.losses import (
    CrossEntropyConfig,
    HingeConfig,
    LossConfig,
    NoiseContrastiveConfig,
    OwnScores,
    SigmoidConfig,
    SupervisedContrastiveConfig,
    TripletConfig,
    WeightedSumConfig,
)
from towers.objective import Objective, build_objective
from towers.parts import Scored

ROWS, COLUMNS, OWN, WIDTH = 11, 17, 3, 6
TILED: list[LossConfig] = [
    CrossEntropyConfig(),
    CrossEntropyConfig(log_q=False, column_weight=0.0),
    CrossEntropyConfig(correct_positive=True, column_weight=0.3, list_weight=0.7),
    CrossEntropyConfig(false_negative_prior=0.05, column_weight=2.0),
    HingeConfig(margin=0.4),
    HingeConfig(margin=0.4, column_weight=0.25),
    SigmoidConfig(),
    WeightedSumConfig(first=CrossEntropyConfig(), second=HingeConfig(margin=0.3)),
]
PLAIN: list[LossConfig] = [
    HingeConfig(margin=0.4, negative="semi_hard"),
    HingeConfig(margin=0.4, negative="top_k_mean", k=3),
    TripletConfig(),
    NoiseContrastiveConfig(),
    SupervisedContrastiveConfig(),
    WeightedSumConfig(first=CrossEntropyConfig(), second=SupervisedContrastiveConfig()),
]
CASES = [(config, tiled) for tiled in (False, True) for config in TILED] + [(c, False) for c in PLAIN]


def batch(seed: int) -> tuple[Scored, list[Tensor]]:
    """A batch in float64 and the leaves that an objective of it has gradients for."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    query = torch.nn.functional.normalize(normal(ROWS, WIDTH)).requires_grad_()
    document = torch.nn.functional.normalize(normal(COLUMNS, WIDTH)).requires_grad_()
    temperature = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    own = normal(ROWS, OWN).mul_(0.3).requires_grad_()
    excluded = Exclusions.from_mask(torch.rand(ROWS, COLUMNS, generator=random) < 0.25)
    barred = torch.rand(ROWS, OWN, generator=random) < 0.3
    own_scores = OwnScores(own, barred, normal(ROWS, OWN))
    weight = normal(ROWS).exp()
    scored = Scored(query, document, excluded, temperature, normal(COLUMNS), weight, own_scores)
    return scored, [query, document, temperature, own]


def computed(
    objective: Objective, scored: Scored, leaves: list[Tensor], ranks: Ranks
) -> tuple[float, list[Tensor]]:
    """Return the value and the leaves' gradients."""
    value = objective(scored, ranks)
    gradients = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
    return value.item(), list(gradients)


@pytest.mark.parametrize("ranks", [2, 3, 13])
@pytest.mark.parametrize(("config", "tiled"), CASES)
def test_the_parts_of_all_ranks_sum_up_to_the_objective_and_so_do_their_gradients(
    config: LossConfig, tiled: bool, ranks: int
) -> None:
    """Of uneven shares, more columns than rows, weights, exclusions and own documents; 13 ranks, 11 rows."""
    objective = build_objective(config, tiled=tiled, progress=0.4)
    scored, leaves = batch(ranks)
    value, expected = computed(objective, scored, leaves, Ranks())
    parts = [computed(objective, scored, leaves, Ranks(rank, ranks)) for rank in range(ranks)]
    assert sum(part for part, _ in parts) == pytest.approx(value, rel=1e-9)
    for number, name in enumerate(("query", "document", "temperature", "own")):
        total = torch.stack([gradients[number] for _, gradients in parts]).sum(0)
        assert torch.allclose(total, expected[number], rtol=1e-7, atol=1e-10), name


def test_a_rank_scores_its_queries_and_its_documents_alone() -> None:
    scored, _ = batch(0)
    score, mask = scored.query @ scored.document.T, scored.exclusions.dense()
    order = [3, 4, 5, 0, 1, 2, *range(6, COLUMNS)]
    rows, columns = scored.rows(3, 6), scored.columns(3, 6)
    assert torch.allclose(rows.query @ rows.document.T, score[3:6][:, order])
    assert torch.equal(rows.exclusions.dense(), mask[3:6][:, order])
    back = order[:ROWS]
    assert torch.allclose(columns.query @ columns.document.T, score[:, 3:6].T[:, back])
    assert torch.equal(columns.exclusions.dense(), mask[:, 3:6].T[:, back])
