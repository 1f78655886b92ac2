"""What shoppers of the simulated shop want.

An **intent** is what a shopper hopes to find: categories with a grade, attribute values, a brand, a product
line. It decides the true relevance of every document. Legend: I intents, C categories, D documents.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features.shop.catalogue import Catalogue
from features.shop.vocabulary import vocabulary

KINDS = ("category", "use", "brand", "attribute", "brand and category", "attributes", "product line")
"""Kinds of intent, broad ones first; broad intents tend to be the frequent ones."""

_BREADTH = dict(zip(KINDS, (0.15, 0.1, 0.4, 0.7, 1.0, 1.0, 1.0), strict=True))
_SHARE_OF_NARROW = (0.35, 0.2, 0.3, 0.15)  # the last four kinds


@dataclass(frozen=True, kw_only=True)
class Intents:
    """What shoppers want, most frequent first."""

    kind: NDArray[np.int64]  # (I,) place in KINDS
    want: NDArray[np.int8]  # (I, C) grade 0 to 3 of the category itself
    attributes: NDArray[np.int64]  # (I, 2) place in Catalogue.attribute_names, or -1
    brand: NDArray[np.int64]  # (I,) place in vocabulary().brands, or -1
    series: NDArray[np.int64]  # (I,) place in vocabulary().series, or -1
    use: NDArray[np.int64]  # (I,) place in vocabulary().uses, or -1

    def __len__(self) -> int:
        return len(self.kind)


def relevance(
    intents: Intents, catalogue: Catalogue, intent: NDArray[np.int64], document: NDArray[np.int64]
) -> NDArray[np.int8]:
    """Return the true grade, 0 to 3, of documents for intents; the two row arrays are broadcast.

    A document of a wanted category has the category's grade, at most 2 if it lacks up to half of what was
    asked for besides (attribute values, brand, product line), and at most 1 if it lacks more. A search for a
    brand alone is served by that brand only.
    """
    grade = intents.want[intent, catalogue.category[document]]
    asked = np.zeros(np.broadcast_shapes(intent.shape, document.shape), dtype=np.int8)
    met = np.zeros_like(asked)
    for column in range(intents.attributes.shape[1]):
        value = intents.attributes[intent, column]
        asked += value >= 0
        met += (value >= 0) & catalogue.attributes[document, value]
    for wanted, has in ((intents.brand, catalogue.brand), (intents.series, catalogue.series)):
        asked += wanted[intent] >= 0
        met += (wanted[intent] >= 0) & (wanted[intent] == has[document])
    best = np.where(met == asked, 3, np.where(2 * met >= asked, 2, 1))
    best = np.where((intents.kind[intent] == KINDS.index("brand")) & (met < asked), 0, best)
    return np.minimum(grade, best).astype(np.int8)


def draw_intents(count: int, catalogue: Catalogue, rng: np.random.Generator) -> Intents:
    """Draw at most `count` distinct intents, each of which some listing of the catalogue can serve.

    A small catalogue has fewer intents than were asked for.
    """
    rows = list(dict.fromkeys([*_broad(catalogue), *_narrow(count, catalogue, rng)]))
    order = np.argsort(
        [_BREADTH[row[0]] * draw for row, draw in zip(rows, rng.random(len(rows)), strict=True)]
    )
    rows = [rows[place] for place in order[:count].tolist()]
    categories = list(vocabulary().categories)
    want = np.zeros((len(rows), len(categories)), dtype=np.int8)
    for number, (kind, category, _, brand, _, use) in enumerate(rows):
        if kind == "use":
            for name, grade in vocabulary().uses[use].want.items():
                want[number, categories.index(name)] = grade
        elif kind == "brand":
            want[number, np.unique(catalogue.category[catalogue.brand == brand])] = 3
        else:
            want[number, category] = 3
    return Intents(
        kind=np.array([KINDS.index(row[0]) for row in rows], dtype=np.int64),
        want=want,
        attributes=np.array([row[2] for row in rows], dtype=np.int64).reshape(-1, 2),
        brand=np.array([row[3] for row in rows], dtype=np.int64),
        series=np.array([row[4] for row in rows], dtype=np.int64),
        use=np.array([row[5] for row in rows], dtype=np.int64),
    )


_Row = tuple[str, int, tuple[int, int], int, int, int]  # kind, category, attributes, brand, series, use


def _broad(catalogue: Catalogue) -> Iterator[_Row]:
    listed = {list(vocabulary().categories)[place] for place in np.unique(catalogue.category).tolist()}
    for category in np.unique(catalogue.category).tolist():
        yield "category", category, (-1, -1), -1, -1, -1
    for brand in np.unique(catalogue.brand).tolist():
        yield "brand", -1, (-1, -1), brand, -1, -1
    for place, use in enumerate(vocabulary().uses):
        if listed & use.want.keys():
            yield "use", -1, (-1, -1), -1, -1, place


def _narrow(count: int, catalogue: Catalogue, rng: np.random.Generator) -> Iterator[_Row]:
    """Yield intents about listings that were drawn by popularity, as many as four times the number wanted."""
    mixed = 0.5 * catalogue.popularity + 0.5 / len(catalogue)
    documents = rng.choice(len(catalogue), size=4 * count, p=mixed)
    kinds = rng.choice(KINDS[3:], size=4 * count, p=_SHARE_OF_NARROW)
    order = rng.random((4 * count, len(catalogue.attribute_names)))
    for document, kind, draws in zip(documents.tolist(), kinds.tolist(), order, strict=True):
        category, brand = int(catalogue.category[document]), int(catalogue.brand[document])
        values = np.nonzero(catalogue.attributes[document])[0]
        first, *others = values[np.argsort(draws[values])].tolist()
        pair = (min(first, others[0]), max(first, others[0])) if others else (first, -1)
        if kind == "attribute":
            yield kind, category, (first, -1), -1, -1, -1
        elif kind == "attributes":
            yield kind, category, pair, -1, -1, -1
        elif kind == "brand and category":
            yield kind, category, (-1, -1), brand, -1, -1
        else:
            yield kind, category, (-1, -1), brand, int(catalogue.series[document]), -1
