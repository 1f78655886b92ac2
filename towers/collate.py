"""Examples → batches: which rows, in which order, with which negatives.

A batch is a pure function of (seed, stage, step): nothing here keeps a random state, so the data position in
a checkpoint is two integers.

Shapes: E examples, B queries, N documents, N ≥ B, U documents of each query's own; Q distinct queries,
V distinct documents of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from features.errors import ConfigError
from towers.batch import Features, Ragged
from towers.data import Floats, Ints, Lists, TrainingData
from towers.exclusions import Exclusions
from towers.negatives import Scope, Source, excluded_own, excluded_pairs, log_expected_columns

Anything = NDArray[np.generic]


@dataclass(frozen=True)
class Batch:
    """One training step's input; its memory is linear in B.

    Attributes:
        query_rows: (Q,) distinct rows of the prepared queries to encode.
        query_place: (B,) where in them each row's query is.
        document_rows: (V,) distinct rows of the prepared documents to encode.
        document_place: (N - F,) where in them each column's document is; the first B are the positives.
        queued: (F, D) vectors of the last F columns, which are not encoded again; F may be 0.
        excluded: The pairs of row and column that may not be negatives.
        log_q: (N,) log of the expected number of columns of each document.
        source: (N,) `Source` of each column.
        weight: (B,) weight of each row.
        own_place: (B, U) where in the distinct documents each row's own negatives are; U may be 0.
        own_excluded: (B, U) True where there is none, or it may not be a negative.
        own_log_q: (B, U) log Q of the own documents.
        own_source: (B, U) `Source` of the own documents.
    """

    query_rows: Tensor
    query_place: Tensor
    document_rows: Tensor
    document_place: Tensor
    queued: Tensor
    excluded: Exclusions
    log_q: Tensor
    source: Tensor
    weight: Tensor
    own_place: Tensor
    own_excluded: Tensor
    own_log_q: Tensor
    own_source: Tensor

    def __len__(self) -> int:
        return len(self.query_place)

    def to(self, device: torch.device | str) -> "Batch":
        """Return the same batch on another device; the rows to encode stay where the prepared inputs are."""
        moved = {
            part.name: getattr(self, part.name).to(device)
            for part in fields(self)
            if part.name not in ("query_rows", "document_rows")
        }
        return replace(self, **moved)


@dataclass(frozen=True)
class Draw:
    """Negatives that one source draws for a batch.

    Attributes:
        source: Which.
        document: (M,) rows in the catalogue.
        owner: (M,) the row of the batch that alone sees each, ascending; `None`: all rows see all.
        chance: (M,) how likely the draw was to take each; `None` for sources with a share of the catalogue.
        vectors: (M, D) of documents that are not to be encoded; such a draw has no owner and is the last.
    """

    source: Source
    document: Ints
    owner: Ints | None = None
    chance: Floats | None = None
    vectors: Tensor | None = None


def collate(data: TrainingData, rows: Ints, draws: Sequence[Draw]) -> Batch:
    """Lay out the batch of some examples and the negatives drawn for them.

    Args:
        data: Where the examples are.
        rows: (B,) which of them.
        draws: What was drawn; documents without an owner become columns, the others each row's own.
    """
    shared = [draw for draw in draws if draw.owner is None]
    columns = [data.document[rows], *(draw.document for draw in shared)]
    document_N = np.concatenate(columns)
    codes = [Source.IN_BATCH, *(draw.source for draw in shared)]
    source_N = np.repeat(np.array(codes, dtype=np.int64), [len(column) for column in columns])
    own = _own_documents(data.document[rows], draws)
    own_BU, missing_BU = own.document, own.missing
    queued = next((draw.vectors for draw in shared if draw.vectors is not None), torch.zeros(0, 0))
    log_q = partial(
        log_expected_columns,
        rows=len(rows) + len(queued),
        unclicked=(source_N == Source.UNCLICKED).sum()
        + ((own.source == Source.UNCLICKED) & ~missing_BU).sum() / len(rows),
        catalogue=data.catalogue,
        uniform=float((source_N == Source.UNIFORM).sum()),
    )
    query_rows, query_place = np.unique(data.query[rows], return_inverse=True)
    fresh = len(document_N) - len(queued)
    document_rows, place = np.unique(
        np.concatenate([document_N[:fresh], own_BU.ravel()]), return_inverse=True
    )
    key_B, catalogue = data.query_key[rows], data.catalogue
    barred_BU = excluded_own(key_B, document_N[: len(rows)], own_BU, catalogue)
    return Batch(
        query_rows=torch.from_numpy(query_rows),
        query_place=torch.from_numpy(query_place),
        document_rows=torch.from_numpy(document_rows),
        document_place=torch.from_numpy(place[:fresh]),
        queued=queued,
        excluded=excluded_pairs(key_B, document_N, catalogue),
        log_q=torch.from_numpy(log_q(document_N)),
        source=torch.from_numpy(source_N),
        weight=torch.from_numpy(data.weight[rows]),
        own_place=torch.from_numpy(place[fresh:].reshape(own_BU.shape)),
        own_excluded=torch.from_numpy(missing_BU | barred_BU),
        own_log_q=torch.from_numpy(log_q(own_BU, chance=own.chance)),
        own_source=torch.from_numpy(own.source),
    )


class _Own(NamedTuple):
    """Each row's own documents side by side, each (B, U).

    Attributes:
        document: Rows in the catalogue; the positive's where a list is shorter than the longest.
        source: Where each comes from.
        chance: How likely the draw was to take it; 0 for sources with a share of the catalogue.
        missing: True where there is no document.
    """

    document: Ints
    source: Ints
    chance: Floats
    missing: NDArray[np.bool_]


def _own_documents(positive_B: Ints, draws: Sequence[Draw]) -> _Own:
    nothing = np.empty(0, dtype=np.int64)
    owned = [(draw.owner, draw) for draw in draws if draw.owner is not None]
    owner = np.concatenate([nothing, *(owner for owner, _ in owned)])
    document = np.concatenate([nothing, *(draw.document for _, draw in owned)])
    source = np.concatenate([nothing, *(np.full(len(draw.document), draw.source) for _, draw in owned)])
    chances = [np.zeros(len(draw.document)) if draw.chance is None else draw.chance for _, draw in owned]
    chance = np.concatenate([np.empty(0), *chances])
    order = np.argsort(owner, kind="stable")
    lengths = np.bincount(owner, minlength=len(positive_B))
    place = np.arange(len(owner)) - (np.cumsum(lengths) - lengths)[owner[order]]
    shape = (len(positive_B), int(lengths.max(initial=0)))
    document_BU, source_BU = np.tile(positive_B[:, None], shape[1]), np.zeros(shape, dtype=np.int64)
    chance_BU, missing_BU = np.zeros(shape), np.ones(shape, dtype=bool)
    at = (owner[order], place)
    document_BU[at], source_BU[at], missing_BU[at] = document[order], source[order], False
    chance_BU[at] = chance[order]
    return _Own(document_BU, source_BU, chance_BU, missing_BU)


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
            unclicked_per_query: At most so many unclicked documents of each row become negatives.
            scope: Who sees an unclicked document: own documents of a row, or columns.
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
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def rows(self, step: int) -> Ints:
        """Return the (B,) examples of a step, counted from 0 over the whole stage."""
        epoch, position = divmod(step, self.per_epoch)
        return self._order(epoch)[position * self._batch_size : (position + 1) * self._batch_size]

    def random(self, step: int, source: Source) -> np.random.Generator:
        """Return the generator that decides what a source draws for a step."""
        epoch, position = divmod(step, self.per_epoch)
        return np.random.default_rng([*self._seed, epoch, 1 + position, int(source)])

    def batch(self, step: int, draws: Sequence[Draw] = ()) -> Batch:
        """Return the batch of a step, counted from 0 over the stage, with what further sources drew."""
        rows, random = self.rows(step), self.random(step, Source.UNCLICKED)
        unclicked, owner = sample_lists(self._data.unclicked, rows, self._unclicked, random)
        draw = Draw(Source.UNCLICKED, unclicked, owner if self._scope == "own" else None)
        return collate(self._data, rows, [draw, *draws])

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
