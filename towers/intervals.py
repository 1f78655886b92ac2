"""How sure a mean over queries is: bootstrap intervals, paired tests, several seeds.

Shapes: Q queries, M columns (systems times metrics), R resamples, S seeds.

One generator, seeded, draws for all M columns at once: every column meets the same resamples.
"""

from dataclasses import dataclass

import numpy as np

from towers.metrics import Floats

LEVEL = 0.95
"""Share of resamples inside an interval."""

_DRAWN_AT_ONCE = 2**22


@dataclass(frozen=True)
class Interval:
    """A mean and a 95 % interval around it.

    Attributes:
        value: The mean over queries.
        low: 2.5th percentile.
        high: 97.5th percentile.
        n: Queries behind it.
    """

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Paired:
    """A mean difference over the same queries, its 95 % interval, and the p value of there being none."""

    difference: float
    low: float
    high: float
    p: float
    n: int


def bootstrap(value_QM: Floats, *, resamples: int, seed: int) -> list[Interval]:
    """Percentile bootstrap over queries, for each column.

    Each resample draws Q queries with replacement; the interval is that of the resampled means. One query
    gives an interval of no width, which says nothing: look at n.

    Raises:
        ValueError: If there is no query, or a value is not finite.
    """
    mean_RM = _resampled(_finite(value_QM), resamples, seed)
    low, high = _percentiles(mean_RM)
    return [
        Interval(float(value), float(a), float(b), len(value_QM))
        for value, a, b in zip(value_QM.mean(axis=0), low, high, strict=True)
    ]


def paired(a_QM: Floats, b_QM: Floats, *, resamples: int, seed: int) -> list[Paired]:
    """Compare two systems on the same queries, for each column: a - b.

    The interval is the bootstrap's of the differences. The p value is that of the randomisation test: under
    the hypothesis that the systems are exchangeable the sign of each query's difference is a coin; p is the
    share of coin tosses with a mean at least as far from 0, the observed one counted among them.

    Raises:
        ValueError: If the shapes differ, there is no query, or a value is not finite.
    """
    if a_QM.shape != b_QM.shape:
        raise ValueError(
            f"paired values have shapes {a_QM.shape} and {b_QM.shape}; they must be of the same queries"
        )
    difference_QM = _finite(a_QM) - _finite(b_QM)
    low, high = _percentiles(_resampled(difference_QM, resamples, seed))
    p = _sign_flips(difference_QM, resamples, seed)
    columns = zip(difference_QM.mean(axis=0), low, high, p, strict=True)
    return [Paired(float(d), float(a), float(b), float(q), len(a_QM)) for d, a, b, q in columns]


def combine_seeds(value_SQ: Floats, *, resamples: int, seed: int) -> Interval:
    """Mean over training seeds, with an interval that counts both queries and seeds.

    Queries and seeds vary independently, so the two uncertainties add up: each resample is the mean over a
    bootstrap of the queries (of their mean over the seeds), plus the standard error of the mean over the
    seeds times a draw of Student's t with S - 1 degrees of freedom. With three seeds t is wide (97.5 % at
    4.3), as three seeds deserve. One seed leaves the queries' interval alone, which says nothing about other
    seeds.

    The same function combines paired differences: pass a - b.

    Args:
        value_SQ: One row of per-query values for each seed, the queries in the same order.
        resamples: How many.
        seed: Of the generator.

    Raises:
        ValueError: If there is no query, or a value is not finite.
    """
    _finite(value_SQ)
    mean_R = _resampled(value_SQ.mean(axis=0)[:, None], resamples, seed)[:, 0]
    seeds = len(value_SQ)
    if seeds > 1:
        error = value_SQ.mean(axis=1).std(ddof=1) / np.sqrt(seeds)
        mean_R = mean_R + error * np.random.default_rng([seed, 2]).standard_t(seeds - 1, size=resamples)
    low, high = _percentiles(mean_R[:, None])
    return Interval(float(value_SQ.mean()), float(low[0]), float(high[0]), value_SQ.shape[1])


def _resampled(value_QM: Floats, resamples: int, seed: int) -> Floats:
    """Return (R, M) means over queries drawn with replacement."""
    queries = len(value_QM)
    generator = np.random.default_rng([seed, 0])
    means = []
    for rows in _chunks(resamples, queries):
        drawn = generator.integers(0, queries, size=(rows, queries))
        drawn += np.arange(rows)[:, None] * queries
        weight_RQ = np.bincount(drawn.ravel(), minlength=rows * queries).reshape(rows, queries)
        means.append(weight_RQ.astype(np.float64) @ value_QM / queries)
    return np.concatenate(means)


def _sign_flips(difference_QM: Floats, resamples: int, seed: int) -> Floats:
    """Return (M,) two-sided p values."""
    queries = len(difference_QM)
    generator = np.random.default_rng([seed, 1])
    observed = np.abs(difference_QM.sum(axis=0))
    tolerance = 1e-9 * np.abs(difference_QM).sum(axis=0)  # sums of the same terms differ in the last bits
    as_far = np.zeros(difference_QM.shape[1])
    for rows in _chunks(resamples, queries):
        sign_RQ = 2.0 * generator.integers(0, 2, size=(rows, queries)) - 1.0
        as_far += (np.abs(sign_RQ @ difference_QM) >= observed - tolerance).sum(axis=0)
    return np.asarray((1.0 + as_far) / (1.0 + resamples))


def _chunks(resamples: int, queries: int) -> list[int]:
    rows = max(1, _DRAWN_AT_ONCE // queries)
    return [min(rows, resamples - done) for done in range(0, resamples, rows)]


def _percentiles(mean_RM: Floats) -> tuple[Floats, Floats]:
    outside = (1.0 - LEVEL) / 2.0
    low, high = np.quantile(mean_RM, [outside, 1.0 - outside], axis=0)
    return low, high


def _finite(value_QM: Floats) -> Floats:
    if value_QM.ndim != 2 or not value_QM.size:
        raise ValueError(
            f"values have shape {value_QM.shape}; an interval needs two dimensions and no empty one"
        )
    if not np.isfinite(value_QM).all():
        raise ValueError("values that are not finite have no mean; leave out the queries without a value")
    return value_QM
