"""What the further sources of a stage supply, step by step: uniform, mined and queued negatives.

1. `draws`  before a step: mine where a window begins, and draw for the step's examples;
2. `learn`  after its update: the momentum tower follows, and the batch's documents enter the queue.

What is drawn depends on (seed, stage, step) and on the state: the table of mined candidates, the queue's
contents and fill state, and the momentum weights. All of it is in `state_dict`.
"""

import numpy as np
from torch import Tensor

from towers.collate import Batches, Draw
from towers.data import Ints, TrainingData
from towers.mining import Miner
from towers.negatives import Source
from towers.queue import DocumentQueue
from towers.record import Recorder
from towers.sources import NegativesConfig
from towers.step import Inputs
from towers.two_tower import TwoTower


class Supply:
    """The further sources of one stage, empty at its start."""

    def __init__(
        self, config: NegativesConfig, model: TwoTower, data: TrainingData, inputs: Inputs, batches: Batches
    ) -> None:
        """Start with nothing mined and nothing queued."""
        self._config = config
        self._data = data
        self._inputs = inputs
        self._batches = batches
        self._miner = None if config.mined is None else Miner(data, inputs, config.mined)
        self._queue = None if config.queue is None else DocumentQueue(model, config.queue)

    def draws(self, model: TwoTower, step: int, length: int, record: Recorder) -> list[Draw]:
        """Return what the sources draw for a step; mines first where its window begins.

        Args:
            model: The current towers.
            step: Counted from 0 in the stage.
            length: Of the stage, in steps; it may go on after them.
            record: Told of every mining.

        Raises:
            ConfigError: If the towers' scores or corpus cannot be mined as configured.
            TrainingError: If the towers encode something as a vector that is not finite.
        """
        draws = []
        if self._config.uniform is not None:
            random = self._batches.random(step, Source.UNIFORM)
            corpus = len(self._data.catalogue.content)
            draws.append(Draw(Source.UNIFORM, random.integers(corpus, size=self._config.uniform.per_batch)))
        if self._miner is not None:
            window = self._miner.window(step, length)
            if window:
                self._mine(self._miner, model, window, record)
            random = self._batches.random(step, Source.MINED)
            document, owner, chance = self._miner.draw(self._batches.rows(step), random)
            draws.append(Draw(Source.MINED, document, owner, chance))
        if self._queue is not None:
            draws.append(Draw(Source.QUEUE, self._queue.documents, vectors=self._queue.vectors))
        return draws

    def learn(self, model: TwoTower, step: int) -> None:
        """Take note of a step that was just done."""
        if self._queue is not None:
            positives = self._data.document[self._batches.rows(step)]
            self._queue.push(model, self._inputs.documents, positives)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state of all sources as tensors on the CPU; nothing where none has any."""
        parts = {"mined": self._miner, "queue": self._queue}
        return {
            f"{name}|{key}": value
            for name, part in parts.items()
            if part is not None
            for key, value in part.state_dict().items()
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what `state_dict` returned, under the same configuration."""
        parts = {"mined": self._miner, "queue": self._queue}
        for name, part in parts.items():
            if part is not None:
                prefix = f"{name}|"
                part.load_state_dict(
                    {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
                )

    def _mine(self, miner: Miner, model: TwoTower, window: range, record: Recorder) -> None:
        examples: Ints = np.concatenate([self._batches.rows(step) for step in window])
        again = miner.refresh(model, examples)
        found = (miner.documents >= 0).sum(axis=1)
        record.event(
            "mined",
            {"step": window.start, "searched": again, "weights": miner.weights[:16], "examples": len(found)}
            | {"candidates": float(found.mean()), "without": int((found == 0).sum())},
        )
