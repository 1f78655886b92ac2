"""Examples → batches: which rows, in which order, with which negatives.

A batch is a pure function of (seed, stage, step): nothing here keeps a random state, so the data position in
a checkpoint is two integers.

Shapes: E examples, B queries, N documents, N ≥ B; U distinct queries, V distinct documents of a batch.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from features.errors import ConfigError
from towers.batch import Features, Ragged
from towers.data import Ints, Lists, TrainingData
from towers.negatives import Scope, excluded_pairs, log_expected_columns

Anything = NDArray[np.generic]


@dataclass(frozen=True)
class Batch:
    """One training step's input.

    Attributes:
        query_rows: (U,) distinct rows of the prepared queries to encode.
        query_place: (B,) where in them each row's query is.
        document_rows: (V,) distinct rows of the prepared documents to encode.
        document_place: (N,) where in them each column's document is.
        excluded: (B, N) pairs that may not be negatives.
        log_q: (N,) log of the expected number of columns of each document.
        weight: (B,) weight of each row.
    """

    query_rows: Tensor
    query_place: Tensor
    document_rows: Tensor
    document_place: Tensor
    excluded: Tensor
    log_q: Tensor
    weight: Tensor

    def to(self, device: torch.device | str) -> "Batch":
        """Return the same batch on another device; the rows to encode stay where the prepared inputs are."""
        return Batch(
            self.query_rows,
            self.query_place.to(device),
            self.document_rows,
            self.document_place.to(device),
            self.excluded.to(device),
            self.log_q.to(device),
            self.weight.to(device),
        )


class Batches:
    """The batches of one stage.

    Each epoch visits the examples in an order drawn from (seed, epoch) and drops the last, short batch, whose
    gradient would be noisier than the others'; another epoch drops other examples.
    """

    def __init__(
        self,
        data: TrainingData,
        batch_size: int,
        unclicked_per_query: int,
        scope: Scope,
        seed: tuple[int, ...],
    ) -> None:
        """Prepare.

        Args:
            data: Training rows; `query` refers to the rows that will be encoded.
            batch_size: B.
            unclicked_per_query: At most so many unclicked documents of each row become columns.
            scope: Who sees an unclicked column.
            seed: Non-negative numbers that name this stage of this training.

        Raises:
            ConfigError: If there are fewer examples than one batch needs.
        """
        if len(data) < batch_size:
            raise ConfigError(
                f"batch_size is {batch_size} but there are only {len(data)} training examples; "
                f"set batch_size to at most {len(data)}, or bring more clicks"
            )
        self.per_epoch = len(data) // batch_size
        self._data = data
        self._batch_size = batch_size
        self._unclicked = unclicked_per_query
        self._scope: Scope = scope
        self._seed = seed
        self._order = lru_cache(maxsize=1)(self._shuffled)

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, counted from 0 over the whole stage."""
        epoch, position = divmod(step, self.per_epoch)
        rows = self._order(epoch)[position * self._batch_size : (position + 1) * self._batch_size]
        random = np.random.default_rng([*self._seed, epoch, 1 + position])
        unclicked, owner = sample_lists(self._data.unclicked, rows, self._unclicked, random)
        document_N = np.concatenate([self._data.document[rows], unclicked])
        query_rows, query_place = np.unique(self._data.query[rows], return_inverse=True)
        document_rows, document_place = np.unique(document_N, return_inverse=True)
        excluded = excluded_pairs(
            self._data.query_key[rows], document_N, owner, self._data.catalogue, self._scope
        )
        log_q = log_expected_columns(document_N, len(rows), self._scope, self._data.catalogue)
        return Batch(
            query_rows=torch.from_numpy(query_rows),
            query_place=torch.from_numpy(query_place),
            document_rows=torch.from_numpy(document_rows),
            document_place=torch.from_numpy(document_place),
            excluded=torch.from_numpy(excluded),
            log_q=torch.from_numpy(log_q),
            weight=torch.from_numpy(self._data.weight[rows]),
        )

    def _shuffled(self, epoch: int) -> Ints:
        return np.random.default_rng([*self._seed, epoch]).permutation(len(self._data))


def sample_lists(lists: Lists, rows: Ints, at_most: int, random: np.random.Generator) -> tuple[Ints, Ints]:
    """Draw without replacement from each of the lists at `rows`.

    Returns:
        The drawn values, row after row, and the position in `rows` of each.
    """
    if at_most == 0:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    values, owner = lists.take(rows)
    order = np.lexsort((random.random(len(values)), owner))
    lengths = np.bincount(owner, minlength=len(rows))
    rank = np.arange(len(values)) - (np.cumsum(lengths) - lengths)[owner]
    chosen = order[rank < at_most]
    return values[chosen], owner[chosen]


def distinct_rows(features: Features) -> tuple[Ints, Ints]:
    """Find the rows that an encoder cannot tell apart, so that each is encoded once.

    Returns:
        The first row of each group, ascending, and for every row the number of its group.
    """
    code = np.zeros(len(features), dtype=np.int64)
    parts = [_dense_codes(tensor) for _, tensor in sorted(features.dense.items())]
    parts += [_ragged_codes(ragged) for _, ragged in sorted(features.ragged.items())]
    for part in parts:
        _, code = np.unique(code * (int(part.max(initial=0)) + 1) + part, return_inverse=True)
    _, first, group = np.unique(code, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    number = np.empty_like(order)
    number[order] = np.arange(len(order))
    return first[order], number[group]


def _dense_codes(tensor: Tensor) -> Ints:
    return _byte_codes(tensor.reshape(len(tensor), -1).numpy())


def _ragged_codes(ragged: Ragged) -> Ints:
    """Number the distinct lists: those of one length form a matrix."""
    lengths, offsets = ragged.lengths.numpy(), ragged.offsets.numpy()
    values = ragged.values.numpy()
    code, used = np.zeros(len(lengths), dtype=np.int64), 0
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        places = offsets[rows][:, None] + np.arange(length)[None, :]
        matrix: Anything = values[places]
        if ragged.weights is not None:
            weights = ragged.weights.numpy()[places].astype(np.float64)
            matrix = np.concatenate([matrix, weights.view(np.int64)], axis=1)
        code[rows] = used + _byte_codes(matrix)
        used = int(code.max()) + 1
    return code


def _byte_codes(matrix: Anything) -> Ints:
    """Number the distinct rows of a matrix by their bytes."""
    if matrix.shape[1] == 0:
        return np.zeros(len(matrix), dtype=np.int64)
    rows = np.ascontiguousarray(matrix)
    _, code = np.unique(
        rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))), return_inverse=True
    )
    return code.reshape(-1).astype(np.int64)
