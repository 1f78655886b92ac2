"""Vectors of a whole corpus, or of many queries, from trained towers, in batches of bounded memory.

Shapes: N documents, B queries, D embedding.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from features.errors import BundleError
from serving.onnx import OnnxQueries
from serving.search import Query
from serving.vectors import Vectors, unusable_rows
from towers.batch import Features
from towers.two_tower import TwoTower

Progress = Callable[[int, int], None]
"""Called with (rows done, rows in all)."""

KEPT_QUERIES = 10_000
"""Vectors of queries that are kept."""

KEPT_CHARACTERS = 200
"""Longest text and user id of those, together. Longer ones come back seldom, and 10,000 of 2,000 characters
took 85 MB; as it is all take 10 to 18 MB at 128 dimensions."""

_PREPARED_ROWS = 16_384  # prepared inputs are held for this many rows at a time
_BATCH_ROWS = 256


def encode_documents(
    towers: TwoTower, documents: pd.DataFrame, *, progress: Progress | None = None
) -> Vectors:
    """Return (N, D) float32 vectors of a document frame, in its row order.

    Raises:
        BundleError: If a vector is not finite or absurdly long; names the document.
    """
    vectors = _encode(towers, documents, towers.prepare_documents, towers.encode_documents, progress)
    refused = unusable_rows(vectors)
    if refused.size:
        doc_id = documents["doc_id"].iloc[int(refused[0])]
        raise BundleError(
            f"document {doc_id!r} has a vector that is not finite or is absurdly long ({refused.size} of "
            f"{len(documents)} documents do); look for unusual numbers in its features, or train again"
        )
    return vectors


def encode_queries(towers: TwoTower, queries: pd.DataFrame, *, progress: Progress | None = None) -> Vectors:
    """Return (B, D) float32 vectors of a query frame, in its row order.

    Raises:
        BundleError: If a vector is not finite or absurdly long.
    """
    return _usable_queries(_encode(towers, queries, towers.prepare_queries, towers.encode_queries, progress))


class QueryEncoder:
    """Turns checked queries into vectors: the one way from a search to the index. Safe from many threads.

    The vectors of the last short texts are kept, since much of a day's traffic is the same few.

    Args:
        towers: In evaluation mode.
        graph: The query tower as an ONNX graph; None: the tower itself encodes.
        kept: How many queries' vectors are kept; 0 keeps none.

    Attributes:
        hits: Queries whose vector was still there.
        misses: Queries that were encoded.
    """

    def __init__(self, towers: TwoTower, graph: OnnxQueries | None = None, kept: int = KEPT_QUERIES) -> None:
        self.hits = self.misses = 0
        self._towers, self._graph, self._most = towers, graph, kept
        self._kept: OrderedDict[Query, Vectors] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def note(self) -> str:
        """Which of the two encodes, in words."""
        return "torch" if self._graph is None else "ONNX"

    def encode(self, queries: Sequence[Query]) -> Vectors:
        """Return (B, D) float32 vectors of queries, in their order.

        Raises:
            BundleError: If a vector is not finite or absurdly long.
        """
        found = [self._recall(query) for query in queries]
        missing = list(dict.fromkeys(q for q, vector in zip(queries, found, strict=True) if vector is None))
        fresh = dict(zip(missing, self._encoded(missing), strict=True)) if missing else {}
        self._keep(fresh)
        vectors = [fresh[q] if v is None else v for q, v in zip(queries, found, strict=True)]
        return np.stack(vectors) if vectors else np.empty((0, _dimension(self._towers)), dtype=np.float32)

    def _encoded(self, queries: Sequence[Query]) -> Vectors:
        if self._graph is not None:
            texts = [query.text or "" for query in queries]
            starts = range(0, len(texts), _BATCH_ROWS)
            parts = [self._graph.encode(texts[start : start + _BATCH_ROWS]) for start in starts]
            return _usable_queries(np.concatenate(parts))
        device = next(self._towers.parameters()).device
        with torch.inference_mode():
            features = self._towers.prepare_queries(columns_of(queries)).to(device)
            encoded = torch.cat([self._towers.encode_queries(part) for part in _parts(features)])
            return _usable_queries(encoded.cpu().numpy())

    def _recall(self, query: Query) -> Vectors | None:
        with self._lock:
            vector = self._kept.get(query)
            if vector is None:
                self.misses += 1
            else:
                self.hits += 1
                self._kept.move_to_end(query)
        return vector

    def _keep(self, fresh: Mapping[Query, Vectors]) -> None:
        with self._lock:
            for query, vector in fresh.items():
                if _is_short(query):
                    self._kept[query] = vector.copy()  # a part of its batch would keep the whole
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)


def _is_short(query: Query) -> bool:
    return not query.history and len(query.text or "") + len(query.user_id or "") <= KEPT_CHARACTERS


def columns_of(queries: Sequence[Query]) -> dict[str, list[Any]]:
    """Return queries as the columns that query towers read."""
    return {
        "query_text": [query.text for query in queries],
        "history": [query.history for query in queries],
        "user_id": [query.user_id for query in queries],
    }


def _parts(features: Features) -> Iterable[Features]:
    if len(features) <= _BATCH_ROWS:
        return [features]
    return (features.take(rows) for rows in torch.split(torch.arange(len(features)), _BATCH_ROWS))


def _usable_queries(vectors: Vectors) -> Vectors:
    refused = unusable_rows(vectors)
    if refused.size:
        raise BundleError(f"query {int(refused[0])} of {len(vectors)} has no finite vector; train again")
    return vectors


def _encode(
    towers: TwoTower,
    frame: pd.DataFrame,
    prepare: Callable[[pd.DataFrame], Features],
    encode: Callable[[Features], Tensor],
    progress: Progress | None,
) -> Vectors:
    if towers.training:
        raise ValueError("the towers are in training mode, where dropout is random; call eval() first")
    device = next(towers.parameters()).device
    done, parts = 0, []
    with torch.inference_mode():
        for start in range(0, len(frame), _PREPARED_ROWS):
            prepared = prepare(frame.iloc[start : start + _PREPARED_ROWS].reset_index(drop=True))
            part: Vectors | None = None
            for rows in torch.split(_longest_first(prepared), _BATCH_ROWS):
                vectors = encode(prepared.take(rows).to(device)).float().cpu().numpy()
                if part is None:
                    part = np.empty((len(prepared), vectors.shape[1]), dtype=np.float32)
                part[rows.numpy()] = vectors
                done += len(rows)
                if progress is not None:
                    progress(done, len(frame))
            if part is not None:
                parts.append(part)
    return np.concatenate(parts) if parts else np.empty((0, _dimension(towers)), dtype=np.float32)


def _longest_first(features: Features) -> Tensor:
    """Order rows by the size of their lists, so that a batch of texts carries little padding."""
    lengths = torch.zeros(len(features), dtype=torch.int64)
    for ragged in features.ragged.values():
        lengths += ragged.lengths
    return torch.argsort(lengths, descending=True, stable=True)


def _dimension(towers: TwoTower) -> int:
    return int(towers.document.dimension)
