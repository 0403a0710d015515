"""Variance components against scipy, closed forms, the F distribution and simulated coverage."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rmbook.paper.statistics import variance_components

shapes = st.tuples(st.integers(2, 12), st.integers(2, 5))
seeds = st.integers(0, 10_000)


def draw(seed, groups, repeats, between=1.0):
    generator = np.random.default_rng(seed)
    return 50 + between * generator.standard_normal((groups, 1)) + generator.standard_normal((groups, repeats))


@given(shapes, seeds)
def test_the_f_test_is_scipys(shape, seed):
    scores = draw(seed, *shape)
    assert np.isclose(variance_components(scores).p_value, stats.f_oneway(*scores).pvalue, rtol=1e-9)


@given(shapes, seeds)
def test_the_ends_are_where_the_f_test_just_accepts(shape, seed):
    """If an end were the true share, F / (1 + k share / (1 - share)) would lie at a 2.5 % quantile of F."""
    (groups, repeats), found = shape, variance_components(draw(seed, *shape, between=3.0))
    ratio = stats.f_oneway(*draw(seed, *shape, between=3.0)).statistic
    for end, tail in ((found.low, 0.025), (found.high, 0.975)):
        if end > 0:  # not cut
            scaled = ratio / (1 + repeats * end / (1 - end))
            assert np.isclose(stats.f.sf(scaled, groups - 1, groups * (repeats - 1)), tail, rtol=1e-5)


@given(shapes, seeds, st.floats(0.1, 10), st.floats(-50, 50))
def test_unit_and_origin_change_no_share(shape, seed, unit, origin):
    scores = draw(seed, *shape)
    plain, moved = variance_components(scores), variance_components(unit * scores + origin)
    assert np.allclose([moved.share, moved.low, moved.high], [plain.share, plain.low, plain.high], atol=1e-6)
    assert np.isclose(moved.within, unit * plain.within) and np.isclose(moved.between, unit * plain.between, atol=1e-4)


@given(shapes, seeds)
def test_deviations_add_up_to_the_mean_squares(shape, seed):
    scores = draw(seed, *shape)
    found = variance_components(scores)
    assert np.isclose(found.within**2, scores.var(axis=1, ddof=1).mean())
    among = shape[1] * scores.mean(1).var(ddof=1)
    assert np.isclose(found.within**2 + shape[1] * found.between**2, max(among, found.within**2))
    assert 0 <= found.low <= found.share <= found.high < 1


def test_groups_closer_than_repeats_would_make_them_share_nothing():
    found = variance_components([[1.0, 3.0], [3.0, 1.0], [0.0, 6.0]])  # means 2, 2, 3: mean squares 2 / 3 and 22 / 3
    assert found.between == found.share == found.low == 0 and np.isclose(found.within**2, 22 / 3)
    assert np.isclose(found.p_value, stats.f.sf(1 / 11, 2, 3)) and 0 < found.high < 1


def test_the_interval_covers_the_true_share():
    share, between = 0.5, 1.0
    found = [variance_components(draw(seed, 20, 3, between), 0.9) for seed in range(2000)]
    assert abs(np.mean([f.low <= share <= f.high for f in found]) - 0.9) < 0.02  # three standard errors
    assert abs(np.mean([f.between**2 for f in found]) - between**2) < 0.04  # unbiased


@pytest.mark.parametrize("scores", [[1.0, 2.0], [[1.0, 2.0]], [[1.0], [2.0]], [[1.0, np.nan], [1.0, 2.0]]])
def test_too_little_is_refused(scores):
    with pytest.raises(ValueError, match="finite"):
        variance_components(scores)


def test_equal_repeats_and_bad_confidences_are_refused():
    with pytest.raises(ValueError, match="equal"):
        variance_components([[1.0, 1.0], [2.0, 2.0]])
    with pytest.raises(ValueError, match="confidence"):
        variance_components(draw(0, 3, 3), 1.0)
