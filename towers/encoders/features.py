"""The feature tower: hashed text, ids, categories, numbers and history into a small residual network.

```
text ─┐
ids ──┤                 ┌─ residual MLP ─ projector ─┐
… ────┼─ concatenated ──┤                            ├─ + ─┬─ vector
      ┘                 └─ straight (linear) ────────┘     │
popularity numbers, or a constant ─ linear ────────────────┘ last coordinate
```

The straight path starts as the identity on text, so that two towers that share their text table begin as
a bag-of-words matcher instead of at random; `straight: false` leaves it out. The last coordinate multiplies
the query's constant with a linear function of the document's popularity, under dot product and cosine alike.

Legend: N rows, D dimension.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import load, save_file
from torch import Tensor, nn

from features.artifact import write_json
from features.config import Config
from features.errors import ConfigError
from towers.batch import Features, Ragged
from towers.encoders.blocks import Block, HistoryBlock, NumbersBlock, TextBlock, bag_name, merge
from towers.encoders.encoder import Encoder, Side, Table
from towers.encoders.fitted import Fitted, bags_of, history_blocks, row_blocks
from towers.encoders.hashing import TextInput
from towers.encoders.inputs import FeatureTowerConfig, RowInputs
from towers.encoders.mlp import residual_mlp
from towers.encoders.tables import BagTable, TextTable, first_importance

_CONFIG = "encoder.json"
_WEIGHTS = "model.safetensors"
_POPULARITY_GAIN = 10.0  # logits a unit of weight: popularity has few weights and must not wait for them
_PROJECTOR_STD = 0.02
_PROJECTOR_STD_BESIDE_TEXT = 0.002  # at 0.02 the noise of the network drowns a match of words


class _EncoderFile(Config):
    config: FeatureTowerConfig
    dimension: int
    side: Side
    temperature: float


class FeatureEncoder(Encoder):
    """A feature tower.

    Initial weights come from torch's global generator: call `torch.manual_seed` first.
    """

    def __init__(
        self,
        config: FeatureTowerConfig,
        dimension: int,
        side: Side,
        fitted: Fitted,
        temperature: float,
        shared: Mapping[str, nn.Module] | None = None,
    ) -> None:
        """Build the tower.

        Args:
            config: Inputs and sizes.
            dimension: Size of the vectors.
            side: Which frame is read.
            fitted: Vocabularies, scales and contents.
            temperature: The first temperature of the loss, by which popularity in logits becomes a score.
            shared: Tables of the other tower to use where the names agree.

        Raises:
            ConfigError: If inputs that share a table want it of different sizes.
        """
        super().__init__()
        self.config, self.dimension, self.side, self.fitted = config, dimension, side, fitted
        self.temperature = temperature
        self._blocks, texts = _blocks(config, side, fitted)
        self.tables = nn.ModuleDict(_tables(config, side, fitted, shared or {}))
        width = sum(block.width for block in self._blocks)
        free = dimension - (1 if config.popularity or config.constant else 0)
        self.mlp = residual_mlp(width, config.hidden, config.dropout)
        self.projector = nn.Linear((width, *config.hidden)[-1], free)
        std = _PROJECTOR_STD_BESIDE_TEXT if texts and config.straight else _PROJECTOR_STD
        nn.init.normal_(self.projector.weight, std=std)
        nn.init.zeros_(self.projector.bias)
        self.straight: nn.Linear | None = None
        if config.straight:
            self.straight = nn.Linear(width, free, bias=False)
            _start_as_identity(self.straight.weight, texts, self._text_width)
        self._popularity: NumbersBlock | None = None
        if config.popularity:
            self._popularity = NumbersBlock("popularity", fitted.scaled("popularity", config.popularity))
            self.popularity = nn.Linear(self._popularity.width, 1, bias=False)
            scales = fitted.scales["popularity"]
            starts = [
                column.start * scale.deviation
                for column, scale in zip(config.popularity, scales, strict=True)
            ]
            with torch.no_grad():
                self.popularity.weight.zero_()[0, : len(starts)] = torch.tensor(starts) / _POPULARITY_GAIN
        if config.constant:
            self.constant = nn.Parameter(torch.ones(1))

    def prepare(self, frame: Table) -> Features:
        """Turn N rows of a frame into inputs on the CPU; see `Encoder.prepare`."""
        blocks = self._blocks if self._popularity is None else [*self._blocks, self._popularity]
        return merge([block.prepare(frame) for block in blocks])

    def forward(self, features: Features) -> Tensor:
        """Return (N, D) vectors."""
        tables = dict(self.tables.items())
        x = torch.cat([block.embed(features, tables) for block in self._blocks], dim=1)
        vectors: Tensor = self.projector(self.mlp(x))
        if self.straight is not None:
            vectors = vectors + self.straight(x)
        if self._popularity is not None:
            logits = _POPULARITY_GAIN * self.popularity(self._popularity.embed(features, tables))
            last = self.temperature * logits
        elif self.config.constant:
            last = self.constant.expand(len(x), 1)
        else:
            return vectors
        return torch.cat([vectors, last.to(vectors.dtype)], dim=1)

    @property
    def _text_width(self) -> int:
        config = self._text
        return 0 if config is None else config.width

    @property
    def _text(self) -> TextInput | None:
        history = self.config.history
        return self.config.text or (None if history is None else history.text)

    def texts(self, frame: Table) -> list[Ragged]:
        """Return the hashed words of the frame's rows and of a history's documents, where they are read."""
        found = [
            block.prepare(frame).ragged["text"] for block in self._blocks if isinstance(block, TextBlock)
        ]
        if self.fitted.content is not None and "text" in self.fitted.content.ragged:
            found.append(self.fitted.content.ragged["text"])
        return found

    def weigh_words(self, texts: Sequence[Ragged]) -> None:
        """Set the importance of words to their inverse frequency in the texts that the table will embed."""
        config = self._text
        if config is None:
            return
        table = self.tables["text"]
        assert isinstance(table, TextTable)
        with torch.no_grad():
            table.importance.copy_(first_importance(texts, config))

    def save(self, directory: Path) -> None:
        """Write configuration, vocabularies, contents and weights."""
        directory.mkdir(parents=True, exist_ok=True)
        file = _EncoderFile(
            config=self.config, dimension=self.dimension, side=self.side, temperature=self.temperature
        )
        write_json(directory / _CONFIG, file.model_dump(mode="json"))
        self.fitted.save(directory)
        weights = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        save_file(weights, directory / _WEIGHTS)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what `save` wrote, in evaluation mode; torch's random state is left as it was."""
        file = _EncoderFile.model_validate_json((directory / _CONFIG).read_text(encoding="utf-8"))
        fitted = Fitted.load(directory)
        with torch.device("meta"):
            encoder = cls(file.config, file.dimension, file.side, fitted, file.temperature)
        encoder.load_state_dict(load((directory / _WEIGHTS).read_bytes()), assign=True)
        return encoder.eval()


def _blocks(config: FeatureTowerConfig, side: Side, fitted: Fitted) -> tuple[list[Block], list[int]]:
    """Return the blocks in the order of their columns, and the first columns of embedded texts."""
    blocks = row_blocks(config, side, fitted, "numbers")
    texts = [0] if config.text is not None else []
    if config.history is not None:
        if fitted.doc_ids is None or fitted.content is None:
            raise ValueError("a tower with a history needs the content of documents")
        if config.history.text is not None:
            texts.append(sum(block.width for block in blocks))
        reading = (config.history.max_length, config.history.decay)
        blocks.append(
            HistoryBlock(fitted.doc_ids, fitted.content, history_blocks(config.history, fitted), reading)
        )
    return blocks, texts


def _tables(
    config: FeatureTowerConfig, side: Side, fitted: Fitted, shared: Mapping[str, nn.Module]
) -> dict[str, nn.Module]:
    """Return a table for each name that the blocks use, taking those of the other tower that are shared."""
    readers: list[tuple[RowInputs, Side]] = [(config, side)]
    if config.history is not None:
        readers.append((config.history, Side.DOCUMENT))
    tables: dict[str, nn.Module] = {}
    hashing = [reader.text for reader, _ in readers if reader.text is not None]
    for text in hashing:
        if text.table != hashing[0].table:
            raise ConfigError(
                "text and history.text share a table: their width, buckets and n-grams must be equal"
            )
    if hashing:
        tables["text"] = shared.get("text") or TextTable(torch.ones(hashing[0].buckets), hashing[0].width)
        _check_size("text", tables["text"], hashing[0].buckets, hashing[0].width)
    for reader, whose in readers:
        for column, bag in bags_of(reader, whose):
            name, rows = bag_name(column), len(fitted.vocabularies[bag_name(column)])
            if name not in tables:
                tables[name] = shared.get(name) or BagTable(rows, bag.width)
            _check_size(name, tables[name], rows, bag.width)
    return tables


def _check_size(name: str, table: nn.Module, rows: int, width: int) -> None:
    assert isinstance(table, TextTable | BagTable)
    if tuple(table.embedding.shape) != (rows, width):
        has = " × ".join(map(str, table.embedding.shape))
        raise ConfigError(
            f"inputs that share the table {name!r} want it {rows} × {width} and {has}; give them equal sizes"
        )


def _start_as_identity(weight: Tensor, texts: list[int], width: int) -> None:
    """Zero (free, columns) but for the texts, whose embeddings reach the vector unchanged."""
    nn.init.zeros_(weight)
    with torch.no_grad():
        for first in texts:
            size = min(width, weight.shape[0])
            weight[torch.arange(size), first + torch.arange(size)] = 1.0
