import torch
from torch.nn.functional import normalize

from towers.exclusions import Exclusions
from towers.losses import SigmoidConfig
from towers.tiled_sigmoid import tiled_sigmoid


def test_without_gradients_the_value_is_the_same() -> None:
    query = normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))
    exclusions = Exclusions.none(6, 6)
    value = tiled_sigmoid(SigmoidConfig(), query, query, exclusions, temperature=0.1)
    query.requires_grad_()
    assert value.item() == tiled_sigmoid(SigmoidConfig(), query, query, exclusions, temperature=0.1).item()
