"""The words of the simulated shop, read from `vocabulary.yaml` and checked."""

import functools
from importlib import resources
from typing import Annotated

import yaml
from pydantic import Field

from features.config import Config


class Category(Config):
    """One kind of thing, with the words that shoppers use for it."""

    plural: str | None = Field(None, description="Plural of the name; `None` adds an s.")
    also: tuple[str, ...] = Field(
        min_length=1, description="Other words of shoppers, seldom in the catalogue."
    )
    foreign: tuple[str, ...] = Field((), description="Names in other scripts, emoji among them.")
    attributes: dict[str, tuple[str, ...]] = Field(description="Attribute name to its values.")
    about: str = Field(description="A sentence that describes the thing.")


class Group(Config):
    """Categories that share brands, a price range and attributes."""

    brands: dict[str, str | None] = Field(min_length=1, description="Brand to the short name shoppers use.")
    price: tuple[float, float] = Field(description="Lowest and highest price.")
    attributes: dict[str, tuple[str, ...]] = Field(description="Attributes of every category in the group.")
    sentences: tuple[str, ...] = Field(min_length=1, description="Sentences that fit any of its listings.")
    categories: dict[str, Category] = Field(min_length=1, description="Category by its name.")


class Use(Config):
    """A need that names no category."""

    say: tuple[str, ...] = Field(min_length=1, description="Ways to say it.")
    want: dict[str, Annotated[int, Field(ge=1, le=3)]] = Field(description="Category to how well it serves.")


class Vocabulary(Config):
    """All words of the shop."""

    alternatives: dict[str, tuple[str, ...]] = Field(description="Attribute value to what shoppers type.")
    fillers: dict[str, tuple[str, ...]] = Field(description="Words without meaning to the shop.")
    sentences: tuple[str, ...] = Field(min_length=1, description="Sentence templates for any listing.")
    series: tuple[str, ...] = Field(min_length=1, description="Names of product lines.")
    groups: dict[str, Group] = Field(description="Group by its name.")
    uses: tuple[Use, ...] = Field(description="Needs that name no category.")

    @functools.cached_property
    def categories(self) -> dict[str, Category]:
        """Every category by name, in the order of the file."""
        return {name: entry for group in self.groups.values() for name, entry in group.categories.items()}

    @functools.cached_property
    def group_of(self) -> dict[str, Group]:
        """The group of each category."""
        return {name: group for group in self.groups.values() for name in group.categories}

    @functools.cached_property
    def brands(self) -> dict[str, str | None]:
        """Every brand with its short name, in the order of the file."""
        return {name: short for group in self.groups.values() for name, short in group.brands.items()}

    def attributes_of(self, category: str) -> dict[str, tuple[str, ...]]:
        """Return the attributes of a category with all values that its listings may have."""
        own, shared = self.categories[category].attributes, self.group_of[category].attributes
        return {name: (*own.get(name, ()), *shared.get(name, ())) for name in {**own, **shared}}

    def plural_of(self, category: str) -> str:
        """Return the plural of a category's name."""
        return self.categories[category].plural or f"{category}s"


@functools.cache
def vocabulary() -> Vocabulary:
    """Return the shop's words."""
    text = resources.files("features.shop").joinpath("vocabulary.yaml").read_text(encoding="utf-8")
    return Vocabulary.model_validate(yaml.safe_load(text))
