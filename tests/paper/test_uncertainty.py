"""Intervals, grids of means, repetition noise and paired tests, against scipy, enumeration and closed forms."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rmbook.paper.statistics import compare_paired, possible_mean, repetition_spread, wilson_interval

counts = st.integers(1, 300)


@given(counts, st.data())
def test_wilson_is_scipys(count, data):
    right = data.draw(st.integers(0, count))
    expected = stats.binomtest(right, count).proportion_ci(0.95, method="wilson")
    assert np.allclose(wilson_interval(100 * right / count, count), 100 * np.array(expected), atol=1e-9)


def test_wilson_takes_arrays_and_inverts_the_score_test():
    scores, sizes = np.array([[0.0], [63.5], [100.0]]), np.array([56, 104])
    low, high = wilson_interval(scores, sizes)
    assert low.shape == high.shape == (3, 2) and np.allclose((low[0], 100 - high[2]), 0)
    for end in (low, high):
        inside = (end > 1e-9) & (end < 100 - 1e-9)
        z2 = (scores - end) ** 2 * sizes / np.where(inside, end * (100 - end), 1)
        assert np.allclose(z2[inside], stats.norm.ppf(0.975) ** 2)


@pytest.mark.parametrize("count", [56, 104])
def test_wilson_covers_on_average_what_it_says(count):
    """Exact: all outcomes of a binomial, over a grid of true shares; the mean coverage is close to 95 %."""
    right, shares = np.arange(count + 1), np.linspace(0.05, 0.95, 181)
    low, high = wilson_interval(100 * right / count, count)
    covers = (low <= 100 * shares[:, None]) & (100 * shares[:, None] <= high)
    coverage = (stats.binom.pmf(right, count, shares[:, None]) * covers).sum(1)
    assert 0.945 < coverage.mean() < 0.96 and coverage.min() > 0.90


@given(st.integers(1, 1000), st.integers(1, 3), st.data())
def test_every_mean_that_can_be_is_called_possible(count, runs, data):
    right = sum(data.draw(st.lists(st.integers(0, count), min_size=runs, max_size=runs)))
    assert possible_mean(round(100 * right / (count * runs), 1), count, runs)


def test_possible_means_are_those_of_an_enumeration():
    printed = np.arange(1001) / 10
    for count, runs in ((56, 1), (56, 3), (104, 3), (277, 3)):
        grid = 100 * np.arange(count * runs + 1) / (count * runs)
        near = abs(printed[:, None] - grid).min(1) <= 0.05 + 1e-9
        assert (possible_mean(printed, count, runs) == near).all() and 0 < near.mean() < 1


def test_repetition_spread_has_the_mean_and_variance_of_its_degrees_of_freedom():
    """Exact: s^2 = x'Ax / (2 (R - 1)) for normal x has mean tr A / ... and variance 2 tr A^2 / ..."""
    for length in (2, 3, 7, 9):
        steps = np.diff(np.eye(length), axis=0)
        form = steps.T @ steps / (2 * (length - 1))
        degrees = repetition_spread(np.zeros((1, length)))[1]
        assert np.isclose(np.trace(form), 1) and np.isclose(2 / degrees, 2 * np.trace(form @ form))
        x = np.random.default_rng(length).normal(size=length)
        assert np.isclose(repetition_spread(x[None])[0] ** 2, x @ form @ x)


def test_repetition_spread_pools_series_and_a_trend_adds_little():
    series = np.random.default_rng(0).normal(size=(5, 4, 7))  # five tasks, four series
    spread, degrees = repetition_spread(series)
    single = np.array([[repetition_spread(row[None])[0] for row in task] for task in series])
    assert spread.shape == (5,) and np.allclose(spread**2, (single**2).mean(1))
    assert degrees == 4 * repetition_spread(series[0, :1])[1]
    trend = np.linspace(0, 0.6, 7)  # 0.1 a neighbour: adds 0.1^2 / 2, and a cross term, telescoped
    cross = 0.1 * (series[..., -1] - series[..., 0]).mean(-1) / 6
    assert np.allclose(repetition_spread(series + trend)[0] ** 2, spread**2 + 0.005 + cross)


@given(st.lists(st.floats(-10, 10), min_size=5, max_size=11, unique_by=lambda x: round(abs(x), 6)))
def test_paired_tests_are_scipys(values):
    values = np.array([value for value in np.round(values, 6) if value])
    if len(values) < 2:
        return
    result = compare_paired(values)
    assert np.isclose(result.wilcoxon_p, stats.wilcoxon(values, method="exact").pvalue)
    assert result.wins + result.losses == len(values)
    assert np.isclose(result.sign_p, stats.binomtest(int((values > 0).sum()), len(values)).pvalue)
    assert np.allclose((result.low, result.high), stats.ttest_1samp(values, 0).confidence_interval(0.95))
    flipped = compare_paired(-values)
    assert flipped.mean == -result.mean and flipped.wilcoxon_p == result.wilcoxon_p


def test_ties_and_zeros():
    tied = np.array([1, 1, 1, -1, 2, 0])

    def rank_sum(x, axis):
        return (np.sign(x) * stats.rankdata(abs(x), axis=axis)).sum(axis)

    exact = stats.permutation_test((tied[tied != 0],), rank_sum, permutation_type="samples", n_resamples=np.inf)
    assert np.isclose(compare_paired(tied).wilcoxon_p, exact.pvalue)
    same = compare_paired(np.zeros(5))
    assert same.sign_p == same.wilcoxon_p == 1 and same.wins == same.losses == 0 == same.mean
    assert compare_paired([1, 2, 3, 4, 5, 6]).sign_p == 2 * 0.5**6  # six of a kind are needed for 5 %


def test_what_is_refused():
    refused = [
        (wilson_interval, (101, 10), "0 to 100"),
        (wilson_interval, (50, 0), "at least 1"),
        (possible_mean, (50, 0), "at least 1"),
        (repetition_spread, ([1.0, 2.0],), "shape"),
        (repetition_spread, ([[1.0, np.nan]],), "finite"),
        (compare_paired, ([1.0],), "2 to 20"),
        (compare_paired, ([1.0, np.inf],), "finite"),
    ]
    for function, arguments, words in refused:
        with pytest.raises(ValueError, match=words):
            function(*arguments)
