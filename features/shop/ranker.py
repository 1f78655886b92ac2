"""The ranker that the simulated shop had when its log was written.

It is of middling quality. It adds up (1) how many of the query's words a listing holds, rare words and
those of the title counting more, (2) the listing's popularity, and (3) a query classifier: for each category
that the query truly wants, the shop knows so with a fixed chance, and sometimes it believes in a category
that is wrong. The classifier is how listings come to be shown, and clicked, for words that they do not hold.
Noise on the scores varies the lists, and a few places go to listings drawn at random.
Legend: T texts, D documents, C categories, W words, M candidates, S lists, R places in a list.
"""

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features.shop.catalogue import Catalogue
from features.shop.intents import Intents
from features.shop.wording import QueryTexts

_WORDS_WEIGHT, _POPULARITY_WEIGHT, _CLASSIFIER_WEIGHT = 5.0, 0.35, 2.5
_NOISE = 0.5  # scale of the Gumbel noise on scores
_WRONG_CATEGORY = 0.3  # chance that the classifier believes in one wrong category
_CANDIDATES = 100
_TEXTS_AT_ONCE = 256
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The best listings of each text before noise."""

    document: NDArray[np.int64]  # (T, M)
    score: NDArray[np.float32]  # (T, M)
    listed: NDArray[np.int64]  # every document that may be shown


class LoggingRanker:
    """Ranks one catalogue."""

    def __init__(self, catalogue: Catalogue, *, classifier: float, exploration: float) -> None:
        """Index the words of the catalogue.

        Args:
            catalogue: The listings.
            classifier: Chance that the shop knows one wanted category of a query text.
            exploration: Share of places that go to listings drawn at random.
        """
        self._catalogue = catalogue
        self._classifier = classifier
        self._exploration = exploration
        titles = [_WORD.findall(title.lower()) for title in catalogue.frame["title"]]
        texts = [_WORD.findall(text.lower()) for text in catalogue.frame["text"]]
        self._place = {
            word: row for row, word in enumerate(sorted({w for words in titles + texts for w in words}))
        }
        weight_wd = np.zeros(
            (len(self._place) + 1, len(catalogue)), dtype=np.float32
        )  # the last row: unknown words
        for words_of, share in ((texts, 0.6), (titles, 1.0)):
            for document, words in enumerate(words_of):
                weight_wd[[self._place[word] for word in words], document] = share
        holders = (weight_wd > 0).sum(axis=1)
        self._rarity = np.log1p(len(catalogue) / (1.0 + holders)).astype(np.float32)
        self._weight_wd = weight_wd * self._rarity[:, None]
        logarithm = np.log(catalogue.popularity)
        self._popularity = (logarithm - logarithm.mean()).astype(np.float32) * np.float32(_POPULARITY_WEIGHT)

    def candidates(
        self,
        texts: list[str],
        believed_tc: NDArray[np.bool_],
        listed: NDArray[np.bool_],
    ) -> Candidates:
        """Score the documents that are `listed`, (D,), for each text and keep the best, at most 100."""
        kept = min(_CANDIDATES, int(listed.sum()))
        document = np.empty((len(texts), kept), dtype=np.int64)
        score = np.empty((len(texts), kept), dtype=np.float32)
        fixed = np.where(listed, self._popularity, -np.inf).astype(np.float32)
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            part = slice(start, start + _TEXTS_AT_ONCE)
            score_td = self._words_score(texts[part]) + fixed
            score_td += np.float32(_CLASSIFIER_WEIGHT) * believed_tc[part][:, self._catalogue.category]
            best = np.argpartition(score_td, -kept, axis=1)[:, -kept:]
            document[part] = best
            score[part] = np.take_along_axis(score_td, best, axis=1)
        return Candidates(document=document, score=score, listed=np.nonzero(listed)[0])

    def believe(self, texts: QueryTexts, intents: Intents, rng: np.random.Generator) -> NDArray[np.bool_]:
        """Draw which categories the shop believes each text to want, (T, C)."""
        wanted_tc = intents.want[texts.intent] > 0
        believed_tc = wanted_tc & (rng.random(wanted_tc.shape) < self._classifier)
        wrong = rng.integers(wanted_tc.shape[1], size=len(texts))
        mistaken = np.nonzero(rng.random(len(texts)) < _WRONG_CATEGORY)[0]
        believed_tc[mistaken, wrong[mistaken]] = True
        return believed_tc

    def _words_score(self, texts: list[str]) -> NDArray[np.float32]:
        words = [[self._place.get(word, -1) for word in _WORD.findall(text)] or [-1] for text in texts]
        longest = max(map(len, words))
        padded = np.array([row + [-1] * (longest - len(row)) for row in words])
        score_td = np.zeros((len(texts), len(self._catalogue)), dtype=np.float32)
        possible = np.zeros(len(texts), dtype=np.float32)
        for column in padded.T:
            score_td += self._weight_wd[column]
            possible += np.where(column >= 0, self._rarity[column], 0)
        score_td *= (np.float32(_WORDS_WEIGHT) / np.maximum(possible, np.float32(1e-6)))[:, None]
        return score_td

    def show(
        self,
        candidates: Candidates,
        rows: NDArray[np.int64],
        places: int,
        rng: np.random.Generator,
    ) -> NDArray[np.int64]:
        """Make one list for each row of `candidates`: distinct documents, best first, (S, R)."""
        noisy = candidates.score[rows] + rng.gumbel(scale=_NOISE, size=(len(rows), candidates.score.shape[1]))
        places = min(places, noisy.shape[1])
        best = np.argsort(-noisy, axis=1)[:, :places]
        shown = np.take_along_axis(candidates.document[rows], best, axis=1)
        drawn = candidates.listed[rng.integers(len(candidates.listed), size=shown.shape)]
        explored = rng.random(shown.shape) < self._exploration
        for place in range(places):
            fresh = explored[:, place] & ~(shown == drawn[:, place : place + 1]).any(axis=1)
            shown[fresh, place] = drawn[fresh, place]
        return shown
