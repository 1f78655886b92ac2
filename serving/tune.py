"""ANN recall against exact search, time per query, and the settings of one index that reach a target.

**ANN recall@k** is the share of the exact k nearest documents that the index returns. A returned document
whose exact score equals the k-th exact score counts as one of them, since duplicates of a listing are
interchangeable there. FAISS searches one inverted list by default, so an index is never shipped unmeasured.

Shapes: B queries, N documents, D embedding, k neighbours.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import faiss
import numpy as np

from serving.index import Index, Neighbours, SearchEngine, SearchParameter
from serving.vectors import Vectors, check_vectors

Parameters = dict[SearchParameter, int]

_TIE = 1e-5  # of the lengths' product; the same sum in another order differs by about this much in float32
_BATCH = 32  # what micro-batching hands over at a time
_SINGLES = 100
_SECONDS = 0.1  # a timing stops here, once it has a few samples
_FEWEST = 5
_FACTORS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64)  # of k, re-scored by exact vectors
_MOST_REFINED = 2_000
_EFFORTS = (1.0, 1.15, 1.3, 1.5, 1.75, 2.0, 2.5, 3.0)  # of the fewest lists that can have the target
_SLOWER = 1.5  # a setting this many times slower than the best so far is not followed further
_GAIN = 5e-4  # two doublings that each gain less have reached what the codes can tell apart


@dataclass(frozen=True)
class Reading:
    """What an index gave at one setting.

    Attributes:
        parameters: The search parameters.
        ann_recall: ANN recall@k.
        batch_us: Microseconds a query in faiss, in batches of 32 on one thread: the lower quartile.
        p50_us: Microseconds of a query alone, on one thread: the median.
    """

    parameters: Parameters
    ann_recall: float
    batch_us: float
    p50_us: float


class Yardstick:
    """Queries with their exact neighbours, to measure any index of the same documents by.

    Args:
        query_BD: At least one query.
        document_ND: The documents, in the row order of every index measured.
        k: Depth; clipped to N.

    Raises:
        ValueError: If there are no queries.
    """

    def __init__(self, query_BD: Vectors, document_ND: Vectors, k: int) -> None:
        if len(query_BD) == 0:
            raise ValueError("ANN recall needs at least one query")
        self.query_BD, self.document_ND, self.k = query_BD, document_ND, k
        self._exact = exact_search(query_BD, document_ND, k)
        lengths_B = np.linalg.norm(query_BD, axis=1)
        self._lowest = [
            found.scores[-1] - _TIE * float(length * np.linalg.norm(document_ND[found.rows[-1]]))
            for found, length in zip(self._exact, lengths_B, strict=True)
        ]

    def recall(self, index: SearchEngine) -> float:
        """Return the mean ANN recall@k at the index's present parameters."""
        shares = []
        for query_D, wanted, lowest, got in zip(
            self.query_BD, self._exact, self._lowest, index.search(self.query_BD, self.k), strict=True
        ):
            true_scores = self.document_ND[got.rows] @ query_D  # the index's own scores may be quantised
            shares.append(min(len(wanted.rows), int((true_scores >= lowest).sum())) / len(wanted.rows))
        return float(np.mean(shares))

    def read(self, index: Index, parameters: Parameters) -> Reading:
        """Set the parameters and measure."""
        index.set_parameters(parameters)
        recall = self.recall(index)
        return Reading(dict(parameters), recall, quiet(self.batches(index)), self._alone(index))

    def batches(self, index: Index) -> list[float]:
        """Return microseconds a query for batch after batch, on one thread."""
        repeated = np.resize(np.arange(len(self.query_BD)), max(len(self.query_BD), _BATCH * _FEWEST))
        starts = range(0, len(repeated) - _BATCH + 1, _BATCH)
        batches = (self.query_BD[repeated[start : start + _BATCH]] for start in starts)
        return [1e6 * seconds / _BATCH for seconds in _timed(index, self.k, batches)]

    def _alone(self, index: Index) -> float:
        rows = np.resize(np.arange(len(self.query_BD)), _SINGLES)
        return 1e6 * median(_timed(index, self.k, (self.query_BD[row : row + 1] for row in rows)))


def quiet(times: list[float]) -> float:
    """Return the lower quartile: what else runs on a machine only ever adds to a time."""
    return float(np.quantile(times, 0.25))


def _timed(index: Index, k: int, batches: Iterator[Vectors]) -> list[float]:
    k = min(k, index.size)
    seconds: list[float] = []
    with one_thread():
        for batch_BD in batches:
            start = time.perf_counter()
            index.whole(batch_BD, k)
            seconds.append(time.perf_counter() - start)
            if len(seconds) >= _FEWEST and sum(seconds) > _SECONDS:
                break
    return seconds


@contextmanager
def one_thread() -> Iterator[None]:
    """Let faiss use one thread, as a serving process under load has for each search."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def exact_search(query_BD: Vectors, document_ND: Vectors, k: int) -> list[Neighbours]:
    """Return the k documents of largest inner product for each query, by a full scan."""
    checked_BD = check_vectors(query_BD, document_ND.shape[1])
    k = min(k, len(document_ND))
    if len(checked_BD) == 0:
        return []
    score_Bk, row_Bk = faiss.knn(checked_BD, document_ND, k, metric=faiss.METRIC_INNER_PRODUCT)
    found = []
    for scores, rows in zip(score_Bk, row_Bk, strict=True):
        order = np.lexsort((rows, -scores))
        found.append(Neighbours(rows[order], scores[order]))
    return found


def ann_recall(index: SearchEngine, query_BD: Vectors, document_ND: Vectors, k: int) -> float:
    """Return the mean ANN recall@k of the index over the queries, at its present parameters.

    Raises:
        ValueError: If there are no queries.
    """
    return Yardstick(query_BD, document_ND, k).recall(index)


def tune(
    index: Index, yardstick: Yardstick, target: float, fixed: Parameters, limit_us: float = float("inf")
) -> list[Reading]:
    """Measure the settings that lead to the cheapest one with the target; the index is left at any.

    The one parameter of a family is doubled until the target is met, then bisected to the smallest that has
    it. Where candidates are re-scored by exact vectors, that is done with many of them; then the smallest
    `k_factor_rf` is sought for more and more lists scanned, for as long as it pays.

    Args:
        index: At any setting.
        yardstick: What to measure by.
        target: ANN recall@k to reach.
        fixed: Parameters that are not tuned.
        limit_us: Microseconds a query, in batches, beyond which a setting is of no interest.
    """
    name = None if index.tunable in fixed else index.tunable
    if "k_factor_rf" in fixed or not _refines(index):
        search = _Doubling(index, yardstick, fixed, name)
        search.smallest(target, limit_us)
        return list(search.tried.values())
    factors = [factor for factor in _FACTORS if factor == 1 or factor * yardstick.k <= _MOST_REFINED]
    search = _Doubling(index, yardstick, {**fixed, "k_factor_rf": factors[-1]}, name)
    floor = search.smallest(target, float("inf"))
    readings = list(search.tried.values())
    if floor is None:
        return readings
    least = 1 if name is None else floor.parameters[name]
    best = limit_us
    for effort in sorted({min(math.ceil(step * least), index.largest_setting) for step in _EFFORTS}):
        held: Parameters = fixed if name is None else {**fixed, name: effort}
        found = _smallest_factor(index, yardstick, held, factors, target)
        readings += found
        met = [reading.batch_us for reading in found if reading.ann_recall >= target]
        if met and min(met) > _SLOWER * best:
            break
        best = min([best, *met])
    return readings


def _smallest_factor(
    index: Index, yardstick: Yardstick, held: Parameters, factors: list[int], target: float
) -> list[Reading]:
    """Bisect the factors, the largest of which has the target; return what was read on the way."""
    below, above, readings = -1, len(factors) - 1, []
    while above - below > 1:
        middle = (above + below) // 2
        readings.append(yardstick.read(index, {**held, "k_factor_rf": factors[middle]}))
        below, above = (below, middle) if readings[-1].ann_recall >= target else (middle, above)
    return readings


def _lowest(name: SearchParameter | None, yardstick: Yardstick) -> int:
    return yardstick.k if name == "efSearch" else 1  # a graph keeps k candidates whatever efSearch is


class _Doubling:
    """Readings of one index over its one parameter, the rest held."""

    def __init__(
        self, index: Index, yardstick: Yardstick, held: Parameters, name: SearchParameter | None
    ) -> None:
        self._index, self._yardstick, self._held, self._name = index, yardstick, held, name
        self.tried: dict[int, Reading] = {}

    def at(self, setting: int) -> Reading:
        if setting not in self.tried:
            varied: Parameters = {} if self._name is None else {self._name: setting}
            self.tried[setting] = self._yardstick.read(self._index, {**self._held, **varied})
        return self.tried[setting]

    def smallest(self, target: float, limit_us: float) -> Reading | None:
        """Return the smallest setting with the target; None if it is out of reach or far beyond the limit."""
        largest = self._index.largest_setting if self._name else 1
        above = min(largest, _lowest(self._name, self._yardstick))
        below = above - 1
        gains = [1.0, 1.0]
        while self.at(above).ann_recall < target:
            if above == largest or self.at(above).batch_us > _SLOWER * limit_us or max(gains[-2:]) < _GAIN:
                return None
            below, above = above, min(2 * above, largest)
            gains.append(self.at(above).ann_recall - self.at(below).ann_recall)
        while above - below > 1:
            middle = (above + below) // 2
            if self.at(middle).ann_recall >= target:
                above = middle
            else:
                below = middle
        return self.at(above)


def _refines(index: Index) -> bool:
    try:
        index.set_parameters({"k_factor_rf": 1})
    except ValueError:
        return False
    return True
