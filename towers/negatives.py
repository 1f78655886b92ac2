"""What may be a negative, and how often a document is drawn as one.

Shapes: B queries, N documents, N ≥ B; column i < B is the positive of row i, columns ≥ B are unclicked
documents; D documents of the catalogue.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from towers.data import Catalogue, Ints

Scope = Literal["own", "batch"]
"""Who sees an unclicked column: the query whose list it was in, or every query of the batch."""


def excluded_pairs(
    query_key_B: Ints, document_N: Ints, owner: Ints, catalogue: Catalogue, scope: Scope
) -> NDArray[np.bool_]:
    """Mark the pairs that may not be negatives: the one mask, for rows and columns alike.

    A pair (i, j) is excluded when document j has the content of row i's positive (which includes the same
    id), when its content is known to have been clicked for row i's query key, when column j < B stands for
    an equal query key, or when j is another row's unclicked document and the scope is `own`.

    Args:
        query_key_B: Code of each row's query key.
        document_N: Row in the catalogue of each column's document; the first B are the positives.
        owner: (N - B,) the row whose list held each unclicked column.
        catalogue: Contents and known positives.
        scope: Who sees an unclicked column.

    Returns:
        (B, N) bool; the diagonal is False.
    """
    rows = len(query_key_B)
    content_N = catalogue.content[document_N]
    keys_U, place_B = np.unique(query_key_B, return_inverse=True)
    excluded_BN: NDArray[np.bool_] = _known_columns(keys_U, content_N, catalogue)[place_B]
    excluded_BN |= content_N[:rows, None] == content_N[None, :]
    excluded_BN[:, :rows] |= place_B[:, None] == place_B[None, :]
    if scope == "own":
        excluded_BN[:, rows:] |= owner[None, :] != np.arange(rows)[:, None]
    np.fill_diagonal(excluded_BN, False)
    return excluded_BN


def _known_columns(keys_U: Ints, content_N: Ints, catalogue: Catalogue) -> NDArray[np.bool_]:
    """Return (U, N): whether the content of each column was clicked for each of the distinct query keys."""
    known_UN = np.zeros((len(keys_U), len(content_N)), dtype=bool)
    content, key = catalogue.known.take(keys_U)
    order = np.argsort(content_N, kind="stable")
    ordered = content_N[order]
    first, end = np.searchsorted(ordered, content, "left"), np.searchsorted(ordered, content, "right")
    hits = end - first
    pair = np.repeat(np.arange(len(content)), hits)
    within = np.arange(len(pair)) - (np.cumsum(hits) - hits)[pair]
    known_UN[key[pair], order[first[pair] + within]] = True
    return known_UN


def log_expected_columns(
    document_N: Ints, rows: int, scope: Scope, catalogue: Catalogue
) -> NDArray[np.float32]:
    """Return log Q of each column: of the number of columns its document takes in an average batch.

    A row sees B in-batch columns, drawn as training positives are (share p), and M unclicked ones, drawn as
    unclicked documents are (share u). A document is thus expected `Q_j = B p_j + M u_j` times, from whichever
    source the column at hand came (the balance heuristic of multiple importance sampling), where M is all
    N - B unclicked columns under scope `batch` and (N - B) / B under scope `own`. Dividing each column's
    exponential by Q makes the sum over columns an estimate of the sum over the catalogue. An expected number
    differs from a probability by a constant, which matters only beside an uncorrected positive, where the
    number is the right one.

    p has a floor of half a training example, so that Q of a document that was never clicked is not 0.

    Args:
        document_N: Row in the catalogue of each column's document.
        rows: B.
        scope: Who sees an unclicked column.
        catalogue: Shares of positives and of unclicked documents.

    Returns:
        (N,) natural logarithms.
    """
    unclicked = len(document_N) - rows
    seen = unclicked if scope == "batch" else unclicked / rows
    expected = rows * catalogue.positive_share[document_N] + seen * catalogue.unclicked_share[document_N]
    return np.log(expected).astype(np.float32)
