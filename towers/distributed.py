"""One batch over several ranks: each encodes a part of it and computes a part of its objective.

A batch is a pure function of (seed, stage, step), so every rank lays out the whole of it: masks, distinct
documents and places are those of all ranks' rows, and a query's positive is where it is with one rank. A
rank then

1. encodes its chunks of the distinct rows, some ranks one chunk more than others, or none;
2. `Ranks.gather` gathers the vectors of all ranks;
3. computes its part of the objective (`towers.parts`) and its gradient at the vectors; `Ranks.sum_parts` adds
   up both, in one all-reduce;
4. pushes its own rows' gradient through its encoder, and `Ranks.sum_gradients` adds up the weights' gradients
   that the ranks have, in another.

What is encoded without a gradient, the corpus to mine in and the queue's documents, is shared out by
`encode_together`.

Shapes: V distinct rows of the batch, D embedding; P numbers of all parameters.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from features.errors import ConfigError
from towers.batch import Features

_Anything = TypeVar("_Anything")

_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Ranks:
    """The processes that train together, started by torchrun; torch's default group (gloo, NCCL).

    Attributes:
        rank: This one, from 0.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def of_group(cls) -> "Ranks":
        """Return the ranks of the initialised group, or a single one where there is none."""
        if not dist.is_available() or not dist.is_initialized():
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    def wait(self) -> None:
        """Return when every rank has come here."""
        if self.size > 1:
            dist.barrier()

    def share(self, items: Sequence[_Anything], rank: int | None = None) -> Sequence[_Anything]:
        """Return the consecutive items that a rank has, this one by default; earlier ranks have one more."""
        rank = self.rank if rank is None else rank
        each, more = divmod(len(items), self.size)
        first = rank * each + min(rank, more)
        return items[first : first + each + (rank < more)]

    def gather(self, local_VD: Tensor, lengths: Sequence[int]) -> Tensor:
        """Return every rank's rows, in the order of the ranks.

        Collectives want equal shapes: a shorter part is padded, and the padding left out again.

        Args:
            local_VD: This rank's; `lengths[rank]` rows.
            lengths: How many rows each rank has.
        """
        if self.size == 1:
            return local_VD
        longest = max(lengths)
        padded = local_VD.new_zeros(longest, *local_VD.shape[1:])
        padded[: len(local_VD)] = local_VD
        parts = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(parts, padded)
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])

    def agreed(self, measured: Mapping[str, float]) -> dict[str, float]:
        """Return what the first rank measured, on every rank, so that all decide alike on any machine."""
        if self.size == 1:
            return dict(measured)
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        values = torch.tensor(list(measured.values()), dtype=torch.float64, device=device)
        dist.broadcast(values, 0)
        return dict(zip(measured, values.tolist(), strict=True))

    def sum_parts(self, value: Tensor, leaves: Sequence[Tensor]) -> float:
        """Return the sum of a value over the ranks, and replace each leaf's gradient by its sum over them.

        Args:
            value: This rank's part of a scalar, whose backward has been run.
            leaves: What it was computed of, equal on all ranks; without a gradient: of zeros.
        """
        if self.size == 1:
            return value.item()
        parts = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
        flat = torch.cat([value.detach().to(parts[0].dtype).view(1), *(part.reshape(-1) for part in parts)])
        dist.all_reduce(flat)
        end = 1
        for leaf in leaves:
            leaf.grad = flat[end : end + leaf.numel()].view_as(leaf)
            end += leaf.numel()
        return flat[0].item()

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its sum over the ranks, in one all-reduce.

        A parameter without a gradient on any rank is left without one.
        """
        if self.size == 1:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        parts = [
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in trained
        ]
        present = torch.tensor([parameter.grad is not None for parameter in trained], dtype=parts[0].dtype)
        flat_P = torch.cat([*(part.reshape(-1) for part in parts), present.to(parts[0].device)])
        dist.all_reduce(flat_P)
        ends = list(accumulate(part.numel() for part in parts))
        counts = flat_P[ends[-1] :].tolist()
        for parameter, end, ranks in zip(trained, ends, counts, strict=True):
            total = flat_P[end - parameter.numel() : end].view_as(parameter)
            parameter.grad = total.clone() if ranks else None


ALONE = Ranks()
"""A process that trains by itself."""


@torch.no_grad()
def encode_together(
    encode: Callable[[Features], Tensor],
    features: Features,
    rows: Tensor,
    *,
    width: int,
    device: torch.device,
) -> Tensor:
    """Encode rows without a graph, each rank a part of them; every rank gets all, (V, D) on the device.

    Args:
        encode: In evaluation mode; the same on all ranks.
        features: Prepared inputs, on the CPU.
        rows: (V,) which of them; the same on all ranks.
        width: D.
        device: Where to encode.
    """
    ranks = Ranks.of_group()
    chunks = torch.split(rows, max(1, min(_ROWS_AT_ONCE, math.ceil(len(rows) / ranks.size))))
    parts = [encode(features.take(chunk).to(device)) for chunk in ranks.share(chunks)]
    lengths = [sum(map(len, ranks.share(chunks, rank))) for rank in range(ranks.size)]
    return ranks.gather(torch.cat([torch.empty(0, width, device=device), *parts]), lengths)


@contextmanager
def joined_ranks(*, use_cuda: bool) -> Iterator[Ranks]:
    """Join the group that torchrun started this process for, and leave it at the end.

    A process that torchrun did not start, or started alone, is a single rank. A group that is there already
    is used and left as it is.

    Args:
        use_cuda: Whether to train on GPUs, over NCCL, each rank on its own; else on CPUs, over gloo.

    Raises:
        ConfigError: If there are fewer GPUs than ranks.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield Ranks.of_group()
        return
    if use_cuda:
        local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= gpus:
            raise ConfigError(
                f"train.ranks is more than this machine's {gpus} CUDA devices; set it to at most {gpus}, or "
                "device to cpu"
            )
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if use_cuda else "gloo")
    try:
        yield Ranks.of_group()
        dist.barrier()  # a rank that leaves early closes connections that slower ranks still read
    finally:
        dist.destroy_process_group()
