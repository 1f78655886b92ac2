"""Documents of earlier batches as negatives, encoded by a tower that follows the trained one slowly (MoCo).

Shapes: B documents of a batch, F documents in the queue, S its size, E embedding.
"""

import copy

import torch
from torch import Tensor, nn

from towers.batch import Features
from towers.data import Ints
from towers.distributed import encode_together
from towers.sources import QueueSource
from towers.two_tower import TwoTower


class DocumentQueue:
    """A first-in-first-out queue of documents and their vectors.

    Source: He et al. 2020, "Momentum Contrast", algorithm 1. Differs: it starts empty instead of with random
    vectors, knows which document each vector is, and the momentum tower encodes without dropout.
    """

    def __init__(self, model: TwoTower, config: QueueSource) -> None:
        """Start empty, with a momentum tower equal to the model's document tower."""
        self.config = config
        device = next(model.parameters()).device
        self._momentum = TwoTower(model.config, model.query, copy.deepcopy(model.document))
        self._momentum.document.requires_grad_(False).eval()
        self._vectors = torch.zeros(config.size, model.dimension, device=device)
        self._documents = torch.full((config.size,), -1, dtype=torch.int64)
        self._next = 0
        self._filled = 0

    def __len__(self) -> int:
        return self._filled

    @property
    def documents(self) -> Ints:
        """(F,) rows in the catalogue, oldest first."""
        rows: Ints = self._documents[self._order()].numpy()
        return rows

    @property
    def vectors(self) -> Tensor:
        """(F, E) vectors, oldest first; no gradient flows into them."""
        return self._vectors[self._order().to(self._vectors.device)]

    @torch.no_grad()
    def push(self, model: TwoTower, documents: Features, rows: Ints) -> None:
        """After an optimiser step: follow the model, then encode the batch's documents and put them in.

        Args:
            model: The trained towers.
            documents: Every prepared document.
            rows: (B,) rows in the catalogue of the batch's positives, repeats included, so that a document is
                in the queue as often as it is drawn; of more than the queue holds the last are kept.
        """
        self._follow(model.document)
        rows = rows[-self.config.size :]
        distinct, place = torch.unique(torch.from_numpy(rows), return_inverse=True)
        device = self._vectors.device
        encode, width = self._momentum.encode_documents, self._vectors.shape[1]
        vectors = encode_together(encode, documents, distinct, width=width, device=device)
        at = (self._next + torch.arange(len(rows))) % self.config.size
        self._vectors[at.to(device)] = vectors[place.to(device)]
        self._documents[at] = torch.from_numpy(rows)
        self._next = (self._next + len(rows)) % self.config.size
        self._filled = min(self._filled + len(rows), self.config.size)

    def state_dict(self) -> dict[str, Tensor]:
        """Return fill state, contents and momentum weights as tensors on the CPU."""
        state = {
            "fill": torch.tensor([self._next, self._filled]),
            "documents": self._documents.clone(),
            "vectors": self._vectors.cpu().clone(),
        }
        weights = self._momentum.document.state_dict()
        return state | {f"momentum.{name}": value.cpu().clone() for name, value in weights.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what `state_dict` returned."""
        self._next, self._filled = state["fill"].tolist()
        self._documents.copy_(state["documents"])
        self._vectors.copy_(state["vectors"])
        prefix = "momentum."
        weights = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
        self._momentum.document.load_state_dict(weights)

    def _order(self) -> Tensor:
        return (self._next - self._filled + torch.arange(self._filled)) % self.config.size

    def _follow(self, document: nn.Module) -> None:
        """Move the momentum tower: `θ' ← m θ' + (1 - m) θ`; counters and other buffers are copied."""
        pairs = zip(self._momentum.document.parameters(), document.parameters(), strict=True)
        for slow, fast in pairs:
            slow.lerp_(fast, 1 - self.config.momentum)
        for buffer, value in zip(self._momentum.document.buffers(), document.buffers(), strict=True):
            buffer.copy_(value)
