"""The log of the simulated shop: who asked what when, what was shown, what was clicked."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features.shop.catalogue import Catalogue
from features.shop.clicks import Clicks, click
from features.shop.config import SimulateConfig
from features.shop.intents import Intents, relevance
from features.shop.ranker import LoggingRanker
from features.shop.wording import QueryTexts

_LISTS_AT_ONCE = 50_000
_LISTS_PER_USER = 8
_DAY_US = 86_400_000_000
_TRAFFIC_BY_HOUR = (1, 1, 1, 1, 1, 2, 4, 6, 7, 8, 8, 9, 10, 9, 8, 8, 9, 10, 12, 14, 14, 11, 7, 3)


@dataclass(frozen=True, kw_only=True)
class Shop:
    """One drawn world."""

    catalogue: Catalogue
    intents: Intents
    texts: QueryTexts


@dataclass(frozen=True, kw_only=True)
class Searches:
    """Who asked what, when; in order of time. Legend: S searches."""

    text: NDArray[np.int64]  # (S,) row of the texts
    user: NDArray[np.int64]  # (S,)
    time: NDArray[np.int64]  # (S,) microseconds since 1970, UTC

    def __len__(self) -> int:
        return len(self.text)


@dataclass(frozen=True, kw_only=True)
class Page:
    """Consecutive searches with what they were shown and what happened."""

    first: int  # number of the first search
    document: NDArray[np.int64]  # (S, R)
    clicks: Clicks


def draw_searches(texts: QueryTexts, config: SimulateConfig, rng: np.random.Generator) -> Searches:
    """Draw the searches; a few users search much, most of them little."""
    count = config.sessions
    hours = np.array(_TRAFFIC_BY_HOUR, dtype=np.float64)
    hour = rng.choice(len(hours), size=count, p=hours / hours.sum())
    within = (hour + rng.random(count)) / len(hours)
    day = rng.integers(config.days, size=count)
    users = max(1, count // _LISTS_PER_USER)
    return Searches(
        text=rng.choice(len(texts), size=count, p=texts.traffic),
        user=(users * rng.random(count) ** 1.5).astype(np.int64),
        time=np.sort(
            round(config.start.timestamp()) * 1_000_000 + ((day + within) * _DAY_US).astype(np.int64)
        ),
    )


def pages(shop: Shop, searches: Searches, config: SimulateConfig, rng: np.random.Generator) -> Iterator[Page]:
    """Show and click through all searches in order; cold documents take part from `recent_from` on."""
    ranker = LoggingRanker(shop.catalogue, classifier=config.classifier, exploration=config.exploration)
    believed_tc = ranker.believe(shop.texts, shop.intents, rng)
    recent = int(np.searchsorted(searches.time, round(config.recent_from.timestamp() * 1_000_000)))
    for first, last, listed in (
        (0, recent, ~shop.catalogue.cold),
        (recent, len(searches), np.ones_like(shop.catalogue.cold)),
    ):
        asked, row_of = np.unique(searches.text[first:last], return_inverse=True)
        candidates = ranker.candidates(
            [shop.texts.text[row] for row in asked.tolist()], believed_tc[asked], listed
        )
        for start in range(first, last, _LISTS_AT_ONCE):
            stop = min(start + _LISTS_AT_ONCE, last)
            document = ranker.show(candidates, row_of[start - first : stop - first], config.results, rng)
            intent = shop.texts.intent[searches.text[start:stop]]
            grade = relevance(shop.intents, shop.catalogue, intent[:, None], document)
            clicks = click(grade, shop.catalogue.quality[document], config.clicks, rng)
            yield Page(first=start, document=document, clicks=clicks)
