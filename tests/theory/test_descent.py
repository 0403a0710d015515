"""Descent on the masked regression: against equation (3), autograd and torch's optimisers, and the stability limit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rmbook.theory.descent import adam, closed_form, gradient_descent, sgd, sign_descent
from rmbook.theory.limit import limit_point
from rmbook.theory.regression import ColumnMasks, gram_eigenvalues, largest_stable_rate, loss, sample_regression

METHODS = [gradient_descent, closed_form, sgd, adam, sign_descent]
sizes = st.integers(1, 10)
widths = st.integers(1, 25)
densities = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1))
seeds = st.integers(0, 2**40)


def problem(n, d, p, seed):
    """Features, targets, masks, and a start outside the row space of X M."""
    features, targets, _ = sample_regression(n, d, seed, noise=0.5)
    return features, targets, ColumnMasks(d, p, seed), np.random.default_rng(seed).standard_normal(d)


def by_torch(features, targets, diagonal, start, steps, make_optimizer):
    """The weights after `steps` steps of a torch optimiser on equation (1), dense and by autograd."""
    weights = torch.tensor(start, requires_grad=True)
    optimizer, features, targets = make_optimizer([weights]), torch.tensor(features.copy()), torch.tensor(targets)
    for _ in range(steps):
        optimizer.zero_grad()
        residual = targets - features @ (torch.tensor(diagonal, dtype=torch.float64) * weights)
        (residual.square().sum() / (2 * len(targets))).backward()
        optimizer.step()
    return weights.detach().numpy()


@given(sizes, widths, densities, seeds, st.floats(0.01, 1.05), st.lists(st.integers(0, 80), max_size=4))
@settings(max_examples=200, deadline=None)
def test_closed_form_equals_iteration(n, d, p, seed, share, steps):
    features, targets, masks, start = problem(n, d, p, seed)
    rate = share * min(largest_stable_rate(features, masks), 1e3)
    iterated = gradient_descent(features, targets, masks, rate, np.array(steps, dtype=int), start)
    closed = closed_form(features, targets, masks, rate, np.array(steps, dtype=int), start)
    assert iterated.shape == (len(steps), d)
    assert np.abs(iterated - closed).max(initial=0) <= 1e-10 * max(1, np.abs(iterated).max(initial=0))


@given(sizes, st.integers(1, 12), densities, seeds, st.floats(0.01, 1.05), st.integers(0, 40))
@settings(deadline=None)
def test_closed_form_equals_equation_3_written_densely(n, d, p, seed, share, step):
    features, targets, masks, start = problem(n, d, p, seed)
    rate = share * min(largest_stable_rate(features, masks), 1e3)
    masked = features * masks.dense()
    limit = np.linalg.pinv(masked, rcond=1e-13) @ targets
    power = np.linalg.matrix_power(np.eye(d) - rate / n * masked.T @ masked, step)
    got = closed_form(features, targets, masks, rate, step, start)
    assert got == pytest.approx(power @ (start - limit) + limit, abs=1e-8 * (1 + np.abs(limit).max()))


@given(sizes, widths, densities, seeds, st.integers(0, 20))
@settings(max_examples=30, deadline=None)
def test_iteration_equals_autograd_on_equation_1(n, d, p, seed, steps):
    features, targets, masks, start = problem(n, d, p, seed)
    rate = 0.7 * min(float(largest_stable_rate(features, masks)), 1e3)
    wanted = by_torch(features, targets, masks.dense(), start, steps, lambda w: torch.optim.SGD(w, lr=rate))
    got = gradient_descent(features, targets, masks, rate, steps, start)
    assert np.abs(got - wanted).max() < 1e-10


@given(sizes, widths, densities, seeds, st.floats(1e-4, 0.3), st.integers(0, 30))
@settings(max_examples=30, deadline=None)
def test_adam_equals_torch(n, d, p, seed, rate, steps):
    features, targets, masks, start = problem(n, d, p, seed)
    wanted = by_torch(features, targets, masks.dense(), start, steps, lambda w: torch.optim.Adam(w, lr=rate))
    # Adam divides by the gradient's size, which magnifies rounding where a gradient is nearly zero.
    assert np.abs(adam(features, targets, masks, rate, steps, start) - wanted).max() < 1e-7
    wanted = by_torch(features, targets, masks.dense(), start, steps, lambda w: torch.optim.Adam(w, lr=rate, eps=0.01))
    assert np.abs(adam(features, targets, masks, rate, steps, start, epsilon=0.01) - wanted).max() < 1e-10


# ------------------------------------------------------------------------------------------------------- stability
@given(sizes, widths, st.floats(0.2, 1), seeds)
@settings(max_examples=60, deadline=None)
def test_stability_flips_within_1_percent_of_2n_over_the_largest_eigenvalue(n, d, p, seed):
    """From limit + v_1, the start of the paper's proof: by iteration, and at step 10^6 by the closed form."""
    features, targets, masks, _ = problem(n, d, p, seed)
    if len(masks.columns(())) == 0:
        return
    v_1 = np.linalg.svd(features * masks.dense(), full_matrices=False)[2][0]
    limit = limit_point(features, targets, masks)
    rate = largest_stable_rate(features, masks) * np.array([0.99, 1.01])
    for method, steps in ((gradient_descent, 600), (closed_form, 10_000)):
        below, above = method(features, targets, masks, rate, steps, limit + v_1) - limit
        assert np.linalg.norm(below) < 1e-5 and not np.linalg.norm(above) < 1e5


@given(sizes, widths, densities, seeds, st.integers(1, 40))
@settings(deadline=None)
def test_below_the_limit_no_start_moves_away(n, d, p, seed, step):
    features, targets, masks, start = problem(n, d, p, seed)
    rate = min(float(largest_stable_rate(features, masks)), 1e3) * np.array([0.3, 0.99])
    limit = limit_point(features, targets, masks, start)
    distance = np.linalg.norm(gradient_descent(features, targets, masks, rate, [0, step], start) - limit, axis=-1)
    assert (distance[:, 1] <= distance[:, 0] * (1 + 1e-9) + 1e-12).all()


def test_at_the_limit_itself_the_first_direction_oscillates_for_ever():
    features, targets, masks, _ = problem(4, 20, 0.5, 3)
    v_1 = np.linalg.svd(features * masks.dense(), full_matrices=False)[2][0]
    limit = limit_point(features, targets, masks)
    rate = largest_stable_rate(features, masks)
    for method in (gradient_descent, closed_form):
        path = method(features, targets, masks, rate, range(40), limit + v_1) - limit
        assert path == pytest.approx((-1.0) ** np.arange(40)[:, None] * v_1, abs=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_unchosen_weights_keep_their_start(method):
    features, targets, _, start = problem(4, 20, 0.5, 3)
    masks = ColumnMasks(20, [0.0, 0.5], [3, 4])
    path = method(features, targets, masks, 0.01, [0, 7], start)
    unchosen = np.broadcast_to(~masks.dense()[:, :, None], path.shape)
    assert np.array_equal(path[unchosen], np.broadcast_to(start, path.shape)[unchosen])
    assert (path[~unchosen] != np.broadcast_to(start, path.shape)[~unchosen]).reshape(-1, 2).any()
    assert np.array_equal(path[:, :, 0], np.broadcast_to(start, (2, 2, 20)))


def test_null_space_of_the_masked_features_is_never_left_or_entered():
    features, targets, masks, start = problem(4, 20, 0.8, 3)
    null_space = np.eye(20) - np.linalg.pinv(features * masks.dense()) @ (features * masks.dense())
    for method in (gradient_descent, closed_form, sgd):
        path = method(features, targets, masks, 0.1, range(30), start)
        assert path @ null_space == pytest.approx(np.tile(null_space @ start, (30, 1)), abs=1e-10)


# ---------------------------------------------------------------------------------------------- SGD, Adam and sign
@given(sizes, widths, densities, seeds)
@settings(max_examples=30, deadline=None)
def test_sgd_on_all_examples_is_gradient_descent(n, d, p, seed):
    features, targets, masks, start = problem(n, d, p, seed)
    paths = [
        method(features, targets, masks, 0.1, [1, 9], start, **options)
        for method, options in ((gradient_descent, {}), (sgd, {"batch_size": n}))
    ]
    assert np.array_equal(*paths)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_mean_sgd_step_is_the_gradient_descent_step(batch_size):
    features, targets, _, start = problem(6, 15, 1, 3)
    masks = ColumnMasks(15, 1.0, range(3000))
    first = sgd(features, targets, masks, 0.1, 1, start, batch_size=batch_size)
    wanted = gradient_descent(features, targets, ColumnMasks(15, 1.0, 0), 0.1, 1, start)
    z = (first.mean(0) - wanted) / (first.std(0) / 3000**0.5)
    assert (np.abs(z) < 4).all()
    assert len(np.unique(first.round(9), axis=0)) == (6 if batch_size == 1 else 20)  # every batch occurs, 6 over 1 or 3


def test_sgd_reaches_the_same_limit_where_all_examples_can_be_fitted():
    """More chosen columns than examples: zero loss stops the noise, and steps stay in the row space."""
    features, targets, _, start = problem(4, 60, 1, 3)
    masks = ColumnMasks(60, [0.5, 0.8], [1, 2])
    rate = 1 / (features**2).sum(1).max()
    last = sgd(features - 0.5, targets, masks, rate, 5000, start)
    assert last == pytest.approx(limit_point(features - 0.5, targets, masks, start), abs=1e-8)


@pytest.mark.parametrize("method", [sgd, adam, sign_descent])
def test_batches_depend_on_the_seed_but_not_on_density_or_rate(method):
    """With all other columns zero, what happens to the chosen column is the same at every density."""
    features, targets, _, _ = problem(8, 200, 1, 3)
    masks = ColumnMasks(200, [0.3, 0.6], [0, 1])
    column = np.flatnonzero(masks.dense().all((0, 1)))[0]
    lonely = np.zeros_like(features)
    lonely[:, column] = features[:, column]
    path = method(lonely, targets, masks, 0.01, 40, batch_size=2)[..., column]  # (densities, seeds)
    assert np.array_equal(path[0], path[1]) and path[0, 0] != path[0, 1]
    rates = np.array([0.01, 0.02]).reshape(2, 1, 1)
    at_both = method(lonely, targets, masks, rates, 40, batch_size=2)[..., column]
    assert at_both[0] == pytest.approx(path, rel=1e-12) and (at_both[1] != path).all()


@given(sizes, widths, densities, seeds, st.floats(1e-4, 1e2), st.floats(1e-3, 1e3))
@settings(deadline=None)
def test_sign_and_first_adam_step_move_each_chosen_weight_by_the_rate(n, d, p, seed, rate, scale):
    """Whatever the scale of the targets, so of the gradient; and sign descent is Adam without its averages."""
    features, targets, masks, _ = problem(n, d, p, seed)
    gradient = masks.dense() * (features.T @ -targets) * scale / n
    clear = np.abs(gradient) > 1e-3  # epsilon and rounding do not matter there
    wanted = -rate * np.sign(gradient)
    for method in (sign_descent, adam):
        first = method(features, targets * scale, masks, rate, 1)
        assert first[clear] == pytest.approx(wanted[clear], rel=1e-4)
        assert (np.abs(first) <= rate * (1 + 1e-12)).all()
    many = sign_descent(features, targets, masks, rate, 9)
    tiny = adam(features, targets, masks, rate, 9, betas=(0.0, 0.0), epsilon=1e-300)
    assert tiny == pytest.approx(many, rel=1e-9, abs=1e-9 * rate)


def test_first_sign_step_lowers_the_loss_by_rate_times_p_times_the_gradient_norm():
    """The law rate * p = constant: to first order, and on average over masks."""
    features, targets, _ = sample_regression(8, 500, 0, noise=1.0)
    gradient_norm = np.abs(features.T @ targets / 8).sum()
    p = np.array([0.02, 0.1, 0.5])
    masks, rate = ColumnMasks(500, p, range(500)), 1e-7
    first = sign_descent(features, targets, masks, rate, 1)
    drop = loss(features, targets, np.zeros(500)) - loss(features, targets, first)
    z = (drop.mean(1) / rate - p * gradient_norm) / (drop.std(1) / rate / 500**0.5)
    assert (np.abs(z) < 4).all()


# ---------------------------------------------------------------------------------------------------------- shapes
@pytest.mark.parametrize("method", METHODS)
def test_a_grid_is_its_single_runs(method):
    features, targets, _, start = problem(4, 12, 0.5, 3)
    p, some_seeds, steps = [0.0, 0.4, 1.0], [1, 2], [[0, 5], [3, 1]]
    rates = np.array([0.01, 0.1]).reshape(2, 1, 1) * np.ones((3, 2))
    grid = method(features, targets, ColumnMasks(12, p, some_seeds), rates, steps, start)
    assert grid.shape == (2, 3, 2, 2, 2, 12)
    for k, i, j in np.ndindex(2, 3, 2):
        single = method(features, targets, ColumnMasks(12, p[i], some_seeds[j]), rates[k, i, j], steps, start)
        assert grid[k, i, j] == pytest.approx(single, abs=1e-13)
        assert method(features, targets, ColumnMasks(12, p[i], some_seeds[j]), 0.1, 5, start).shape == (12,)


def test_one_rate_for_each_mask():
    features, targets, _, start = problem(4, 40, 0.5, 3)
    masks = ColumnMasks(40, [0.3, 0.6], [0, 1, 2])
    rate = 0.99 * largest_stable_rate(features, masks)
    assert rate.shape == (2, 3)
    last = gradient_descent(features, targets, masks, rate, 50, start)
    assert last == pytest.approx(closed_form(features, targets, masks, rate, 50, start), abs=1e-10)
    assert (gram_eigenvalues(features, masks)[..., 0] * rate == pytest.approx(0.99 * 8)) and last.shape == (2, 3, 40)


def test_diverging_runs_end_without_warnings(recwarn):
    features, targets, masks, start = problem(4, 20, 0.5, 3)
    for method in METHODS[:3]:
        assert not np.isfinite(method(features, targets, masks, 1e6, 5000, start)).all()
    assert not recwarn.list


# ---------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize("method", METHODS)
def test_bad_arguments_are_named(method):
    features, targets, masks = np.ones((2, 3)), np.ones(2), ColumnMasks(3, [0.5, 0.6], [0, 1, 2])
    for rate in (0, -1.0, np.nan, np.inf, [1.0, 1.0, 0.0]):
        with pytest.raises(ValueError, match="the learning rate must be a positive finite number"):
            method(features, targets, masks, rate, 3)
    for rate in (np.ones(2), np.ones((3, 2)), np.ones((5, 2, 4))):
        with pytest.raises(ValueError, match="do not fit masks of shape"):
            method(features, targets, masks, rate, 3)
    for steps in (-1, 1.5, [0, -2]):
        with pytest.raises(ValueError, match="steps"):
            method(features, targets, masks, 1.0, steps)
    with pytest.raises(ValueError, match="X has entries that are infinite"):
        method(features * np.nan, targets, masks, 1.0, 3)
    with pytest.raises(ValueError, match="n and d at least 1"):
        method(np.ones((0, 3)), np.ones(0), masks, 1.0, 3)
    with pytest.raises(ValueError, match="y, one number"):
        method(features, np.ones(3), masks, 1.0, 3)
    with pytest.raises(ValueError, match="start"):
        method(features, targets, masks, 1.0, 3, np.ones(2))


def test_bad_batches_and_adam_settings_are_named():
    features, targets, masks = np.ones((2, 3)), np.ones(2), ColumnMasks(3, 0.5, 0)
    for method in (sgd, adam, sign_descent):
        for batch_size in (0, 3, 1.0):
            with pytest.raises(ValueError, match="batch_size"):
                method(features, targets, masks, 1.0, 3, batch_size=batch_size)
    with pytest.raises(ValueError, match="betas"):
        adam(features, targets, masks, 1.0, 3, betas=(0.9, 1.0))
    with pytest.raises(ValueError, match="epsilon"):
        adam(features, targets, masks, 1.0, 3, epsilon=0)
