"""Vectors of a whole corpus, or of many queries, from trained towers, in batches of bounded memory.

Shapes: N documents, B queries, D embedding.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from features.errors import BundleError
from serving.search import Query
from serving.vectors import Vectors, unusable_rows
from towers.batch import Features
from towers.two_tower import TwoTower

Progress = Callable[[int, int], None]
"""Called with (rows done, rows in all)."""

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


def encode_searches(towers: TwoTower, queries: Sequence[Query]) -> Vectors:
    """Return (B, D) float32 vectors of checked queries, in their order; the one seam of all searches.

    Raises:
        BundleError: If a vector is not finite or absurdly long.
    """
    columns = {
        "query_text": [query.text for query in queries],
        "history": [list(query.history) for query in queries],
        "user_id": [query.user_id for query in queries],
    }
    frame = pd.DataFrame(columns, dtype=object)
    if len(queries) > _BATCH_ROWS:
        return encode_queries(towers, frame)
    with torch.inference_mode():
        features = towers.prepare_queries(frame).to(next(towers.parameters()).device)
        return _usable_queries(towers.encode_queries(features).cpu().numpy())


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
