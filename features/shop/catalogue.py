"""The catalogue of the simulated shop: what each listing truly is, and what is written about it.

A listing has a category, a brand, a product line and one or two values for each attribute that is natural
for its category. Title and text are written from these, so that a listing says what is true of it, mostly in
the category's own word. Legend: D documents, A attribute values.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from features.shop.draws import Draws
from features.shop.vocabulary import vocabulary

_TITLES = (
    "{brand} {series} {word}, {first}, {second}",
    "{brand} {word} {series} {first}",
    "{first} {word} by {brand}, {second}",
    "{brand} {series} {first} {second} {word}",
)
_OTHER_WORD, _FOREIGN_WORD = 0.07, 0.04  # chance that a title uses a word of shoppers, or another script
_TOLD = 0.9  # chance that the text mentions an attribute which the title does not


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """The listings as the shop publishes them (`frame`) and what is true of them (the arrays)."""

    frame: pd.DataFrame  # doc_id, title, text, category, brand, attributes, price, rating, updated_at
    attribute_names: tuple[str, ...]  # (A,)
    category: NDArray[np.int64]  # (D,) place in vocabulary().categories
    brand: NDArray[np.int64]  # (D,) place in vocabulary().brands
    series: NDArray[np.int64]  # (D,) place in vocabulary().series
    attributes: NDArray[np.bool_]  # (D, A)
    popularity: NDArray[np.float64]  # (D,) sums to 1
    quality: NDArray[np.float64]  # (D,) 0.6 to 1.2, multiplies the chance of a click
    cold: NDArray[np.bool_]  # (D,) listed only in the last part of the log
    copy_of: NDArray[np.int64]  # (D,) row of the listing that it repeats, or -1

    def __len__(self) -> int:
        return len(self.frame)


@dataclass(frozen=True, kw_only=True)
class _Listing:
    category: int
    brand: int
    series: int
    values: tuple[tuple[str, str], ...]  # attribute and value


def build_catalogue(
    documents: int,
    rng: np.random.Generator,
    *,
    duplicate_share: float,
    cold_share: float,
    popularity_skew: float,
) -> Catalogue:
    """Write a catalogue of exactly `documents` listings, in the order of their ids.

    At least one listing is an original and at least one is not cold, however large the shares.

    Args:
        documents: Number of listings, copies included; >= 1.
        rng: Source of every random choice.
        duplicate_share: Share of listings that repeat another one, word for word, under another id.
        cold_share: Share of listings that appear late.
        popularity_skew: Zipf exponent of the popularity.
    """
    copies = min(round(documents * duplicate_share), documents - 1)
    originals = _draw_listings(documents - copies, rng)
    source = np.concatenate([np.arange(len(originals)), rng.integers(len(originals), size=copies)])
    shuffled = rng.permutation(documents)
    row_of = np.argsort(shuffled)
    cold = np.zeros(documents, dtype=np.bool_)
    cold[rng.permutation(documents)[: min(round(documents * cold_share), documents - 1)]] = True
    popularity = (1.0 + rng.permutation(documents)) ** -popularity_skew
    frame = _write(originals, rng).iloc[source[shuffled]].reset_index(drop=True)
    frame.insert(0, "doc_id", [f"sku-{number:06d}" for number in range(documents)])
    facts = [originals[place] for place in source[shuffled].tolist()]
    names = tuple(sorted({value for fact in originals for _, value in fact.values}))
    return Catalogue(
        frame=frame,
        attribute_names=names,
        category=np.array([fact.category for fact in facts], dtype=np.int64),
        brand=np.array([fact.brand for fact in facts], dtype=np.int64),
        series=np.array([fact.series for fact in facts], dtype=np.int64),
        attributes=_attribute_matrix(facts, names),
        popularity=popularity / popularity.sum(),
        quality=rng.uniform(0.6, 1.2, documents),
        cold=cold,
        copy_of=np.where(shuffled < len(originals), -1, row_of[source[shuffled]]),
    )


def _draw_listings(count: int, rng: np.random.Generator) -> list[_Listing]:
    words = vocabulary()
    categories, brands = list(words.categories), {name: place for place, name in enumerate(words.brands)}
    drawn = rng.choice(len(categories), size=count, p=rng.dirichlet(np.full(len(categories), 8.0)))
    listings = []
    for category, uniform in zip(drawn.tolist(), rng.random((count, 24)), strict=True):
        draws = Draws(uniform)
        brand = brands[draws.pick(list(words.group_of[categories[category]].brands))]
        # two product lines for each brand and category
        series = (7 * brand + 3 * category + draws.pick((0, 11))) % len(words.series)
        values: dict[str, str] = {}  # value to attribute: no value twice
        for attribute, choices in words.attributes_of(categories[category]).items():
            values[draws.pick(choices)] = attribute
            if attribute == "feature":
                values[draws.pick(choices)] = attribute
        pairs = tuple((attribute, value) for value, attribute in values.items())
        listings.append(_Listing(category=category, brand=brand, series=series, values=pairs))
    return listings


def _attribute_matrix(facts: list[_Listing], names: tuple[str, ...]) -> NDArray[np.bool_]:
    place = {name: column for column, name in enumerate(names)}
    matrix = np.zeros((len(facts), len(names)), dtype=np.bool_)
    for row, fact in enumerate(facts):
        matrix[row, [place[value] for _, value in fact.values]] = True
    return matrix


def _write(listings: list[_Listing], rng: np.random.Generator) -> pd.DataFrame:
    words = vocabulary()
    categories, brands = list(words.categories), list(words.brands)
    rating = np.round(1.0 + 4.0 * rng.beta(8.0, 2.0, len(listings)), 1).tolist()
    rows = []
    for listing, stars, uniform in zip(listings, rating, rng.random((len(listings), 64)), strict=True):
        draws = Draws(uniform)
        lowest, highest = words.group_of[categories[listing.category]].price
        title, told = _title(listing, draws)
        rows.append(
            {
                "title": title,
                "text": _text(listing, told, draws),
                "category": categories[listing.category],
                "brand": brands[listing.brand],
                "attributes": [value for _, value in listing.values],
                "price": round(lowest * (highest / lowest) ** draws.number(), 2),
                "rating": stars,
            }
        )
    return pd.DataFrame(rows)


def _title(listing: _Listing, draws: Draws) -> tuple[str, set[str]]:
    """Return a title and the attribute values that it mentions."""
    words = vocabulary()
    name = list(words.categories)[listing.category]
    entry = words.categories[name]
    word = name
    if draws.chance(_OTHER_WORD):
        word = draws.pick(entry.also)
    elif draws.chance(_FOREIGN_WORD) and entry.foreign:
        word = f"{draws.pick(entry.foreign)} {name}" if draws.chance(0.5) else draws.pick(entry.foreign)
    values = [value for _, value in listing.values]
    first, second = draws.pick(values), draws.pick(values)
    title = draws.pick(_TITLES).format(
        brand=list(words.brands)[listing.brand],
        series=words.series[listing.series],
        word=word,
        first=first,
        second=second if second != first else "new",
    )
    return title[0].upper() + title[1:], {value for value in (first, second) if value in title}


def _text(listing: _Listing, told: set[str], draws: Draws) -> str:
    words = vocabulary()
    name = list(words.categories)[listing.category]
    group = words.group_of[name]
    sentences = [words.categories[name].about, draws.pick(group.sentences)]
    sentences += [draws.pick(words.sentences) for _ in range(2)]
    text = " ".join(dict.fromkeys(sentences)).format(
        brand=list(words.brands)[listing.brand],
        series=words.series[listing.series],
        word=name,
        plural=words.plural_of(name),
        other=words.plural_of(draws.pick([other for other in group.categories if other != name])),
        value=draws.pick(listing.values)[1],
    )
    facts = [
        f"{attribute.capitalize()}: {value}." for attribute, value in listing.values if value not in told
    ]
    return " ".join([text, *(fact for fact in facts if draws.chance(_TOLD))])
