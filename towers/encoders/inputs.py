"""The configuration of a feature tower."""

from typing import Literal

from pydantic import Field, model_validator

from features.config import Config
from towers.encoders.blocks import CategoryInput, IdInput
from towers.encoders.hashing import TextInput
from towers.encoders.numbers import NumberInput, PopularityInput


class RowInputs(Config):
    """What is read of one row of a frame."""

    text: TextInput | None = Field(
        None, description="Hashed words of the query's text, or of title and text."
    )
    id: IdInput | None = Field(None, description="An embedding for each known id.")
    categories: tuple[CategoryInput, ...] = Field((), description="Columns of strings or lists of strings.")
    numbers: tuple[NumberInput, ...] = Field((), description="Number columns that enter the network.")

    @property
    def any(self) -> bool:
        """Whether anything is read at all."""
        return bool(self.text or self.id or self.categories or self.numbers)


class HistoryInput(RowInputs):
    """What is read of each document that a user clicked earlier; averaged over the documents."""

    max_length: int = Field(50, ge=1, le=10_000, description="How many of the newest documents are read.")
    decay: float = Field(
        1.0, gt=0, le=1, description="Weight of a document beside the next newer one; 1 weighs all the same."
    )

    @model_validator(mode="after")
    def _reads_something(self) -> "HistoryInput":
        if not self.any:
            raise ValueError("a history needs at least one of text, id, categories, numbers")
        return self


class FeatureTowerConfig(RowInputs):
    """A feature tower: its inputs and the size of its network."""

    kind: Literal["features"] = Field("features", description="A feature tower.")
    history: HistoryInput | None = Field(
        None,
        description="Earlier clicked documents, known by what the catalogue says of them (queries).",
    )
    popularity: tuple[PopularityInput, ...] = Field(
        (),
        description="Number columns that reach the score on a straight line: clicks, ctr (documents).",
    )
    constant: bool = Field(
        False,
        description="One learned number that weighs the documents' popularity in the score (queries).",
    )
    straight: bool = Field(
        True, description="A linear path beside the network, by which text starts as a bag of words."
    )
    hidden: tuple[int, ...] = Field(
        (128,), description="Sizes of the hidden layers; none makes a linear tower."
    )
    dropout: float = Field(0.1, ge=0, lt=1, description="Dropout after each hidden layer.")

    @model_validator(mode="after")
    def _consistent(self) -> "FeatureTowerConfig":
        if not (self.any or self.history):
            raise ValueError("a feature tower needs at least one of text, id, categories, numbers, history")
        if self.popularity and self.constant:
            raise ValueError(
                "popularity is for the document tower and constant for the query tower; drop one"
            )
        if any(not 1 <= size <= 65_536 for size in self.hidden):
            raise ValueError(f"hidden sizes must be from 1 to 65536; they are {list(self.hidden)}")
        return self
