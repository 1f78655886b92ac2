"""Which of equally scored documents a scan returns: the first ones of the catalogue.

faiss keeps some of the documents that share the k-th score, whichever its heap drops last. A scan that asks
for one more sees whether the k-th is among equals, and asks for more until it has all of them. Without a tie
that one is all it costs.

Shapes: B queries, k neighbours.
"""

from collections.abc import Callable

import numpy as np

from serving.subsets import Found, Mask, Rows
from serving.vectors import Vectors

MOST_TIED = 65_536
"""How deep equals are looked for; which of still more come, as where all scores are 0, is faiss's choice."""

_WIDER = 16  # times deeper at each look: a scan takes about as long for 1,000 as for 10
_AT_ONCE = 1 << 22  # scores that are held at the same time


def past_ties(
    find: Callable[[Vectors, int], Found], query_BD: Vectors, found: Found, k: int, size: int
) -> list[tuple[Vectors, Rows]]:
    """Return (scores, rows) of each query, so deep that all documents as good as the k-th are there.

    Args:
        find: A scan of `size` documents: for queries and a depth, the best ones.
        query_BD: The queries.
        found: Their k + 1 best, or all where there are k.
        k: How many will be returned.
        size: How many documents there are.
    """
    deep = list(zip(found.scores, found.rows, strict=True))
    tied = np.flatnonzero(_ends_in_a_tie(found, k))
    depth, most = found.rows.shape[1], min(size, max(k + 1, MOST_TIED))
    while len(tied) and depth < most:
        depth = min(most, _WIDER * depth)
        left = []
        for part in np.array_split(tied, -(-len(tied) * depth // _AT_ONCE)):
            wider = find(query_BD[part], depth)
            for place, scores, rows in zip(part.tolist(), *wider, strict=True):
                deep[place] = scores, rows
            left.append(part[_ends_in_a_tie(wider, k)])
        tied = np.concatenate(left)
    return deep


def _ends_in_a_tie(found: Found, k: int) -> Mask:
    """Return (B,) whether the last one found is as good as the k-th, so that there may be more of them."""
    tied: Mask = (found.rows[:, -1] >= 0) & (found.scores[:, -1] == found.scores[:, k - 1])
    return tied
