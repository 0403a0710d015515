"""The limit of gradient descent against the pseudo-inverse, and Proposition 5.3 with both of its terms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmbook.theory.descent import closed_form, gradient_descent
from rmbook.theory.limit import expected_squared_norm, limit_point, simulated_squared_norm
from rmbook.theory.regression import ColumnMasks, gram_eigenvalues, largest_stable_rate, sample_regression

sizes = st.integers(1, 10)
densities = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1))
seeds = st.integers(0, 2**40)


@given(sizes, st.integers(1, 25), densities, seeds)
@settings(max_examples=150, deadline=None)
def test_limit_is_the_pseudo_inverse_plus_what_the_start_has_in_the_null_space(n, d, p, seed):
    features, targets, _ = sample_regression(n, d, seed, noise=0.5)
    masks, start = ColumnMasks(d, p, seed), np.random.default_rng(seed).standard_normal(d)
    masked = features * masks.dense()
    inverse = np.linalg.pinv(masked, rcond=1e-13)
    scale = 1 + np.abs(inverse).max()
    assert limit_point(features, targets, masks) == pytest.approx(inverse @ targets, abs=1e-9 * scale**2)
    null_space = np.eye(d) - inverse @ masked
    got = limit_point(features, targets, masks, start)
    assert got == pytest.approx(inverse @ targets + null_space @ start, abs=1e-9 * scale**2)
    assert np.array_equal(got[~masks.dense()], start[~masks.dense()])


@given(sizes, st.integers(1, 25), densities, seeds, st.floats(0.05, 0.95))
@settings(deadline=None)
def test_gradient_descent_ends_there(n, d, p, seed, share):
    """Step 10^15 of the closed form, for every stable rate."""
    features, targets, _ = sample_regression(n, d, seed, noise=0.5)
    masks, start = ColumnMasks(d, p, seed), np.random.default_rng(seed).standard_normal(d)
    rate = share * min(largest_stable_rate(features, masks), 1e6)
    wanted = limit_point(features, targets, masks, start)
    last = closed_form(features, targets, masks, rate, 10**15, start)
    assert last == pytest.approx(wanted, abs=1e-8 * (1 + np.abs(wanted).max()))


def test_gradient_descent_ends_there_by_iteration():
    features, targets, _ = sample_regression(4, 60, 0, noise=0.5)
    masks = ColumnMasks(60, [0.3, 0.6], [0, 1])
    last = gradient_descent(features - 0.5, targets, masks, 0.9 * largest_stable_rate(features - 0.5, masks), 3000, 1.0)
    assert last == pytest.approx(limit_point(features - 0.5, targets, masks, 1.0), abs=1e-10)


@given(sizes, st.integers(1, 25), densities, seeds, st.floats(0, 3))
@settings(max_examples=150, deadline=None)
def test_two_terms_equal_the_dense_formula(n, d, p, seed, noise):
    features, _, true_weights = sample_regression(n, d, seed)
    masks = ColumnMasks(d, p, seed)
    inverse = np.linalg.pinv(features * masks.dense(), rcond=1e-13)
    signal, spread = expected_squared_norm(features, true_weights, noise, masks)
    wanted = np.linalg.norm(inverse @ features @ true_weights) ** 2
    assert signal == pytest.approx(wanted, rel=1e-6, abs=1e-12)  # squares of a badly conditioned inverse
    assert spread == pytest.approx(noise**2 * np.trace(inverse.T @ inverse), rel=1e-6, abs=1e-12)


@given(sizes, st.integers(1, 25), densities, seeds, st.floats(0.01, 3))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_monte_carlo_agrees_within_4_standard_errors(n, d, p, seed, noise):
    """With the reported standard error, which agrees with its own closed form too."""
    features, _, true_weights = sample_regression(n, d, seed)
    masks, draws = ColumnMasks(d, p, [seed, seed + 1]), 5000
    signal, spread = expected_squared_norm(features, true_weights, noise, masks)
    mean, standard_error = simulated_squared_norm(features, true_weights, noise, masks, draws)
    assert (np.abs(mean - signal - spread) <= 4 * standard_error + 1e-9 * mean).all()
    for j in range(2):  # |w|^2 = sum_i (u_i' X w* + sigma g_i)^2 / lambda_i for independent normal g_i
        left, values, _ = np.linalg.svd(features[:, masks.columns((j,))], full_matrices=False)
        keep = values > 1e-12 * values.max(initial=0)
        along, eigenvalues = (left.T @ features @ true_weights)[keep], values[keep] ** 2
        variance = ((2 * noise**4 + 4 * noise**2 * along**2) / eigenvalues**2).sum()
        assert standard_error[j] == pytest.approx((variance / draws) ** 0.5, rel=0.15, abs=1e-12)


def test_monte_carlo_of_whole_runs_agrees():
    """Noise drawn here, gradient descent run to its end, squared norms averaged: nothing shared with the formula."""
    features, _, true_weights = sample_regression(3, 40, 1)
    features = features - 0.5
    masks, rng = ColumnMasks(40, 0.4, 3), np.random.default_rng(0)
    rate = 0.9 * largest_stable_rate(features, masks)
    norms = []
    for _ in range(400):
        targets = features @ true_weights + 0.7 * rng.standard_normal(3)
        norms.append((gradient_descent(features, targets, masks, rate, 150) ** 2).sum())
    wanted = sum(expected_squared_norm(features, true_weights, 0.7, masks))
    assert abs(np.mean(norms) - wanted) < 4 * np.std(norms) / 20


@given(sizes, st.integers(1, 25), densities, seeds, st.floats(0.01, 3))
@settings(deadline=None)
def test_bound_of_equation_2_and_the_one_over_p_law_behind_it(n, d, p, seed, noise):
    """Sum 1/lambda >= rank^2 / |XM|_F^2 for every mask, and |XM|_F^2 is p |X|_F^2 on average: no Theorem 5.1 needed."""
    features, _, true_weights = sample_regression(n, d, seed)
    masks = ColumnMasks(d, p, seed)
    signal, spread = expected_squared_norm(features, true_weights, noise, masks)
    eigenvalues = gram_eigenvalues(features, masks)
    assert signal >= 0
    rank = np.linalg.matrix_rank(features * masks.dense())
    if rank:
        assert spread == pytest.approx(noise**2 * (1 / eigenvalues[:rank]).sum(), rel=1e-4)
        assert spread >= noise**2 * rank**2 / eigenvalues.sum() * (1 - 1e-9)
    else:
        assert spread == 0


def test_the_limit_moves_away_as_columns_go_only_while_there_are_more_than_n():
    """Each column dropped raises the noise term above n columns and lowers it below: p = 0 ends at the start."""
    features = np.random.default_rng(0).standard_normal((8, 30))
    terms = [
        float(expected_squared_norm(features[:, :k], np.zeros(k), 1.0, ColumnMasks(k, 1, 0))[1]) for k in range(1, 31)
    ]
    assert (np.diff(terms[:8]) > 0).all() and (np.diff(terms[7:]) < 0).all()
    assert sum(expected_squared_norm(features, np.ones(30), 1.0, ColumnMasks(30, 0, 0))) == 0


@pytest.mark.parametrize("n, k, mean", [(4, 16, 4 / 11), (16, 4, 4 / 11), (3, 12, 3 / 8)])
def test_mean_noise_term_for_normal_entries(n, k, mean):
    """The inverse Wishart mean: n / (k - n - 1) for k > n + 1, k / (n - k - 1) for k < n - 1."""
    rng, masks = np.random.default_rng(1), ColumnMasks(k, 1, 0)
    terms = [float(expected_squared_norm(rng.standard_normal((n, k)), np.zeros(k), 1.0, masks)[1]) for _ in range(3000)]
    assert abs(np.mean(terms) - mean) < 4 * np.std(terms) / 3000**0.5


def test_a_grid_is_its_single_masks():
    features, targets, true_weights = sample_regression(4, 30, 0, noise=1)

    def everything(masks):
        yield limit_point(features, targets, masks, 0.5)
        yield from expected_squared_norm(features, true_weights, 0.5, masks)
        yield from simulated_squared_norm(features, true_weights, 0.5, masks, 10)

    p, some_seeds = [0.0, 0.2, 1.0], [1, 2]
    for number, grid in enumerate(everything(ColumnMasks(30, p, some_seeds))):
        assert grid.shape[:2] == (3, 2)
        for i, j in np.ndindex(3, 2):
            single = list(everything(ColumnMasks(30, p[i], some_seeds[j])))[number]
            assert np.array_equal(grid[i, j], single)


def test_bad_arguments_are_named():
    features, targets, masks = np.ones((2, 3)), np.ones(2), ColumnMasks(3, 0.5, 0)
    for start in (np.ones(2), [1, 2, np.nan], np.inf):
        with pytest.raises(ValueError, match="the start w_0 must be 3 finite numbers"):
            limit_point(features, targets, masks, start)
    with pytest.raises(ValueError, match="X has entries that are infinite"):
        limit_point(features * np.nan, targets, masks)
    with pytest.raises(ValueError, match="true weights"):
        expected_squared_norm(features, np.ones(2), 1.0, masks)
    for function in (expected_squared_norm, lambda *some: simulated_squared_norm(*some, 10)):
        with pytest.raises(ValueError, match="noise, the standard deviation sigma,"):
            function(features, np.ones(3), -1.0, masks)
        with pytest.raises(ValueError, match="X has entries that are infinite"):
            function(features * np.inf, np.ones(3), 1.0, masks)
    for draws in (0, 1, 2.5):
        with pytest.raises(ValueError, match="draws"):
            simulated_squared_norm(features, np.ones(3), 1.0, masks, draws)
