import itertools

import numpy as np
import pytest

from towers.intervals import bootstrap, combine_seeds, paired


def column(values) -> np.ndarray:
    return np.asarray(values, dtype=np.float64)[:, None]


def test_the_interval_of_many_normal_values_is_that_of_the_normal_distribution():
    values = np.random.default_rng(0).normal(3.0, 2.0, 4000)
    interval = bootstrap(column(values), resamples=4000, seed=1)[0]
    error = values.std() / np.sqrt(len(values))
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert interval.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)
    assert interval.n == 4000


def test_about_nineteen_of_twenty_intervals_hold_the_true_mean():
    samples = np.random.default_rng(2).random((60, 400))  # 400 samples of 60 queries, true mean 0.5
    found = bootstrap(samples, resamples=1000, seed=3)
    held = np.mean([interval.low <= 0.5 <= interval.high for interval in found])
    assert 0.90 <= held <= 0.98


def test_a_seed_gives_the_same_interval_again_and_another_seed_another_one():
    values = column(np.random.default_rng(4).random(50))
    assert bootstrap(values, resamples=200, seed=0) == bootstrap(values, resamples=200, seed=0)
    assert bootstrap(values, resamples=200, seed=0) != bootstrap(values, resamples=200, seed=1)


def test_each_column_meets_the_same_resamples():
    values = column(np.random.default_rng(5).random(30))
    both = bootstrap(np.hstack([values, values + 1.0]), resamples=300, seed=0)
    assert both[1].low == pytest.approx(both[0].low + 1.0)
    assert both[0].low == pytest.approx(bootstrap(values, resamples=300, seed=0)[0].low)


def test_drawing_in_chunks_still_draws_every_resample(monkeypatch):
    values = column(np.random.default_rng(6).random(40))
    monkeypatch.setattr("towers.intervals._DRAWN_AT_ONCE", 100)
    interval = bootstrap(values, resamples=2001, seed=0)[0]
    error = values.std() / np.sqrt(40)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_one_query_has_an_interval_of_no_width_and_a_p_value_of_one():
    interval = bootstrap(column([0.4]), resamples=100, seed=0)[0]
    assert (interval.low, interval.value, interval.high, interval.n) == (0.4, 0.4, 0.4, 1)
    assert paired(column([0.4]), column([0.1]), resamples=100, seed=0)[0].p == 1.0


def test_the_p_value_approaches_that_of_all_sign_flips():
    difference = np.array([0.3, 0.1, -0.05, 0.2, 0.4, -0.1, 0.15, 0.25])
    flips = np.array(list(itertools.product([-1, 1], repeat=8))) @ difference
    exact = np.mean(np.abs(flips) >= abs(difference.sum()) - 1e-12)
    found = paired(column(difference), column(np.zeros(8)), resamples=20_000, seed=0)[0]
    assert found.p == pytest.approx(exact, abs=0.006)
    assert found.difference == pytest.approx(difference.mean())


def test_equal_systems_differ_by_nothing_with_a_p_value_of_one():
    values = column(np.random.default_rng(7).random(20))
    found = paired(values, values, resamples=200, seed=0)[0]
    assert (found.difference, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_pairing_sees_a_small_constant_gain_that_the_spread_of_queries_hides():
    values = np.random.default_rng(8).random(200)
    better, worse = column(values + 0.01), column(values)
    test = paired(better, worse, resamples=1000, seed=0)[0]
    assert test.low > 0
    assert test.p < 0.01
    first, second = (bootstrap(side, resamples=1000, seed=0)[0] for side in (better, worse))
    assert first.low < second.high


def test_several_seeds_widen_the_interval_by_how_much_they_disagree():
    queries = np.random.default_rng(9).random(500)
    agree = combine_seeds(np.stack([queries] * 3), resamples=4000, seed=0)
    disagree = combine_seeds(np.stack([queries - 0.1, queries, queries + 0.1]), resamples=4000, seed=0)
    alone = bootstrap(column(queries), resamples=4000, seed=0)[0]
    assert agree == alone
    assert disagree.value == pytest.approx(agree.value)
    assert disagree.high - disagree.low == pytest.approx(2 * 4.30 * 0.1 / np.sqrt(3), rel=0.15)
    assert disagree.n == 500


def test_one_seed_has_the_interval_of_its_queries():
    values = np.random.default_rng(10).random((1, 90))
    assert combine_seeds(values, resamples=500, seed=4) == bootstrap(values.T, resamples=500, seed=4)[0]


def test_about_nineteen_of_twenty_combined_intervals_hold_the_true_mean():
    rng = np.random.default_rng(11)
    held = []
    for _ in range(200):  # three seeds with an effect of their own on 50 shared queries
        values = rng.normal(0, 0.3, 50) + rng.normal(0, 0.05, (3, 1)) + rng.normal(0, 0.1, (3, 50))
        interval = combine_seeds(values, resamples=400, seed=0)
        held.append(interval.low <= 0.0 <= interval.high)
    assert 0.90 <= np.mean(held) <= 0.995


@pytest.mark.parametrize("values", [column([0.1, np.nan]), column([np.inf]), np.zeros((0, 1)), np.zeros(3)])
def test_values_without_a_mean_are_refused(values):
    for call in (bootstrap, combine_seeds):
        with pytest.raises(ValueError, match=r"not finite|have shape"):
            call(values, resamples=100, seed=0)


def test_unequal_queries_are_not_paired():
    with pytest.raises(ValueError, match=r"\(2, 1\) and \(3, 1\)"):
        paired(np.zeros((2, 1)), np.zeros((3, 1)), resamples=100, seed=0)
