"""The part of a batch's objective that one of several ranks computes: its rows and its columns.

A rank has consecutive rows of the batch. It scores its queries against all documents, which is their share of
the row direction, and its documents against all queries, which is their share of the column direction. Both
are the same objective of fewer rows, so that any form of it serves, plain or in tiles. The parts of all ranks
sum up to the objective of the whole, and so do their gradients.

With R ranks each then has B² / R scores in each direction, where one pass over B² serves both: the share of a
rank is 2 / R of the whole, and two ranks gain nothing. The sigmoid has one direction: its share is 1 / R.

Shapes: B queries, N documents, N ≥ B, D embedding; column i < B is the positive of row i; U documents of each
query's own.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from towers.distributed import Ranks
from towers.exclusions import Exclusions
from towers.losses import (
    CrossEntropyConfig,
    HingeConfig,
    LossConfig,
    OwnScores,
    SigmoidConfig,
    SingleLossConfig,
    WeightedSumConfig,
)


@dataclass(frozen=True)
class Scored:
    """What an objective is computed of.

    Attributes:
        query: (B, D).
        document: (N, D).
        exclusions: Pairs that may not be negatives.
        temperature: Divides scores.
        log_q: (N,) log of the expected number of columns of each document.
        weight: (B,) weight of each row.
        own: Scores of each query's own documents.
    """

    query: Tensor
    document: Tensor
    exclusions: Exclusions
    temperature: Tensor
    log_q: Tensor
    weight: Tensor
    own: OwnScores | None

    def rows(self, first: int, end: int) -> "Scored":
        """Return the rows first ≤ i < end against all N columns, theirs first."""
        row, column = self.exclusions.block(first, end)
        column = _place(column, first, end)
        own = self.own
        if own is not None:
            log_q_BU = None if own.log_q_BU is None else own.log_q_BU[first:end]
            own = OwnScores(own.score_BU[first:end], own.excluded_BU[first:end], log_q_BU)
        return Scored(
            self.query[first:end],
            _ahead(self.document, first, end),
            Exclusions.from_pairs(row, column, end - first, len(self.document)),
            self.temperature,
            _ahead(self.log_q, first, end),
            self.weight[first:end],
            own,
        )

    def columns(self, first: int, end: int) -> "Scored":
        """Return the columns first ≤ j < end as rows: their documents against all B queries, theirs first."""
        row, column = self.exclusions.pairs()
        kept = (column >= first) & (column < end)
        row, column = _place(row[kept], first, end), column[kept] - first
        return Scored(
            self.document[first:end],
            _ahead(self.query, first, end),
            Exclusions.from_pairs(column, row, end - first, len(self.query)),
            self.temperature,
            self.log_q.new_zeros(len(self.query)),
            self.weight[first:end],
            None,
        )


class Compute(Protocol):
    """An objective without a part for each rank."""

    def __call__(self, config: LossConfig, scored: Scored, /) -> Tensor:
        """Return the mean over the rows."""
        ...


def part_of(config: LossConfig, scored: Scored, compute: Compute, ranks: Ranks, *, progress: float) -> Tensor:
    """Return this rank's part of an objective.

    One whose rows cannot be told apart (a pair loss, triplets, NCE, supervised contrastive) is computed as a
    whole by every rank, and divided by their number.

    Args:
        config: The objective.
        scored: The whole batch.
        compute: Computes an objective.
        ranks: This one, and how many there are.
        progress: Share of the stage's steps that are done, 0 to 1.

    Returns:
        Scalar, with a gradient to the embeddings, if only of zeros.
    """
    own_rows = ranks.share(range(len(scored.query)))
    total = (scored.query[:1] * 0).sum()
    for share, single in config.parts(progress) if isinstance(config, WeightedSumConfig) else [(1.0, config)]:
        directions = _directions(single)
        if directions is None:
            total = total + share / ranks.size * compute(single, scored)
            continue
        if len(own_rows) == 0:
            continue
        first, end = own_rows[0], own_rows[-1] + 1
        share *= float(scored.weight[first:end].sum() / scored.weight.sum())
        (row_share, of_rows), (column_share, of_columns) = directions
        total = total + share * row_share * compute(of_rows, scored.rows(first, end))
        if column_share > 0:
            total = total + share * column_share * compute(of_columns, scored.columns(first, end))
    return total


def _directions(
    config: SingleLossConfig,
) -> tuple[tuple[float, SingleLossConfig], tuple[float, SingleLossConfig]] | None:
    """Return what the rows and the columns of an objective weigh in it, and the objective of each alone."""
    match config:
        case CrossEntropyConfig():
            whole = 1 + config.column_weight + config.list_weight
            columns = CrossEntropyConfig(
                log_q=False, column_weight=0, false_negative_prior=config.false_negative_prior
            )
            rows = config.model_copy(update={"column_weight": 0.0})
            return ((1 + config.list_weight) / whole, rows), (config.column_weight / whole, columns)
        case HingeConfig():
            whole, rows_alone = 1 + config.column_weight, config.model_copy(update={"column_weight": 0.0})
            return (1 / whole, rows_alone), (config.column_weight / whole, rows_alone)
        case SigmoidConfig():
            return (1.0, config), (0.0, config)
        case _:
            return None


def _ahead(values: Tensor, first: int, end: int) -> Tensor:
    """Return the values with those first ≤ i < end put before the others."""
    return torch.cat([values[first:end], values[:first], values[end:]])


def _place(places: Tensor, first: int, end: int) -> Tensor:
    """Return where `_ahead` puts what was at some places."""
    moved = torch.where(places < first, places + (end - first), places)
    return torch.where((places >= first) & (places < end), places - first, moved)
