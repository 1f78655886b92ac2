import math

import pytest
import torch
from torch import Tensor

from towers.losses import NoiseContrastive, NoiseContrastiveConfig, OwnScores


def test_loss_equals_the_naive_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    score = torch.rand(5, 9, generator=generator, dtype=torch.float64) * 2 - 1
    shown = torch.rand(5, 2, generator=generator, dtype=torch.float64) * 2 - 1
    excluded = torch.rand(5, 9, generator=generator) < 0.3
    excluded.diagonal().fill_(False)
    own_excluded = torch.rand(5, 2, generator=generator) < 0.3
    log_q = torch.rand(9, generator=generator, dtype=torch.float64).log()
    own_log_q = torch.rand(5, 2, generator=generator, dtype=torch.float64).log()
    weight = torch.rand(5, generator=generator, dtype=torch.float64) + 0.5

    def from_data(score: Tensor, log_noise: Tensor) -> float:
        """P(data | document) = p / (p + k q)."""
        model, noise = math.exp(score.item() / 0.2 - 0.7), math.exp(log_noise.item())
        return model / (model + noise)

    total = 0.0
    for i in range(5):
        row = -math.log(from_data(score[i, i], log_q[i]))
        for j in range(9):
            if j != i and not excluded[i, j]:
                row -= math.log(1 - from_data(score[i, j], log_q[j]))
        for u in range(2):
            if not own_excluded[i, u]:
                row -= math.log(1 - from_data(shown[i, u], own_log_q[i, u]))
        total += weight[i].item() * row
    loss = NoiseContrastive(NoiseContrastiveConfig(log_partition=0.7))(
        score,
        excluded,
        temperature=0.2,
        log_q_N=log_q,
        weight_B=weight,
        own=OwnScores(shown, own_excluded, own_log_q),
    )
    assert loss.item() == pytest.approx(total / weight.sum().item(), rel=1e-9)


def test_the_optimum_is_the_probability_of_the_data_whatever_the_noise() -> None:
    """Expected loss over clicks p and k noise documents q is least where the logit is log p."""
    clicked = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    noise = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
    draws = 4
    loss = NoiseContrastive(NoiseContrastiveConfig())
    logit = clicked.log().requires_grad_()
    log_q = (draws * noise).log()
    total = torch.zeros((), dtype=torch.float64)
    nothing = torch.zeros(1, 2, dtype=torch.bool)
    for positive in range(3):
        for negative in range(3):
            pair = torch.tensor([positive, negative])
            value = loss(logit[pair][None], nothing, temperature=1.0, log_q_N=log_q[pair])
            alone = loss(logit[pair[:1]][None], nothing[:, :1], temperature=1.0, log_q_N=log_q[pair[:1]])
            expected = alone + draws * (value - alone)
            total = total + clicked[positive] * noise[negative] * expected
    (slope,) = torch.autograd.grad(total, logit)
    assert slope.abs().max() < 1e-12


def test_without_log_q_it_is_refused() -> None:
    loss = NoiseContrastive(NoiseContrastiveConfig())
    with pytest.raises(ValueError, match="nce needs log_q_N"):
        loss(torch.zeros(2, 3), torch.zeros(2, 3).bool(), temperature=1.0)
    own = OwnScores(torch.zeros(2, 1), torch.zeros(2, 1).bool())
    with pytest.raises(ValueError, match="nce needs log_q_BU"):
        loss(torch.zeros(2, 3), torch.zeros(2, 3).bool(), temperature=1.0, log_q_N=torch.zeros(3), own=own)
