"""Bounds on the eigenvalues: their algebra, and their probability statements over drawn masks."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rmbook.theory.bounds import eigenvalue_deviation, matrix_bernstein, theorem_5_1, theorem_5_1_as_printed
from rmbook.theory.regression import ColumnMasks, gram_eigenvalues, sample_regression

DENSITIES = [0.1, 0.01, 0.001]
WIDTH = {8: 10_000, 32: 40_000}  # as in the notes
DELTAS = [0.5, 0.1, 0.05, 0.01]


@functools.cache
def drawn(n):
    """A uniform problem and the deviations of 2,000 masks at each density: (densities, 2,000) each."""
    features, _, _ = sample_regression(n, WIDTH[n], 0)
    return features, *eigenvalue_deviation(features, ColumnMasks(WIDTH[n], DENSITIES, range(2000)))


# ------------------------------------------------------------------------------------------ probability statements
@pytest.mark.parametrize("n", WIDTH)
def test_bernstein_holds_in_1_minus_delta_of_2000_masks(n):
    features, largest, norm = drawn(n)
    bound = matrix_bernstein(features, DENSITIES, DELTAS)  # (densities, deltas)
    for measured in (largest, norm):
        share = (measured[:, :, None] <= bound[:, None]).mean(1)
        assert (share >= 1 - np.array(DELTAS)).all()


@pytest.mark.parametrize("n", WIDTH)
def test_bernstein_is_within_4_times_of_what_is_measured(n):
    features, largest, _ = drawn(n)
    ratio = matrix_bernstein(features, DENSITIES, 0.05) / np.quantile(largest, 0.95, axis=1)
    assert ((1 < ratio) & (ratio < 4)).all()


@pytest.mark.parametrize("n", WIDTH)
def test_both_forms_of_theorem_5_1_hold_in_1_minus_delta_of_2000_masks(n):
    """The first term alone is larger than any of them, so at such confidences the misprint does not show."""
    _, largest, norm = drawn(n)
    for bound in (theorem_5_1, theorem_5_1_as_printed):
        share = (norm[:, :, None] <= bound(n, WIDTH[n], 1.0, DELTAS)).mean(1)
        assert (share >= 1 - np.array(DELTAS)).all()
    assert (largest <= norm * (1 + 1e-9)).all() and norm.max() < theorem_5_1_as_printed(n, WIDTH[n], 1.0, 0.99)


@pytest.mark.parametrize("n", WIDTH)
def test_theorem_5_1_says_nothing_at_these_sizes(n):
    """It allows lambda_i to be 0, or twice as large as expected, at every density up to 0.1."""
    features, _, _ = drawn(n)
    assert 0.1 * gram_eigenvalues(features, ColumnMasks(WIDTH[n], 1, 0))[0] < theorem_5_1(n, WIDTH[n], 1.0, 0.99)


@pytest.mark.parametrize("d", [1000, 10_000, 1_000_000])
@pytest.mark.parametrize("delta", [1e-9, 1e-12])
def test_theorem_5_1_as_printed_is_false_and_corrected_is_true(d, delta):
    """For X = (1, ..., 1), Q is the one number Binomial(d, 1/2) - d/2, whose law needs no simulation."""
    law = stats.binom(d, 0.5)
    failure = [2 * law.sf(d // 2 + int(bound(1, d, 1.0, delta))) for bound in (theorem_5_1_as_printed, theorem_5_1)]
    assert failure[0] > 10 * delta and failure[1] <= delta


@given(st.integers(1, 3), st.integers(1, 30), st.floats(0, 1), st.integers(0, 99), st.floats(0.01, 100))
@settings(max_examples=30, deadline=None)
def test_corrected_and_bernstein_hold_for_small_problems_of_any_scale(n, d, p, seed, scale):
    features, _, _ = sample_regression(n, d, seed, entry_bound=scale)
    _, norm = eigenvalue_deviation(features, ColumnMasks(d, p, range(100)))
    assert (norm <= theorem_5_1(n, d, scale, 0.3)).mean() >= 0.7
    assert (norm <= matrix_bernstein(features, p, 0.3)).mean() >= 0.7


@given(st.floats(0, 1), st.lists(st.floats(-2, 2), min_size=1, max_size=20), st.floats(-5, 5))
def test_lemma_a_1(p, projections, t):
    """The exact moment generating function of <u, Q u>, a product over columns, is at most the lemma's bound."""
    squares = np.square(projections)
    exact = np.log(p * np.exp(t * (1 - p) * squares) + (1 - p) * np.exp(-t * p * squares)).sum()
    assert exact <= (t**2 * squares**2 / 8).sum() + 1e-12


# --------------------------------------------------------------------------------------------------------- algebra
@given(st.integers(1, 100), st.integers(1, 10**7), st.floats(0.01, 100), st.floats(1e-12, 0.999))
def test_corrected_second_term_solves_the_tail_equation_of_the_proof(n, d, r, delta):
    t = theorem_5_1(n, d, r, delta) - 2 * np.sqrt(2.0 * d * n**3 * r**4)
    assert np.exp(-(t**2) / (2.0 * d * n**2 * r**4)) == pytest.approx(delta, rel=1e-5)
    assert theorem_5_1(n, d, 3 * r, delta) == pytest.approx(9 * theorem_5_1(n, d, r, delta))
    printed = theorem_5_1_as_printed(n, d, r, delta) - 2 * np.sqrt(2.0 * d * n**3 * r**4)
    first = np.sqrt(2.0 * d * n**3 * r**4)
    assert printed == pytest.approx(np.sqrt(2 * np.log(1 / delta) / (d * n**2 * r**4)), rel=1e-6, abs=1e-12 * first)


@given(st.integers(1, 6), st.integers(1, 20), st.floats(0, 1), st.integers(0, 99), st.floats(1e-9, 0.99))
@settings(deadline=None)
def test_bernstein_solves_its_tail_equation(n, d, p, seed, delta):
    features = sample_regression(n, d, seed)[0] - 0.3
    t = matrix_bernstein(features, p, delta)
    squares = (features**2).sum(0)
    terms = [p * (1 - p) * size * np.outer(column, column) for size, column in zip(squares, features.T, strict=True)]
    v = np.linalg.norm(sum(terms), 2)
    assert 2 * n * np.exp(-(t**2) / (2 * v + 2 * squares.max() * t / 3)) == pytest.approx(delta, rel=1e-6)
    assert matrix_bernstein(10 * features, p, delta) == pytest.approx(100 * t)


@given(st.integers(1, 6), st.integers(1, 20), st.floats(0, 1), st.integers(0, 99))
@settings(deadline=None)
def test_deviations_equal_their_dense_definition(n, d, p, seed):
    features = sample_regression(n, d, seed)[0] - 0.3
    masks = ColumnMasks(d, [p, p / 2], [[seed, 1]])
    largest, norm = eigenvalue_deviation(features, masks)
    assert largest.shape == norm.shape == (2, 1, 2)
    for index in np.ndindex(2, 1, 2):
        diagonal = np.diag(masks.dense()[index].astype(float))
        masked, whole = diagonal @ features.T @ features @ diagonal, features.T @ features
        wanted = np.abs(np.linalg.eigvalsh(masked) - masks.density(index) * np.linalg.eigvalsh(whole)).max()
        assert largest[index] == pytest.approx(wanted, abs=1e-10)
        q = features @ diagonal @ features.T - masks.density(index) * features @ features.T
        assert norm[index] == pytest.approx(np.linalg.norm(q, 2), abs=1e-10)
        assert largest[index] <= norm[index] + 1e-10  # Weyl


@pytest.mark.parametrize(
    "n, p, quantile, expected, first, second, bernstein",
    [
        (8, 0.1, 115, 2081, 6400, 1958, 267),
        (8, 0.001, 13.2, 20.8, 6400, 1958, 43),
        (32, 0.01, 315, 3237, 102_400, 15_666, 755),
    ],
)
def test_figures_of_the_notes(n, p, quantile, expected, first, second, bernstein):
    """Measured before and elsewhere, on another uniform X, whose largest column differs, and only 200 masks."""
    features, largest, _ = drawn(n)
    d = WIDTH[n]
    assert np.quantile(largest[DENSITIES.index(p)], 0.95) == pytest.approx(quantile, rel=0.25)
    assert p * gram_eigenvalues(features, ColumnMasks(d, 1, 0))[0] == pytest.approx(expected, rel=0.02)
    assert theorem_5_1(n, d, 1.0, 1 - 1e-15) == pytest.approx(first, rel=1e-3)
    assert theorem_5_1(n, d, 1.0, 0.05) == pytest.approx(first + second, rel=1e-3)
    assert matrix_bernstein(features, p, 0.05) == pytest.approx(bernstein, rel=0.1)


# ---------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize("bound", [theorem_5_1, theorem_5_1_as_printed])
def test_bad_arguments_of_theorem_5_1_are_named(bound):
    for size in (0, -1, 1.5):
        with pytest.raises(ValueError, match="^n must be an integer of at least 1"):
            bound(size, 5, 1.0, 0.1)
        with pytest.raises(ValueError, match="^d must be an integer of at least 1"):
            bound(5, size, 1.0, 0.1)
    for entry_bound in (0, -1.0, np.nan, np.inf, "1"):
        with pytest.raises(ValueError, match="entry_bound"):
            bound(5, 5, entry_bound, 0.1)
    for delta in (0, 1, -0.1, np.nan, [0.1, 2]):
        with pytest.raises(ValueError, match="delta"):
            bound(5, 5, 1.0, delta)


def test_bad_arguments_of_bernstein_and_deviation_are_named():
    for p in (-0.1, 1.1, np.nan, [0.5, 3]):
        with pytest.raises(ValueError, match="density"):
            matrix_bernstein(np.ones((2, 3)), p, 0.1)
    for delta in (0, 1, np.nan):
        with pytest.raises(ValueError, match="delta"):
            matrix_bernstein(np.ones((2, 3)), 0.1, delta)
    for features in (np.full((2, 3), np.nan), np.ones((0, 3)), np.ones(3)):
        with pytest.raises(ValueError, match="X "):
            matrix_bernstein(features, 0.1, 0.1)
        with pytest.raises(ValueError, match="X "):
            eigenvalue_deviation(features, ColumnMasks(3, 0.1, 0))
