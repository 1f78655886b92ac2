"""Gradient caching: a large batch through an encoder in memory that does not depend on the batch.

Four steps of Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup",
sec. 3.2. Differs: each distinct row is encoded once, and where several ranks train, each takes some chunks.

1. `split`             the distinct rows into chunks, each with a seed of its own;
2. `forward`           encode every chunk without a graph;
3. cache               the objective's gradient at the vectors, which are leaves (`towers.step`);
4. `forward_backward`  encode each chunk again, with a graph and the same seed, and push its gradient through.

Shapes: V distinct rows, D embedding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from towers.batch import Features

Encode = Callable[[Features], Tensor]


@dataclass(frozen=True)
class Chunk:
    """Rows that are encoded together.

    Attributes:
        first: Where in the distinct rows it starts.
        rows: Which prepared rows it has.
        seed: Of whatever the encoder draws, such as dropout; equal seeds, equal draws. `None`: it draws from
            the global generator.
    """

    first: int
    rows: Tensor
    seed: int | None

    @property
    def end(self) -> int:
        """Where in the distinct rows it ends."""
        return self.first + len(self.rows)


def split(rows: Tensor, size: int) -> list[Chunk]:
    """Cut rows into chunks of `size`, the last one shorter, with seeds from torch's global generator."""
    parts = [rows[first : first + size] for first in range(0, len(rows), size)]
    seeds = torch.randint(1 << 62, (len(parts),)).tolist()
    return [Chunk(number * size, part, seeds[number]) for number, part in enumerate(parts)]


@torch.no_grad()
def forward(
    encode: Encode, features: Features, chunks: Sequence[Chunk], device: torch.device
) -> list[Tensor]:
    """Return the vectors of each chunk, without a graph."""
    return [encoded(encode, features, chunk, device) for chunk in chunks]


def forward_backward(
    encode: Encode, features: Features, chunks: Sequence[Chunk], gradient_VD: Tensor
) -> None:
    """Add to the weights' gradients what the cached gradient of the vectors makes of them.

    Args:
        encode: The encoder that `forward` was given, in the same state.
        features: Prepared inputs, on the CPU.
        chunks: Those to encode again.
        gradient_VD: Gradient of the objective at all distinct rows' vectors.
    """
    for chunk in chunks:
        vectors = encoded(encode, features, chunk, gradient_VD.device)
        torch.autograd.backward(vectors, gradient_VD[chunk.first : chunk.end])


def encoded(encode: Encode, features: Features, chunk: Chunk, device: torch.device) -> Tensor:
    """Return the vectors of a chunk, with a graph where gradients are enabled.

    Its draws come from its seed; the generators then go on as if nothing had been drawn.
    """
    inputs = features.take(chunk.rows).to(device)
    if chunk.seed is None:
        return encode(inputs)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(chunk.seed)
        return encode(inputs)
