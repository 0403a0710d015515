"""Intervals over bases: against scipy, and by what they promise in simulated worlds."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rmbook.evidence.inference import equivalence, estimate, holm, over_bases, unit_of


def values(table) -> pd.Series:
    """A (bases, seeds) table as a series indexed by base and seed."""
    frame = pd.DataFrame(table).rename_axis(index="base", columns="seed")
    return frame.stack()


def worlds(count: int, mean: float, bases: int = 5, seeds: int = 2):
    random = np.random.default_rng(0)
    for _ in range(count):
        yield values(mean + 2 * random.standard_normal((bases, 1)) + random.standard_normal((bases, seeds)))


def test_the_interval_is_students_over_the_bases_means():
    table = np.random.default_rng(1).normal(3, 1, (5, 2))
    found, means = estimate(values(table)), table.mean(1)
    low, high = stats.t.interval(0.95, 4, means.mean(), stats.sem(means))
    assert (found.mean, found.low, found.high) == pytest.approx((means.mean(), low, high))
    assert found.between_bases == pytest.approx(means.std(ddof=1))
    assert found.between_seeds == pytest.approx(math.sqrt(table.var(axis=1, ddof=1).mean()))
    assert found.p_above(2.5) == pytest.approx(stats.ttest_1samp(means, 2.5, alternative="greater").pvalue)


def test_seeds_are_the_unit_of_one_base_and_say_so():
    one = values(np.array([[1.0, 2.0, 4.0]]))
    found = estimate(one)
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, 2, 7 / 3, stats.sem([1, 2, 4])))
    assert math.isnan(found.between_bases) and found.units == 3
    assert unit_of(one.reset_index()) == "seeds" and unit_of(values(np.ones((2, 1))).reset_index()) == "bases"


def test_one_run_says_nothing():
    found = estimate(values(np.array([[50.0]])))
    assert found.verdict(least=0) == "inconclusive" and math.isnan(found.low) and math.isnan(found.p_above())


@pytest.mark.parametrize("bad", [[], [1.0, math.inf], [-math.inf]])
def test_values_that_are_no_numbers_are_refused(bad):
    with pytest.raises(ValueError, match="finite"):
        estimate(values(np.array(bad)[:, None]))


def test_the_interval_covers_the_mean_as_often_as_it_says_and_seeds_alone_would_not():
    covered, naive = 0, 0
    for world in worlds(2000, 3.0):
        found = estimate(world)
        covered += found.low <= 3 <= found.high
        low, high = stats.t.interval(0.95, 9, world.mean(), stats.sem(world))  # as if runs were independent
        naive += low <= 3 <= high
    assert abs(covered / 2000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)
    assert naive / 2000 < 0.92


def test_a_true_claim_at_its_border_is_rarely_said_to_hold_and_a_false_match_rarely_to_match():
    for verdicts in (
        [estimate(world).verdict(least=0) for world in worlds(1000, 0.0)],
        [equivalence(world, 3.0) for world in worlds(1000, 3.0)],
    ):
        assert verdicts.count("holds") / 1000 < 0.05 + 4 * math.sqrt(0.05 * 0.95 / 1000)
    assert [equivalence(world, 9.0) for world in worlds(200, 0.0)].count("holds") > 190  # and it can say so


@settings(max_examples=15)  # statsmodels collects garbage at each call, which takes half a second
@given(st.dictionaries(st.sampled_from("abcdef"), st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(p_values):
    rejected = holm(p_values)
    for name in p_values:
        others = [other for other in p_values if p_values[other] >= p_values[name]]
        # rejected if and only if all hypotheses with smaller p-values are, too, and its own passes
        expected = all(
            p_values[n] <= 0.05 / sum(p_values[o] >= p_values[n] for o in p_values)
            for n in p_values
            if p_values[n] < p_values[name]
        ) and p_values[name] <= 0.05 / len(others)
        assert rejected[name] == expected or list(p_values.values()).count(p_values[name]) > 1


def test_holm_never_rejects_what_was_not_tested():
    assert holm({"a": 0.001, "b": math.nan}) == {"a": True, "b": False}
    assert holm({"b": math.nan}) == {"b": False}


def table(means) -> pd.DataFrame:
    return values(np.array(means)).rename("x").reset_index()


def test_the_bootstrap_goes_through_all_draws_of_five_bases():
    means = [[1.0], [2.0], [4.0], [8.0], [16.0]]
    exact = [np.mean(draw) for draw in np.array(np.meshgrid(*[[1, 2, 4, 8, 16]] * 5)).reshape(5, -1).T]
    whole, low, high = over_bases(table(means), lambda runs: runs["x"].mean())
    assert whole == 6.2
    assert (low, high) == pytest.approx(np.quantile(exact, [0.025, 0.975], method="inverted_cdf"))


def test_the_bootstrap_of_one_base_is_over_its_seeds_and_of_one_run_unknown():
    _, low, high = over_bases(table([[1.0, 3.0]]), lambda runs: runs["x"].mean())
    assert (low, high) == (1.0, 3.0)
    assert math.isnan(over_bases(table([[1.0]]), lambda runs: runs["x"].mean())[1])
    many, low, high = over_bases(table(np.arange(8.0)[:, None]), lambda runs: runs["x"].mean())
    assert low < many < high
