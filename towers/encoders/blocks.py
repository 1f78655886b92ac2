"""The inputs of a feature tower: each prepares its columns of a frame, and turns them into (N, width).

Blocks hold no weights. Those lie in tables that are named by what they embed (`text`, `bag:doc_id`,
`bag:brand`), so that two blocks, or two towers, that name the same table share it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from features.config import Config
from towers.batch import Features, Ragged
from towers.encoders.encoder import Side, Table, column_of, strings_of, texts_of
from towers.encoders.hashing import TextInput, hash_texts
from towers.encoders.numbers import NumberInput, Scale, standardised
from towers.encoders.tables import BagTable, TextTable
from towers.encoders.vocabulary import UNKNOWN, Vocabulary, lists_of

Tables = Mapping[str, nn.Module]


class BagInput(Config):
    """Strings that have an embedding of their own each."""

    width: int = Field(16, ge=1, le=4096, description="Size of an embedding.")
    min_count: int = Field(
        1,
        ge=0,
        description="Fewer clicks before the cut (rows, in a frame without clicks) make a value unknown.",
    )
    max_size: int = Field(1_000_000, ge=1, description="How many of the most frequent values are known.")
    dropout: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Share of values taken for unknown in training, which trains the unknown row.",
    )


class CategoryInput(BagInput):
    """A column of strings, or of lists of strings; a missing value adds nothing."""

    column: str = Field(min_length=1, description="Name of the column.")


class IdInput(BagInput):
    """The row's id; a missing one is unknown."""

    column: str | None = Field(None, min_length=1, description="Name of the column; none: doc_id or user_id.")
    width: int = Field(32, ge=1, le=4096, description="Size of an embedding.")


class Block(ABC):
    """One input of a feature tower."""

    width: int

    @abstractmethod
    def prepare(self, frame: Table) -> Features:
        """Return what the block reads of N rows."""

    @abstractmethod
    def embed(self, features: Features, tables: Tables) -> Tensor:
        """Return (N, width)."""


class TextBlock(Block):
    """The row's text as hashed words."""

    name = "text"

    def __init__(self, config: TextInput, side: Side) -> None:
        self.config = config
        self.width = config.width
        self._side = side

    def prepare(self, frame: Table) -> Features:
        """Hash the query's text, or the document's title and text."""
        fields: list[tuple[list[str], float]]
        if self._side is Side.QUERY:
            fields = [(texts_of(frame, self._side), 1.0)]
        else:
            fields = [
                (strings_of(frame, "title"), self.config.title_weight),
                (strings_of(frame, "text"), 1.0),
            ]
        return Features(ragged={self.name: hash_texts(fields, self.config)})

    def embed(self, features: Features, tables: Tables) -> Tensor:
        """Return the weighted sum of the words' embeddings."""
        table = tables[self.name]
        assert isinstance(table, TextTable)
        embedded: Tensor = table(features.ragged[self.name], self.config.dropout)
        return embedded


class BagBlock(Block):
    """A column of ids or categories."""

    def __init__(self, column: str, config: BagInput, vocabulary: Vocabulary) -> None:
        self.name = bag_name(column)
        self.width = config.width
        self._column = column
        self._dropout = config.dropout
        self._vocabulary = vocabulary
        self._for_missing = [""] if isinstance(config, IdInput) else []  # no known id is empty

    def prepare(self, frame: Table) -> Features:
        """Look the column's strings up."""
        lists = [values or self._for_missing for values in lists_of(column_of(frame, self._column))]
        lengths = np.fromiter(map(len, lists), np.int64, len(lists))
        rows = self._vocabulary.rows([value for values in lists for value in values])
        return Features(
            ragged={self.name: Ragged.from_lengths(torch.from_numpy(rows), torch.from_numpy(lengths))}
        )

    def embed(self, features: Features, tables: Tables) -> Tensor:
        """Return the mean of the values' embeddings."""
        table = tables[self.name]
        assert isinstance(table, BagTable)
        embedded: Tensor = table(features.ragged[self.name], self._dropout)
        return embedded


class NumbersBlock(Block):
    """Number columns."""

    def __init__(self, name: str, numbers: tuple[tuple[NumberInput, Scale], ...]) -> None:
        self.name = name
        self.width = 2 * len(numbers)
        self._numbers = numbers

    def prepare(self, frame: Table) -> Features:
        """Standardise the columns."""
        return Features({self.name: standardised(frame, self._numbers)})

    def embed(self, features: Features, tables: Tables) -> Tensor:
        """Return the numbers and the indicators of those that are missing."""
        return features.dense[self.name]


class HistoryBlock(Block):
    """Earlier clicked documents: the weighted mean of what is known about each."""

    name = "history"

    def __init__(
        self, doc_ids: Vocabulary, content: Features, blocks: list[Block], newest: tuple[int, float]
    ) -> None:
        """Build the block.

        Args:
            doc_ids: The documents whose content is known.
            content: What `blocks` read of them; row `UNKNOWN` stands for every other document.
            blocks: The inputs that describe a document.
            newest: How many of the newest documents are read, and the weight of each beside the next newer.
        """
        self._content = content
        self._device = torch.device("cpu")
        self.width = sum(block.width for block in blocks)
        self._doc_ids = doc_ids
        self._blocks = blocks
        self._length, self._decay = newest

    def prepare(self, frame: Table) -> Features:
        """Look the newest documents up; weights sum to 1 in each row that has any."""
        lists = [history[-self._length :] for history in lists_of(column_of(frame, "history"))]
        lengths = np.fromiter(map(len, lists), np.int64, len(lists))
        rows = self._doc_ids.rows([doc_id for history in lists for doc_id in history])
        ends = np.repeat(lengths.cumsum(), lengths)
        weights = self._decay ** (ends - 1 - np.arange(len(rows)))
        owner = np.repeat(np.arange(len(lists)), lengths)
        weights = weights / np.bincount(owner, weights=weights, minlength=len(lists))[owner]
        ragged = Ragged.from_lengths(
            torch.from_numpy(rows), torch.from_numpy(lengths), torch.from_numpy(weights.astype(np.float32))
        )
        return Features(ragged={self.name: ragged})

    def embed(self, features: Features, tables: Tables) -> Tensor:
        """Embed each distinct document of the batch once, then average by row; no history gives zeros."""
        history = features.ragged[self.name]
        distinct, inverse = torch.unique(history.values, return_inverse=True)
        if len(distinct) == 0:
            distinct = distinct.new_full((1,), UNKNOWN)
        if distinct.device != self._device:
            self._content, self._device = self._content.to(distinct.device), distinct.device
        content = self._content.take(distinct)
        documents = torch.cat([block.embed(content, tables) for block in self._blocks], dim=1)
        return nn.functional.embedding_bag(
            inverse,
            documents,
            history.offsets,
            mode="sum",
            per_sample_weights=history.weights,
            include_last_offset=True,
        )


def bag_name(column: str) -> str:
    """Return the name of the table of a column's values (a module's name may hold no dot)."""
    return f"bag:{column.replace('.', '%2E')}"


def merge(parts: list[Features]) -> Features:
    """Return the parts that several blocks read of the same rows as one."""
    return Features(
        {name: tensor for part in parts for name, tensor in part.dense.items()},
        {name: ragged for part in parts for name, ragged in part.ragged.items()},
    )
