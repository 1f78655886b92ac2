"""How an answer came about: the rank and score of each hit in both rankings, and the words they share."""

import numpy as np

from features.text import words
from serving.bundle import Bundle
from serving.hybrid import share
from serving.index import Neighbours
from serving.queries import Checked
from serving.search import Explanation, HitExplanation, Place


def explain(
    one: Checked, rows: list[int], dense: Neighbours, bm25: Neighbours, bundle: Bundle
) -> Explanation:
    """Explain an answer.

    Args:
        one: The search.
        rows: Catalogue rows of the hits, best first.
        dense: The towers' ranking, as deep as it was read.
        bm25: The ranking of BM25, as deep as it was read.
        bundle: What answered.
    """
    asked = words(one.words)
    of_dense, of_bm25 = _places(dense), _places(bm25)
    matched = bundle.lexical.matched_in(one.words, np.asarray(rows, dtype=np.int64))
    fused = one.search.mode == "hybrid"
    return Explanation(
        text=one.query.text,
        history=list(one.query.history),
        words=list(dict.fromkeys(asked)),
        unknown_words=[word for word in dict.fromkeys(asked) if not bundle.lexical.knows(word)],
        tokens=len(asked),
        dense_depth=one.dense_depth,
        bm25_depth=one.bm25_depth,
        index=bundle.index.note,
        allowed=None if one.selection is None else one.selection.count,
        strategy=None if one.selection is None else bundle.index.way(one.selection),
        hits=[
            HitExplanation(
                dense=of_dense.get(row),
                bm25=of_bm25.get(row),
                matched_terms=terms,
                dense_share=_share(of_dense.get(row)) if fused else None,
                bm25_share=_share(of_bm25.get(row)) if fused else None,
            )
            for row, terms in zip(rows, matched, strict=True)
        ],
    )


def _places(ranking: Neighbours) -> dict[int, Place]:
    pairs = zip(ranking.rows.tolist(), ranking.scores.tolist(), strict=True)
    return {row: Place(rank, score) for rank, (row, score) in enumerate(pairs, 1)}


def _share(place: Place | None) -> float:
    return 0.0 if place is None else share(place.rank)
