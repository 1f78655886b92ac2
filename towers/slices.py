"""Parts of the evaluated queries that are worth a number of their own.

- `all`: every evaluated query.
- `head`, `torso`, `tail`: by how often the query was clicked in training. Training queries are sorted by
  their clicks; the head is those that hold the first third of all training clicks, the torso the second. A
  query belongs to the part in which the clicks of all more frequent queries end; queries of equal frequency
  are never separated, and one without a training click is in the tail.
- `seen_query`, `unseen_query`: whether the query occurs in training at all.
- `history`, `no_history`: queries without text, whose query is the user's earlier clicks: whether there are
  any.
- `cold_documents`: relevance is restricted to documents without a click before the cut; queries without such
  a document are left out.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from towers.metrics import Integers, Judgements

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Slice:
    """Some queries, and the judgements that count for them.

    Attributes:
        name: As in the list above.
        rows: Rows of the evaluated queries, ascending.
        judgements: Of these queries, numbered from 0.
    """

    name: str
    rows: Integers
    judgements: Judgements


def build_slices(
    queries: pd.DataFrame, judgements: Judgements, cold: Mask, train_frequency: Integers
) -> list[Slice]:
    """Cut the evaluated queries into slices, `all` first; a slice may be empty.

    Args:
        queries: Q evaluated queries with `query_text`, `history`, `frequency` and `seen_query`.
        judgements: Theirs; each query has a relevant document.
        cold: (N,) whether a document has no click before the cut.
        train_frequency: Clicks of each distinct training query, in any order.
    """
    frequency = queries["frequency"].to_numpy(dtype=np.int64)
    seen = queries["seen_query"].to_numpy(dtype=bool)
    by_history = queries["query_text"].isna().to_numpy(dtype=bool)
    has_history = np.array([len(history) > 0 for history in queries["history"]], dtype=bool)
    third = thirds(frequency, train_frequency)
    members: dict[str, Mask] = {
        "all": np.ones(len(queries), dtype=bool),
        "head": third == 0,
        "torso": third == 1,
        "tail": third == 2,
        "seen_query": seen,
        "unseen_query": ~seen,
        "history": by_history & has_history,
        "no_history": by_history & ~has_history,
    }
    slices = [_slice(name, member, judgements) for name, member in members.items()]
    to_cold = judgements.only(cold[judgements.document])
    return [*slices, _slice("cold_documents", to_cold.relevant_count() > 0, to_cold)]


def thirds(frequency: Integers, train_frequency: Integers) -> Integers:
    """Return 0 for head, 1 for torso, 2 for tail, for each query.

    Args:
        frequency: (Q,) training clicks of the queries to place.
        train_frequency: Clicks of each distinct training query.
    """
    ascending = np.sort(train_frequency)
    clicks_up_to = np.concatenate([[0], np.cumsum(ascending)])
    total = clicks_up_to[-1]
    more_frequent = total - clicks_up_to[np.searchsorted(ascending, frequency, side="right")]
    return np.where(3 * more_frequent < total, 0, np.where(3 * more_frequent < 2 * total, 1, 2))


def _slice(name: str, member: Mask, judgements: Judgements) -> Slice:
    rows = np.flatnonzero(member)
    return Slice(name, rows, judgements.take(rows))
