"""Which Milvus collection a bundle names, and reaching it. Light: knows neither faiss nor torch.

pymilvus is imported where it is needed, since it is an extra (`milvus`).
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from features.errors import BundleError, ConfigError, TwotowerError

FILE = "milvus.json"
"""What a bundle's folder `index/` holds of a collection."""

_NAME = re.compile(r"twotower_[0-9a-f]{32}")
_CONNECT_SECONDS = 10.0
_START_SECONDS = 60.0  # Milvus Lite runs in this process, which may have little of a processor

URI_VARIABLE = "TWOTOWER_MILVUS_URI"
TOKEN_VARIABLE = "TWOTOWER_MILVUS_TOKEN"


class IndexUnavailableError(TwotowerError):
    """The service that holds the vectors does not answer."""


@dataclass(frozen=True)
class Collection:
    """What a bundle records of its collection, and reads back; `moments` are its fields of timestamps."""

    uri: str
    collection: str
    rows: int
    dimension: int
    moments: list[str]
    index_type: str
    search: dict[str, int]
    timeout_seconds: float

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what a bundle recorded.

        Raises:
            BundleError: If the file is damaged.
        """
        try:
            stored = cls(**json.loads(path.read_text(encoding="utf-8")))
            if not _NAME.fullmatch(stored.collection):
                raise ValueError(f"{stored.collection!r} is none of twotower's")
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise BundleError(f"{path} does not name a collection: {error}") from None
        return stored

    @property
    def address(self) -> str:
        """Where it is now: the environment goes before what the bundle says."""
        return os.environ.get(URI_VARIABLE, self.uri)


def connect(uri: str) -> Any:
    """Return a `pymilvus.MilvusClient`.

    Raises:
        ConfigError: If pymilvus is not installed, or Milvus cannot be reached.
    """
    try:
        from pymilvus import MilvusClient
    except ImportError:
        raise ConfigError("index.milvus needs pymilvus; install the extra `milvus`") from None
    seconds = _START_SECONDS if uri.endswith(".db") else _CONNECT_SECONDS
    with refusing(uri):
        return MilvusClient(uri, token=os.environ.get(TOKEN_VARIABLE, ""), timeout=seconds)


@contextlib.contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn what pymilvus makes of a wrong address or parameter into one line."""
    try:
        yield
    except failures() as error:
        raise ConfigError(f"{what}: {reason(error)}; check the address and index.milvus") from error


def failures() -> tuple[type[Exception], ...]:
    """Return what pymilvus raises: its own error, and that of gRPC for a deadline, a right or a method."""
    import grpc  # type: ignore[import-untyped]
    from pymilvus.exceptions import MilvusException

    return MilvusException, grpc.RpcError


def reason(error: Exception) -> str:
    """Return one line of what Milvus, or gRPC, said."""
    details = getattr(error, "details", None)
    said = getattr(error, "message", "") or (details() if callable(details) else "")
    return " ".join(str(said or error).split())[:200]


def row_count(client: Any, collection: str) -> int:
    """Return how many rows a collection has."""
    return int(client.get_collection_stats(collection)["row_count"])
