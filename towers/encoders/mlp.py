"""The body of a feature tower."""

from itertools import pairwise

from torch import Tensor, nn


class ResidualLayer(nn.Module):
    """LayerNorm, linear, GELU, dropout; added to the input where the sizes agree."""

    def __init__(self, size_in: int, size_out: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size_in)
        self.linear = nn.Linear(size_in, size_out)
        self.dropout = nn.Dropout(dropout)
        self._adds = size_in == size_out

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, size_in) to (N, size_out)."""
        y: Tensor = self.dropout(nn.functional.gelu(self.linear(self.norm(x))))
        return x + y if self._adds else y


def residual_mlp(size_in: int, hidden: tuple[int, ...], dropout: float) -> nn.Sequential:
    """Return the layers from `size_in` through each hidden size; no hidden sizes leave the input as it is."""
    sizes = (size_in, *hidden)
    return nn.Sequential(*(ResidualLayer(before, after, dropout) for before, after in pairwise(sizes)))
