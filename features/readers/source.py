"""What the configurations of all sources have in common."""

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import model_validator

from features.config import Config


class Source(Config):
    """A log and its catalogue, in one outside format."""

    @abstractmethod
    def files(self) -> list[Path]:
        """Return every file that is read, in reading order.

        Raises:
            SchemaError: If a pattern names no file.
        """

    def described(self) -> dict[str, Any]:
        """Return the configuration without paths: what a manifest records wherever the files lie."""
        described: dict[str, Any] = _without_paths(self.model_dump(mode="json"))
        return described

    @model_validator(mode="before")
    @classmethod
    def _needs_a_catalogue(cls, data: Any) -> Any:
        needed = cls.model_fields.get("documents")
        if (
            isinstance(data, Mapping)
            and needed is not None
            and needed.is_required()
            and not data.get("documents")
        ):
            raise ValueError("a log needs a catalogue; say where it is: documents: {path: …}")
        return data


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items() if key != "path"}
    return value
