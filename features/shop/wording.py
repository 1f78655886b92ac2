"""How shoppers of the simulated shop say what they want.

A **query text** is one way to say an intent: in the catalogue's words or in others, singular or plural, in
any order, spelled right or not. No text says two intents. Legend: I intents, T texts.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features.shop.catalogue import Catalogue
from features.shop.draws import Draws
from features.shop.intents import KINDS, Intents
from features.shop.vocabulary import vocabulary

_WORDINGS = 10  # tries at wording one intent
_MISSPELLINGS = 3  # misspelled texts for each wording
_PLURAL, _REORDERED, _FILLER, _FOREIGN = 0.25, 0.25, 0.06, 0.05  # chances for one wording
_SHORTEST = 4  # letters of a word that may be misspelled
_NEIGHBOURS = dict(
    zip("qwertyuiopasdfghjklzxcvbnm", "wertyuioposdfghjklkxcvbnmn", strict=True)
)  # on a keyboard


@dataclass(frozen=True, kw_only=True)
class QueryTexts:
    """The texts of all intents; `traffic` is how often each is asked."""

    text: list[str]  # (T,) distinct, lower case
    intent: NDArray[np.int64]  # (T,)
    traffic: NDArray[np.float64]  # (T,) sums to 1
    misspelled: NDArray[np.bool_]  # (T,)
    reworded: NDArray[np.bool_]  # (T,) some part is said in other words than the catalogue's

    def __len__(self) -> int:
        return len(self.text)


def word_intents(
    intents: Intents,
    catalogue: Catalogue,
    rng: np.random.Generator,
    *,
    skew: float,
    synonyms: float,
    misspellings: float,
) -> QueryTexts:
    """Say every intent in several ways.

    Args:
        intents: What is to be said, most frequent first.
        catalogue: For the names of attribute values.
        rng: Source of every random choice.
        skew: Zipf exponent of the traffic over intents.
        synonyms: Chance that one part of a text is said in other words than the catalogue's.
        misspellings: Share of the traffic whose texts are misspelled.
    """
    traffic = np.arange(1.0, len(intents) + 1) ** -skew
    share = traffic / traffic.sum() / _WORDINGS
    said: list[tuple[str, int, float, bool, bool]] = []  # text, intent, traffic, misspelled, reworded
    typed: list[tuple[str, int, float, bool, bool]] = []
    for intent, uniform in enumerate(rng.random((len(intents), _WORDINGS, 24 + 2 * _MISSPELLINGS))):
        for numbers in uniform:
            draws = Draws(numbers)
            text, reworded = _say(intents, intent, catalogue, draws, synonyms)
            said.append((text, intent, share[intent] * (1 - misspellings), False, reworded))
            slips = {misspell(text, draws) for _ in range(_MISSPELLINGS)} - {text}
            typed += [
                (slip, intent, share[intent] * misspellings / len(slips), True, reworded)
                for slip in sorted(slips)
            ]
    return _distinct(said + typed)


def _distinct(rows: list[tuple[str, int, float, bool, bool]]) -> QueryTexts:
    """Merge equal texts; one that could say two intents says the first, which is the more frequent."""
    merged: dict[str, list[float]] = {}
    for text, intent, traffic, misspelled, reworded in rows:
        row = merged.setdefault(text, [intent, 0.0, misspelled, reworded])
        if row[0] == intent:
            row[1] += traffic
    table = np.array(list(merged.values()))
    return QueryTexts(
        text=list(merged),
        intent=table[:, 0].astype(np.int64),
        traffic=table[:, 1] / table[:, 1].sum(),
        misspelled=table[:, 2].astype(np.bool_),
        reworded=table[:, 3].astype(np.bool_),
    )


def _say(
    intents: Intents, intent: int, catalogue: Catalogue, draws: Draws, synonyms: float
) -> tuple[str, bool]:
    """Return one wording and whether it departs from the catalogue's words."""
    words = vocabulary()
    if intents.use[intent] >= 0:
        return draws.pick(words.uses[intents.use[intent]].say), True
    parts: list[tuple[str, bool]] = []
    if intents.brand[intent] >= 0:
        brand = list(words.brands)[intents.brand[intent]]
        short = words.brands[brand]
        parts.append((short, True) if short and draws.chance(synonyms) else (brand, False))
    if intents.series[intent] >= 0:
        parts.append((words.series[intents.series[intent]], False))
    values = [catalogue.attribute_names[value] for value in intents.attributes[intent] if value >= 0]
    parts += [_value(value, draws, synonyms) for value in values]
    if KINDS[intents.kind[intent]] != "brand":
        parts.append(_category(list(words.categories)[int(intents.want[intent].argmax())], draws, synonyms))
    if draws.chance(_REORDERED):
        parts = sorted(parts, key=lambda _: draws.number())
    if draws.chance(_FILLER):
        front = draws.chance(0.5)
        filler = (draws.pick(words.fillers["front" if front else "back"]), False)
        parts = [filler, *parts] if front else [*parts, filler]
    return " ".join(part for part, _ in parts).lower(), any(reworded for _, reworded in parts)


def _value(value: str, draws: Draws, synonyms: float) -> tuple[str, bool]:
    others = vocabulary().alternatives.get(value, ())
    return (draws.pick(others), True) if others and draws.chance(synonyms) else (value, False)


def _category(name: str, draws: Draws, synonyms: float) -> tuple[str, bool]:
    entry = vocabulary().categories[name]
    if draws.chance(synonyms):
        return draws.pick(entry.foreign if entry.foreign and draws.chance(_FOREIGN) else entry.also), True
    return vocabulary().plural_of(name) if draws.chance(_PLURAL) else name, False


def misspell(text: str, draws: Draws) -> str:
    """Return the text with one slip of the finger in its longest words, or as it is if all are short.

    A letter is left out, doubled, swapped with the next one, or replaced by its neighbour on the keyboard;
    the first letter of a word stays. Words in other scripts stay as they are.
    """
    words = text.split(" ")
    long = [place for place, word in enumerate(words) if len(word) >= _SHORTEST and word.isascii()]
    if not long:
        return text
    chosen = draws.number() * len(long)
    place, within = long[int(chosen)], chosen % 1.0
    word = words[place]
    spot = 1 + int(within * (len(word) - 2))
    letter, following = word[spot], word[spot + 1]
    slips = ("", letter * 2, following + letter, _NEIGHBOURS.get(letter, letter))
    slip = draws.pick(slips)
    words[place] = word[:spot] + slip + word[spot + (2 if slip == following + letter else 1) :]
    return " ".join(words)
