"""What may be a negative, and how often a document is drawn as one.

Shapes: B queries, N documents, N ≥ B; column i < B is the positive of row i, columns ≥ B are documents that
the whole batch sees; U documents of each query's own; D documents of the catalogue; K distinct query keys.
"""

from enum import IntEnum
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from towers.data import Catalogue, Floats, Ints, Lists
from towers.exclusions import Exclusions

Scope = Literal["own", "batch"]
"""Who sees a drawn document: the query for which it was drawn, or every query of the batch."""


class Source(IntEnum):
    """Where a negative comes from."""

    IN_BATCH = 0
    UNCLICKED = 1
    UNIFORM = 2
    MINED = 3
    QUEUE = 4


def excluded_pairs(query_key_B: Ints, document_N: Ints, catalogue: Catalogue) -> Exclusions:
    """List the pairs that may not be negatives: the one mask, for rows and columns alike.

    A pair (i, j) is excluded when document j has the content of row i's positive (which includes the same
    id), when its content is known to have been clicked for row i's query key, or when column j < B stands for
    an equal query key. The lists are joined, by sorting, once for each distinct query key.

    Args:
        query_key_B: Code of each row's query key.
        document_N: Row in the catalogue of each column's document; the first B are the positives.
        catalogue: Contents and known positives.

    Returns:
        The pairs, without the diagonal.
    """
    rows, width = len(query_key_B), len(document_N)
    content_N = catalogue.content[document_N]
    keys_K, place_B = np.unique(query_key_B, return_inverse=True)
    content, key = catalogue.known.take(keys_K)
    pair, column = _columns_with(content, content_N)
    known = _distinct_lists(
        np.concatenate([key[pair], place_B]), np.concatenate([column, np.arange(rows)]), len(keys_K), width
    )
    columns, row = known.take(place_B)
    unknown = np.flatnonzero(~is_known(query_key_B, content_N[:rows], catalogue))
    if len(unknown):
        pair, column = _columns_with(content_N[unknown], content_N)
        columns, row = np.concatenate([columns, column]), np.concatenate([row, unknown[pair]])
        return Exclusions.from_pairs(torch.from_numpy(row), torch.from_numpy(columns), rows, width)
    off_diagonal = columns != row
    lengths = known.offsets[place_B + 1] - known.offsets[place_B] - 1  # every row lists itself once
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Exclusions(torch.from_numpy(offsets), torch.from_numpy(columns[off_diagonal]), width)


def excluded_own(
    query_key_B: Ints, document_B: Ints, own_BU: Ints, catalogue: Catalogue
) -> NDArray[np.bool_]:
    """Mark which of each query's own documents may not be its negatives, by the same rules.

    Args:
        query_key_B: Code of each row's query key.
        document_B: Row in the catalogue of each row's positive.
        own_BU: Rows in the catalogue of each row's own documents.
        catalogue: Contents and known positives.

    Returns:
        (B, U) bool.
    """
    content_BU = catalogue.content[own_BU]
    key_BU = np.repeat(query_key_B, own_BU.shape[1])
    known_BU = is_known(key_BU, content_BU.ravel(), catalogue).reshape(own_BU.shape)
    same_BU: NDArray[np.bool_] = content_BU == catalogue.content[document_B][:, None]
    return known_BU | same_BU


def is_known(query_key: Ints, content: Ints, catalogue: Catalogue) -> NDArray[np.bool_]:
    """Tell of pairs of a query key and a content whether the one was clicked for the other."""
    keys_K, place = np.unique(query_key, return_inverse=True)
    clicked, key = catalogue.known.take(keys_K)
    span = 1 + max(int(clicked.max(initial=0)), int(content.max(initial=0)))
    codes, wanted = key * span + clicked, place * span + content  # codes ascend: keys do, contents within
    found = np.minimum(np.searchsorted(codes, wanted), max(len(codes) - 1, 0))
    if len(codes) == 0:
        return np.zeros(len(wanted), dtype=bool)
    matches: NDArray[np.bool_] = codes[found] == wanted
    return matches


def _columns_with(content: Ints, content_N: Ints) -> tuple[Ints, Ints]:
    """Join contents with the columns that have them: places in `content`, and columns."""
    order = np.argsort(content_N, kind="stable")
    ordered = content_N[order]
    first, end = np.searchsorted(ordered, content, "left"), np.searchsorted(ordered, content, "right")
    hits = end - first
    pair = np.repeat(np.arange(len(content)), hits)
    within = np.arange(len(pair)) - (np.cumsum(hits) - hits)[pair]
    return pair, order[first[pair] + within]


def _distinct_lists(key: Ints, column: Ints, keys: int, width: int) -> Lists:
    """Group columns by key, ascending and each once."""
    code = np.unique(key * width + column)
    offsets = np.searchsorted(code, np.arange(keys + 1) * width).astype(np.int64)
    return Lists(code % width, offsets)


def log_expected_columns(
    document: Ints,
    rows: float,
    unclicked: float,
    catalogue: Catalogue,
    *,
    uniform: float = 0.0,
    chance: Floats | None = None,
) -> NDArray[np.float32]:
    """Return log Q of each column: of the number of columns its document takes in an average batch.

    A row sees B in-batch and F queued columns, drawn as training positives are (share p), M unclicked ones,
    drawn as unclicked documents are (share u), and U drawn uniformly from the D documents. A document is thus
    expected `Q_j = (B + F) p_j + M u_j + U / D` times, from whichever source the column at hand came (the
    balance heuristic of multiple importance sampling), where M is all unclicked columns under scope `batch`
    and the mean number of a row's own under scope `own`. Dividing each column's exponential by Q makes the
    sum over columns an estimate of the sum over the catalogue. An expected number differs from a probability
    by a constant, which matters only beside an uncorrected positive, where the number is the right one.

    Mined documents are no sample of the catalogue: given the row, document j comes with the known chance
    `c_ij` that its pool's draw takes it, so that its own column has `Q_ij = Q_j + c_ij`. Shared columns keep
    Q_j, though for a row in whose pool their document is it would be `Q_j + c_ij` too: that needs a number
    for each pair, and such a pair is counted at most twice.

    p has a floor of half a training example, so that Q of a document that was never clicked is not 0.

    Args:
        document: Rows in the catalogue of the columns' documents, in any shape.
        rows: B + F.
        unclicked: M.
        catalogue: Shares of positives and of unclicked documents.
        uniform: U.
        chance: c, in the shape of `document`; 0 where the document was not mined. `None`: all 0.

    Returns:
        Natural logarithms, in the shape of `document`.
    """
    expected = rows * catalogue.positive_share[document] + unclicked * catalogue.unclicked_share[document]
    expected += uniform / len(catalogue.content)
    if chance is not None:
        expected = expected + chance
    return np.log(expected).astype(np.float32)
