"""The documents' vectors in Milvus, for corpora past one machine: what `serving.index` does, over a service.

A bundle has one collection, which is written once and never changed; bundles of equal vectors have the same
one, in whichever store they are (`serving.milvus_claims`). Its name is in the bundle, so that a bundle is
searched with its own vectors only; canaries and the number of rows are checked as for FAISS.
Filters run in Milvus, on the fields stored beside each vector, and every answer is held against the
catalogue: a row that the selection forbids is an error, never a hit.

pymilvus is imported where it is needed, since it is an extra (`milvus`).

Shapes: B queries, N documents, D embedding, k neighbours.
"""

import contextlib
import json
import weakref
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field

from features.artifact import write_json
from features.config import Config
from features.errors import BundleError
from serving.filters import Selection
from serving.index import Neighbours, SearchParameter
from serving.milvus_claims import claim, claims
from serving.milvus_collection import (
    FILE,
    TOKEN_VARIABLE,
    URI_VARIABLE,
    Collection,
    IndexUnavailableError,
    connect,
    failures,
    reason,
    refusing,
    row_count,
)
from serving.milvus_fields import LISTED_ROWS, batches, create_collection, expression, fingerprint
from serving.vectors import Vectors, check_vectors

MAX_K = 16_384
"""Most neighbours that Milvus returns."""

_REPLY_BYTES = 8_000_000  # of vectors read back by one call; Milvus bounds its replies


class MilvusConfig(Config):
    """Where the vectors are kept, and how they are indexed there."""

    uri: str = Field(
        min_length=1,
        description=f"http://host:19530 of a server, or a file (*.db) of Milvus Lite; {URI_VARIABLE} goes "
        f"before it when a bundle is opened, and {TOKEN_VARIABLE} holds the token where one is needed",
    )
    index_type: Literal["FLAT", "IVF_FLAT", "HNSW", "AUTOINDEX"] = Field(
        "FLAT", description="FLAT is exact; the others trade recall for time"
    )
    build: dict[str, int] = Field(
        default_factory=dict, description="parameters of the index, such as nlist: 1024 or M: 32"
    )
    search: dict[str, int] = Field(
        default_factory=dict, description="parameters of a search, such as nprobe: 16 or ef: 128"
    )
    timeout_seconds: float = Field(10.0, gt=0, le=3_600, description="longest wait for one search")


class MilvusIndex:
    """A collection that answers like `serving.index.Index`.

    Args:
        client: A `pymilvus.MilvusClient`.
        stored: Which collection, and how it is searched.
    """

    file = FILE

    def __init__(self, client: Any, stored: Collection) -> None:
        self._client = client
        self._end = weakref.finalize(self, client.close)
        self._stored = stored
        self.collection = stored.collection
        self.note = f"Milvus collection {stored.collection} ({stored.index_type})"

    @classmethod
    def create(cls, document_ND: Vectors, documents: pd.DataFrame, config: MilvusConfig) -> Self:
        """Write vectors and catalogue fields into a collection and index it.

        The collection's name is a digest of what it holds: one that is there and whole is taken as it is, one
        that an interrupted export left is written anew.

        Args:
            document_ND: Finite float32, in the catalogue's order.
            documents: The catalogue, with unique `doc_id`.
            config: Where, and which index.

        Raises:
            ConfigError: If pymilvus is not installed, or Milvus cannot be reached or refuses the index.
            ValueError: If `check_vectors` refuses the vectors.
        """
        checked_ND = check_vectors(document_ND, document_ND.shape[1])
        stored = Collection(
            uri=config.uri,
            collection=f"twotower_{fingerprint(checked_ND, documents, config.index_type, config.build)}",
            rows=len(documents),
            dimension=checked_ND.shape[1],
            moments=[str(name) for name in documents.select_dtypes(["datetimetz", "datetime"])],
            index_type=config.index_type,
            search=dict(config.search),
            timeout_seconds=config.timeout_seconds,
        )
        client = connect(config.uri)
        made = cls(client, stored)
        claimed: list[str] = []
        with refusing(f"index.milvus: {config.uri}"):
            if client.has_collection(stored.collection):
                if row_count(client, stored.collection) == stored.rows:
                    client.load_collection(stored.collection)
                    return made
                claimed = _drop_unfinished(client, stored.collection)
            try:
                create_collection(client, stored, config.build)
                for alias in claimed:
                    client.create_alias(stored.collection, alias)
                for batch in batches(checked_ND, documents):
                    client.insert(stored.collection, batch)
                client.flush(stored.collection)
                client.load_collection(stored.collection)
            except BaseException:
                if not claimed:
                    client.drop_collection(stored.collection)
                raise
        return made

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the collection that a bundle's file names.

        Raises:
            BundleError: If the file is damaged, or the collection is gone or has another number of rows.
            ConfigError: If pymilvus is not installed, or Milvus cannot be reached.
        """
        stored = Collection.read(path)
        uri = stored.address
        client = connect(uri)
        opened = cls(client, stored)
        with refusing(uri):
            if not client.has_collection(stored.collection):
                raise BundleError(f"Milvus at {uri} has no collection {stored.collection}; export again")
            client.load_collection(stored.collection)
            rows = row_count(client, stored.collection)
            if rows != stored.rows:
                raise BundleError(
                    f"collection {stored.collection} has {rows} rows; the bundle has {stored.rows}"
                )
        return opened

    @property
    def dimension(self) -> int:
        """D: length of a vector."""
        return self._stored.dimension

    @property
    def size(self) -> int:
        """N: number of documents."""
        return self._stored.rows

    @property
    def is_lossless(self) -> bool:
        """Whether `vectors` are the very vectors that were added: Milvus keeps them beside any index."""
        return True

    @property
    def stored_bytes(self) -> int:
        """Size of the file that `write` makes; the vectors are elsewhere."""
        return len(json.dumps(asdict(self._stored)))

    def set_parameters(self, parameters: dict[SearchParameter, int]) -> None:
        """Accept no FAISS parameter; a collection is searched as `MilvusConfig.search` says.

        Raises:
            ValueError: If there is any.
        """
        if parameters:
            raise ValueError(f"this index has no search parameter {next(iter(parameters))!r}")

    def search(self, query_BD: Vectors, k: int, selection: Selection | None = None) -> list[Neighbours]:
        """Return the k nearest documents of each query, as `serving.index.Index.search` does.

        Raises:
            ValueError: If `check_vectors` refuses the queries, k is not from 1 to `MAX_K`, or the selection
                is of another catalogue.
            IndexUnavailableError: If Milvus does not answer in time.
            BundleError: If Milvus returns a row that there is not or that the selection forbids, or a score
                that is not finite.
        """
        checked_BD = check_vectors(query_BD, self.dimension)
        k = min(k, self.size)
        if not 1 <= k <= MAX_K:
            raise ValueError(f"k = {k}; it must be from 1 to {MAX_K}")
        if selection is not None and len(selection.mask) != self.size:
            raise ValueError(f"a selection of {len(selection.mask)} documents; the index has {self.size}")
        if len(checked_BD) == 0:
            return []
        if selection is not None and selection.count == 0:
            nothing = Neighbours(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32))
            return [nothing for _ in checked_BD]
        condition = "" if selection is None else expression(selection, self._stored.moments)
        found = self._ask(checked_BD, k, condition)
        return [_neighbours(hits, self.size, selection) for hits in found]

    def way(self, selection: Selection) -> Literal["whole", "rows", "filters"]:
        """Return how Milvus is told of a selection: not at all, by its rows, or by the filters themselves."""
        forbidden = len(selection.mask) - selection.count
        if not forbidden:
            return "whole"
        return "rows" if min(selection.count, forbidden) <= LISTED_ROWS else "filters"

    def vectors(self, rows: npt.NDArray[np.int64]) -> Vectors:
        """Return (n, D) vectors of catalogue rows.

        Raises:
            IndexUnavailableError: If Milvus does not answer in time.
            BundleError: If it lacks one of them.
        """
        wanted = [int(row) for row in rows]
        most = max(1, _REPLY_BYTES // (4 * self.dimension))
        by_row: dict[int, Any] = {}
        for start in range(0, len(wanted), most):
            with self._answering():
                found = self._client.get(
                    self._stored.collection,
                    ids=wanted[start : start + most],
                    output_fields=["vector"],
                    timeout=self._stored.timeout_seconds,
                )
            by_row |= {int(entry["row"]): entry["vector"] for entry in found}
        if not by_row.keys() >= {*wanted}:
            raise BundleError(f"collection {self.collection} lacks rows; export the bundle again")
        return np.array([by_row[row] for row in wanted], dtype=np.float32).reshape(-1, self.dimension)

    def write(self, path: Path) -> None:
        """Write the name of the collection, which is all that a bundle holds of it."""
        write_json(path, asdict(self._stored))

    def claim(self, bundles: Path) -> None:
        """Say that bundles in a folder use the collection, so that no other store drops it."""
        claim(self._client, self._stored.collection, bundles)

    def close(self) -> None:
        """End the connection."""
        self._end()

    def _ask(self, query_BD: Vectors, k: int, condition: str) -> list[list[dict[str, Any]]]:
        with self._answering():
            found: list[list[dict[str, Any]]] = self._client.search(
                self._stored.collection,
                data=list(query_BD),
                limit=k,
                filter=condition,
                output_fields=["row"],
                search_params={"metric_type": "IP", "params": self._stored.search},
                timeout=self._stored.timeout_seconds,
            )
        return found

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except failures() as error:
            raise IndexUnavailableError(
                f"Milvus does not answer for {self._stored.collection}: {reason(error)}"
            ) from error


def _drop_unfinished(client: Any, collection: str) -> list[str]:
    """Delete a collection that lacks rows, and return the claims on it."""
    claimed = claims(client, collection)
    for alias in claimed:  # Milvus drops no collection that has one
        client.drop_alias(alias)
    client.drop_collection(collection)
    return claimed


def _neighbours(hits: list[dict[str, Any]], size: int, selection: Selection | None) -> Neighbours:
    rows = np.array([hit["row"] for hit in hits], dtype=np.int64)
    scores = np.array([hit["distance"] for hit in hits], dtype=np.float32)
    if not ((rows >= 0) & (rows < size) & np.isfinite(scores)).all() or len(set(rows.tolist())) != len(rows):
        raise BundleError("Milvus returned what is not in the bundle; export the bundle again")
    if selection is not None and not selection.mask[rows].all():
        raise BundleError("Milvus returned a document that the filters forbid; export the bundle again")
    order = np.lexsort((rows, -scores))
    return Neighbours(rows[order], scores[order])
