"""The masked regression problem: masks, equation (1), and eigenvalues by the Gram matrix against dense matrices."""

import tracemalloc
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmbook.theory import regression
from rmbook.theory.regression import (
    ColumnMasks,
    gram,
    gram_eigenvalues,
    largest_stable_rate,
    loss,
    masked_svd,
    sample_regression,
)

sizes = st.integers(1, 12)
densities = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1))
seeds = st.integers(-(2**70), 2**70)


def dense_problem(n, d, p, seed):
    features, targets, _ = sample_regression(n, d, seed, noise=0.3)
    masks = ColumnMasks(d, p, seed)
    return features - 0.5, targets, masks, np.diag(masks.dense().astype(float))


@given(st.integers(1, 60), densities, seeds)
def test_columns_and_dense_diagonal_agree(d, p, seed):
    masks = ColumnMasks(d, p, seed)
    assert masks.shape == () and masks.dense().shape == (d,)
    assert masks.columns(()).tolist() == masks.dense().nonzero()[0].tolist()
    assert masks.dense().sum() == p * d or 0 < p < 1


def test_chosen_columns_are_binomial_and_seeds_independent():
    p, d = np.array([0.01, 0.5, 0.9]), 2000
    dense = ColumnMasks(d, p, range(200)).dense()
    deviations = (dense.sum((1, 2)) - 200 * d * p) / np.sqrt(200 * d * p * (1 - p))
    assert (np.abs(deviations) < 4).all()
    shared = (dense[:, :100] & dense[:, 100:]).sum((1, 2))  # masks of different seeds
    assert (np.abs(shared - 100 * d * p**2) < 4 * np.sqrt(100 * d * p**2 * (1 - p**2))).all()


def test_random_numbers_depend_on_seed_and_purpose_only():
    masks = ColumnMasks(50, [0.2, 0.8], [3, 4])
    draws = [[[masks.generator((i, j), what).random() for j in (0, 1)] for what in ("a", "b")] for i in (0, 1)]
    assert draws[0] == draws[1] and len(set(np.ravel(draws))) == 4


@pytest.mark.parametrize("function", [gram, gram_eigenvalues, largest_stable_rate])
def test_a_grid_is_its_single_masks(function):
    features, _, _ = sample_regression(4, 30, 0)
    grid = function(features, ColumnMasks(30, [[0.0, 0.2], [0.5, 1.0]], [1, 2, 3]))
    assert grid.shape[:3] == (2, 2, 3)
    for i, p in enumerate([0.0, 0.2, 0.5, 1.0]):
        for j in range(3):
            single = function(features, ColumnMasks(30, p, j + 1))
            assert np.array_equal(grid[(*divmod(i, 2), j)], single)


@given(sizes, sizes, densities, seeds)
@settings(deadline=None)
def test_loss_is_equation_1(n, d, p, seed):
    features, targets, masks, diagonal = dense_problem(n, d, p, seed)
    rng = np.random.default_rng(0)
    pretrained, weights = rng.standard_normal(d), rng.standard_normal((3, 2, d))
    got = loss(features, targets, weights, masks.dense(), pretrained)
    assert got.shape == (3, 2)
    for index in np.ndindex(3, 2):
        residual = targets - features @ (pretrained + diagonal @ weights[index])
        assert got[index] == pytest.approx(np.linalg.norm(residual) ** 2 / (2 * n), rel=1e-12)
    merged = loss(features, targets - features @ pretrained, weights, masks.dense())
    assert merged == pytest.approx(got, rel=1e-9, abs=1e-12)


@given(sizes, st.integers(1, 40), densities, seeds, st.sampled_from("CF"), st.floats(-3, 3))
@settings(max_examples=200, deadline=None)
def test_eigenvalues_equal_dense_svd(n, d, p, seed, order, spread):
    """Of the (n, d) matrix X M and of the (d, d) matrix M X' X M, with columns of very different sizes."""
    features, _, masks, diagonal = dense_problem(n, d, p, seed)
    features = np.asarray(features * np.logspace(0, spread, d), order=order)
    got = gram_eigenvalues(features, masks)
    assert got.shape == (n,) and (got >= 0).all() and (np.diff(got) <= 0).all()
    wanted = np.zeros(n)
    singular = np.linalg.svd(features @ diagonal, compute_uv=False)
    wanted[: len(singular)] = singular**2
    tolerance = 1e-9 * wanted[0]
    assert got == pytest.approx(wanted, abs=tolerance, rel=0)
    full = np.linalg.eigvalsh(diagonal @ features.T @ features @ diagonal)[::-1]
    assert full[:n] == pytest.approx(got[:d], abs=tolerance, rel=0) and np.abs(full[n:]).max(initial=0) <= tolerance


@given(st.integers(1, 5), st.integers(1, 40), densities, seeds, st.integers(1, 20))
@settings(max_examples=30, deadline=None)
def test_dense_masks_share_work_without_losing_digits(n, d, p, seed, count):
    """Also where an unchosen column is much larger than all others: nothing is subtracted."""
    features, _, _ = sample_regression(n, d, seed)
    features = np.where(np.arange(d) == d // 2, 1e9, features)
    masks = ColumnMasks(d, [p, 0.9], [seed + k for k in range(count)])
    with mock.patch.object(regression, "SHARE_FROM_WIDTH", 1):
        got = gram(features, masks)
    wanted = gram(features, masks)
    assert got.shape == (2, count, n, n)
    assert got == pytest.approx(wanted, rel=1e-13)


@pytest.mark.parametrize("p", [0.03, 0.5, 0.97])
def test_a_large_grid_is_its_single_masks(p):
    width = regression.SHARE_FROM_WIDTH
    features, _, _ = sample_regression(2, width, 0)
    grid = gram_eigenvalues(features, ColumnMasks(width, p, range(11)))
    single = [np.linalg.svd(features[:, ColumnMasks(width, p, j).columns(())], compute_uv=False) for j in range(11)]
    assert grid == pytest.approx(np.square(single), rel=1e-12)


@given(sizes, st.integers(1, 40), densities, seeds)
@settings(deadline=None)
def test_a_mask_never_raises_an_eigenvalue_and_keeps_the_trace(n, d, p, seed):
    """Interlacing, so the largest stable rate never falls; and the trace behind E sum(lambda) = p |X|_F^2."""
    features, _, masks, diagonal = dense_problem(n, d, p, seed)
    whole, masked = gram_eigenvalues(features, ColumnMasks(d, 1, 0)), gram_eigenvalues(features, masks)
    assert (masked <= whole + 1e-12 * whole[0]).all()
    assert masked.sum() == pytest.approx(((features @ diagonal) ** 2).sum(), rel=1e-10)
    rate = largest_stable_rate(features, masks)
    assert rate * masked[0] == pytest.approx(2 * n) if len(masks.columns(())) else np.isinf(rate)


def test_mean_eigenvalue_sum_is_p_times_the_whole():
    features, _, _ = sample_regression(6, 300, 2)
    p = np.array([0.02, 0.3, 0.8])
    sums = gram_eigenvalues(features, ColumnMasks(300, p, range(1000))).sum(-1)
    squares = (features**2).sum(0)
    standard_error = np.sqrt(p * (1 - p) * (squares**2).sum() / 1000)
    assert (np.abs(sums.mean(1) - p * squares.sum()) < 4 * standard_error).all()


@given(sizes, sizes, densities, seeds)
@settings(deadline=None)
def test_singular_vectors_rebuild_the_chosen_columns(n, d, p, seed):
    features, _, masks, diagonal = dense_problem(n, d, p, seed)
    features[:, -1] = features[:, 0]  # a rank that the number of columns does not show
    left, values, right = masked_svd(features, masks.columns(()))
    assert len(values) == np.linalg.matrix_rank(features @ diagonal)
    assert left * values @ right.T == pytest.approx(features[:, masks.columns(())], abs=1e-12)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("p", [0.01, 0.5, 0.99])
def test_no_copy_of_the_features_is_made(order, p):
    features = np.asarray(sample_regression(64, 70_000, 0)[0], order=order)
    tracemalloc.start()
    gram_eigenvalues(features, ColumnMasks(70_000, p, range(9)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < features.nbytes / 2


@given(sizes, sizes, seeds, st.floats(1e-3, 1e3))
@settings(deadline=None)
def test_sampled_problem_is_what_it_says(n, d, seed, bound):
    features, targets, true_weights = sample_regression(n, d, seed, entry_bound=bound)
    assert features.shape == (n, d) and (features >= 0).all() and (features <= bound).all()
    assert targets == pytest.approx(features @ true_weights, abs=1e-9 * bound)
    noisy = sample_regression(n, d, seed, entry_bound=bound, noise=1.0)
    assert np.array_equal(noisy[0], features) and (noisy[1] != targets).all()


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan"), "0.1", None, True, [0.5, 2.0]])
def test_bad_density_is_named(p):
    with pytest.raises(ValueError, match="density"):
        ColumnMasks(5, p, 0)


@pytest.mark.parametrize("seed", [0.5, None, "1", [1, 2.5]])
def test_bad_seed_is_named(seed):
    with pytest.raises(ValueError, match="seed"):
        ColumnMasks(5, 0.5, seed)


@pytest.mark.parametrize("size", [0, -1, 2.0, True])
def test_bad_sizes_are_named(size):
    with pytest.raises(ValueError, match="width"):
        ColumnMasks(size, 0.5, 0)
    with pytest.raises(ValueError, match="^n must"):
        sample_regression(size, 5, 0)
    with pytest.raises(ValueError, match="^d must"):
        sample_regression(5, size, 0)


@pytest.mark.parametrize("noise", [-1, np.nan, np.inf, "1"])
def test_bad_scales_are_named(noise):
    with pytest.raises(ValueError, match="noise"):
        sample_regression(2, 2, 0, noise=noise)
    with pytest.raises(ValueError, match="entry_bound"):
        sample_regression(2, 2, 0, entry_bound=noise)


@pytest.mark.parametrize("function", [gram, gram_eigenvalues, largest_stable_rate])
def test_bad_features_are_named(function):
    masks = ColumnMasks(3, 0.5, 0)
    for value in (np.nan, np.inf, -np.inf):
        features = np.ones((2, 3))
        features[1, 2] = value
        with pytest.raises(ValueError, match="X has entries that are infinite or not a number"):
            function(features, masks)
    for shape in ((3,), (0, 3), (2, 0), (2, 3, 1)):
        with pytest.raises(ValueError, match="X must have the shape"):
            function(np.ones(shape), masks)
    with pytest.raises(ValueError, match="the masks are for 3 columns, but X has 4"):
        function(np.ones((2, 4)), masks)


def test_bad_targets_are_named():
    for targets in (np.ones(3), np.ones((2, 1)), [1.0, np.nan]):
        with pytest.raises(ValueError, match="y, one number for each row of X, must be 2 finite numbers"):
            loss(np.ones((2, 3)), targets, np.zeros(3))
