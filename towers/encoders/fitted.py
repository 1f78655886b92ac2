"""What a feature tower learns from frames before training: vocabularies, scales, the content of documents."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import pandas as pd
from safetensors.torch import load, save_file
from torch import Tensor

from features.artifact import write_json
from features.config import Config
from towers.batch import Features, Ragged
from towers.encoders.blocks import BagBlock, BagInput, Block, NumbersBlock, TextBlock, bag_name, merge
from towers.encoders.encoder import Side, column_of, strings_of
from towers.encoders.inputs import FeatureTowerConfig, HistoryInput, RowInputs
from towers.encoders.numbers import NumberInput, Scale, fit_scale
from towers.encoders.vocabulary import Vocabulary, build_vocabulary, count_entries, lists_of

_CONTENT = "history.safetensors"
_FITTED = "fitted.json"


class _FittedFile(Config):
    vocabularies: dict[str, list[str]]
    scales: dict[str, list[Scale]]
    doc_ids: list[str] | None


@dataclass
class Fitted:
    """Everything a feature tower needs beside its weights.

    Attributes:
        vocabularies: By the name of the table they index.
        scales: By the name of the block, one for each of its columns.
        doc_ids: The documents that a history may name, where the tower reads one.
        content: What the history's blocks read of them; row 0 for every other document.
        known: Vocabularies to take over instead of learning them, because their tables are shared.
    """

    vocabularies: dict[str, Vocabulary] = field(default_factory=dict)
    scales: dict[str, tuple[Scale, ...]] = field(default_factory=dict)
    doc_ids: Vocabulary | None = None
    content: Features | None = None
    known: Mapping[str, Vocabulary] = field(default_factory=dict)

    def learn_bag(self, column: str, config: BagInput, frame: pd.DataFrame) -> None:
        """Add the vocabulary of a column, unless its table has one already."""
        if bag_name(column) in self.known:
            self.vocabularies[bag_name(column)] = self.known[bag_name(column)]
        elif bag_name(column) not in self.vocabularies:
            clicks = frame["clicks"].fillna(0).astype(float).tolist() if "clicks" in frame.columns else None
            counts = count_entries(lists_of(column_of(frame, column)), clicks)
            self.vocabularies[bag_name(column)] = build_vocabulary(
                counts, min_count=config.min_count, max_size=config.max_size
            )

    def learn_numbers(self, name: str, numbers: Iterable[NumberInput], frame: pd.DataFrame) -> None:
        """Add the scales of a block's columns."""
        self.scales[name] = tuple(fit_scale(frame, number) for number in numbers)

    def scaled(self, name: str, numbers: tuple[NumberInput, ...]) -> tuple[tuple[NumberInput, Scale], ...]:
        """Return a block's columns with their scales."""
        return tuple(zip(numbers, self.scales[name], strict=True))

    def save(self, directory: Path) -> None:
        """Write JSON, and the documents' content as safetensors."""
        file = _FittedFile(
            vocabularies={name: list(vocabulary.entries) for name, vocabulary in self.vocabularies.items()},
            scales={name: list(scales) for name, scales in self.scales.items()},
            doc_ids=None if self.doc_ids is None else list(self.doc_ids.entries),
        )
        write_json(directory / _FITTED, file.model_dump())
        if self.content is not None:
            save_file(_to_tensors(self.content), directory / _CONTENT)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what `save` wrote."""
        file = _FittedFile.model_validate(json.loads((directory / _FITTED).read_text(encoding="utf-8")))
        return cls(
            {name: Vocabulary(entries) for name, entries in file.vocabularies.items()},
            {name: tuple(scales) for name, scales in file.scales.items()},
            None if file.doc_ids is None else Vocabulary(file.doc_ids),
            None if file.doc_ids is None else _from_tensors(load((directory / _CONTENT).read_bytes())),
        )


def fit(
    config: FeatureTowerConfig,
    side: Side,
    frame: pd.DataFrame,
    documents: pd.DataFrame,
    known: Mapping[str, Vocabulary],
) -> Fitted:
    """Return what a tower has to know of its frame.

    Args:
        config: The tower's inputs.
        side: Whether `frame` holds queries or documents.
        frame: The rows that the tower will read in training.
        documents: The catalogue, which describes the documents of a history.
        known: Vocabularies of tables that are shared.
    """
    fitted = Fitted(known=known)
    if config.history is not None:
        _learn_row(fitted, "history", config.history, Side.DOCUMENT, documents)
        fitted.doc_ids = Vocabulary(strings_of(documents, "doc_id"))
        # One row of missing values before the first: a document that the catalogue did not have.
        catalogue = documents.reset_index(drop=True).reindex(range(-1, len(documents)))
        fitted.content = merge([block.prepare(catalogue) for block in history_blocks(config.history, fitted)])
    _learn_row(fitted, "numbers", config, side, frame)
    fitted.learn_numbers("popularity", config.popularity, frame)
    return fitted


def _learn_row(fitted: Fitted, name: str, config: RowInputs, side: Side, frame: pd.DataFrame) -> None:
    for column, bag in bags_of(config, side):
        fitted.learn_bag(column, bag, frame)
    fitted.learn_numbers(name, config.numbers, frame)


def bags_of(config: RowInputs, side: Side) -> list[tuple[str, BagInput]]:
    """Return the columns that have vocabularies, ids first."""
    ids: list[tuple[str, BagInput]] = (
        [] if config.id is None else [(config.id.column or side.id_column, config.id)]
    )
    return [*ids, *((category.column, category) for category in config.categories)]


def row_blocks(config: RowInputs, side: Side, fitted: Fitted, numbers: str) -> list[Block]:
    """Return the blocks that read one row; `numbers` names the block of the number columns."""
    blocks: list[Block] = [] if config.text is None else [TextBlock(config.text, side)]
    blocks += [
        BagBlock(column, bag, fitted.vocabularies[bag_name(column)]) for column, bag in bags_of(config, side)
    ]
    if config.numbers:
        blocks.append(NumbersBlock(numbers, fitted.scaled(numbers, config.numbers)))
    return blocks


def history_blocks(config: HistoryInput, fitted: Fitted) -> list[Block]:
    """Return the blocks that read one document of a history."""
    return row_blocks(config, Side.DOCUMENT, fitted, "history")


def _to_tensors(features: Features) -> dict[str, Tensor]:
    tensors = {f"dense/{name}": tensor for name, tensor in features.dense.items()}
    for name, ragged in features.ragged.items():
        tensors |= {f"values/{name}": ragged.values, f"offsets/{name}": ragged.offsets}
        if ragged.weights is not None:
            tensors[f"weights/{name}"] = ragged.weights
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _from_tensors(tensors: Mapping[str, Tensor]) -> Features:
    named = {tuple(key.split("/", 1)): tensor for key, tensor in tensors.items()}
    dense = {name: tensor for (part, name), tensor in named.items() if part == "dense"}
    names = [name for part, name in named if part == "values"]
    return Features(
        dense,
        {
            name: Ragged(named["values", name], named["offsets", name], named.get(("weights", name)))
            for name in sorted(names)
        },
    )
