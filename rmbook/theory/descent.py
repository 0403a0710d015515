"""Gradient descent, SGD, Adam and sign descent on the loss of equation (1), for whole grids of masks.

Each method updates the chosen entries of w by w <- w - rate * direction, where the direction is made from the
gradient (section 5.1, with the pretrained weights merged into y)

    grad L(w) = M X' (X M w - y) / n

Unchosen entries have gradient 0 and keep their start, so only the k chosen columns of X take part: a step costs
O(n k), not O(n d).
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from rmbook.checks import check_size
from rmbook.theory.limit import check_start
from rmbook.theory.regression import ColumnMasks, check_features, check_targets, masked_svd, take_columns

Direction = Callable[[np.ndarray], np.ndarray]


def gradient_descent(
    features: ArrayLike,
    targets: ArrayLike,
    masks: ColumnMasks,
    rate: ArrayLike,
    steps: ArrayLike,
    start: ArrayLike = 0.0,
) -> np.ndarray:
    """Return iterates of gradient descent (section 5.1), step by step: w_{t+1} = w_t - rate grad L(w_t).

    In the book: `thm-stable-step` in how_large_a_step, `prop-reparameterisation` in one_rate_for_every_density.

    Args:
        features: X, (n, d).
        targets: y, (n,).
        masks: masks of width d.
        rate: the learning rate eta, positive: one, or an array that broadcasts against masks.shape; further leading
            axes run every mask at several rates.
        steps: the step numbers t at which the weights are wanted: an integer or an array of them.
        start: w_0, (d,), or one number for all entries.

    Returns:
        The weights w_t, (*broadcast of rate's shape and masks.shape, *steps.shape, d). A run that diverges far enough
        ends in infinities or NaN.

    Raises:
        ValueError: for a rate that is not positive, steps that are not step numbers, and shapes that do not fit.
    """
    return _descend(features, targets, masks, rate, steps, start, lambda: lambda gradient: gradient)


def closed_form(
    features: ArrayLike,
    targets: ArrayLike,
    masks: ColumnMasks,
    rate: ArrayLike,
    steps: ArrayLike,
    start: ArrayLike = 0.0,
) -> np.ndarray:
    """Return what equation (3) says: w_t = (I - (rate / n) M X' X M)^t (w_0 - (XM)^+ y) + (XM)^+ y.

    Arguments and result are those of `gradient_descent`; the cost does not depend on the step numbers. Along the i-th
    singular vector of X M, the part of w_0 - (XM)^+ y is multiplied by (1 - rate lambda_i / n)^t. The part of w_0 in
    the null space of X M does not change. Proposition 5.2 follows from this formula: check it by `gradient_descent`.

    In the book: `thm-stable-step` in how_large_a_step, `eq-closed-form` in how_large_a_step.
    """
    features, targets, rates, steps, start = _check(features, targets, masks, rate, steps, start)
    result = np.empty((*rates.shape, steps.size, masks.width))
    result[...] = start
    for index in np.ndindex(masks.shape):
        columns = masks.columns(index)
        left, values, right = masked_svd(features, columns)
        gap = left.T @ targets / values - right.T @ start[columns]  # (r,): from the start to the limit
        shrink = rates[(..., *index)][..., None, None] * values**2 / len(features)  # (..., 1, r)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            # 1 - (1 - shrink)^t without loss of digits where shrink is tiny
            done = -np.expm1(steps.reshape(-1, 1) * np.log1p(-np.minimum(shrink, 0.5)))  # (..., steps, r)
            done = np.where(shrink < 0.5, done, 1 - (1 - shrink) ** steps.reshape(-1, 1))
            moved = (done * gap) @ right.T  # (..., steps, k)
        run = result[(..., *index, slice(None), slice(None))]  # a view, (..., steps, d)
        run[..., columns] += moved
    return result.reshape(*rates.shape, *steps.shape, masks.width)


def sgd(
    features: ArrayLike,
    targets: ArrayLike,
    masks: ColumnMasks,
    rate: ArrayLike,
    steps: ArrayLike,
    start: ArrayLike = 0.0,
    *,
    batch_size: int = 1,
) -> np.ndarray:
    """Return iterates of stochastic gradient descent: each step's gradient is a mean over a random batch.

    Batches are drawn afresh for each step, without repetition inside one, from the mask's seed: a seed has the same
    batches at every density and rate. The gradient's mean is grad L; batch_size n is gradient descent.

    Arguments and result are those of `gradient_descent`, and batch_size: examples a step, between 1 and n.

    In the book: `ex-stochastic` in proofs.
    """
    return _descend(features, targets, masks, rate, steps, start, lambda: lambda gradient: gradient, batch_size)


def adam(
    features: ArrayLike,
    targets: ArrayLike,
    masks: ColumnMasks,
    rate: ArrayLike,
    steps: ArrayLike,
    start: ArrayLike = 0.0,
    *,
    batch_size: int | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
) -> np.ndarray:
    """Return iterates of Adam without weight decay; the defaults are the paper's (appendix B).

    Its first step moves each chosen entry by the rate, whatever the gradient's size. So it changes the loss by about
    rate * |M grad L|_1, on average rate * p * |grad L|_1. Equal progress at all densities therefore asks for a rate
    proportional to 1 / p, as gradient descent's limit 2n / lambda_1 does for another reason.

    In the book: `prop-reparameterisation` in one_rate_for_every_density.

    Arguments and result are those of `gradient_descent`, and

    Args:
        batch_size: as for `sgd`; all examples if None.
        betas: decay of the averages of the gradient and of its square, each in [0, 1).
        epsilon: added to the root of the second average; positive, in units of the gradient.
    """
    for beta in betas:
        if not 0 <= beta < 1:
            raise ValueError(f"betas must be two numbers in [0, 1), got {betas!r}.")
    if not 0 < epsilon < np.inf:
        raise ValueError(f"epsilon must be a positive finite number, got {epsilon!r}.")

    def fresh() -> Direction:
        first, second, count = 0.0, 0.0, 0

        def direction(gradient: np.ndarray) -> np.ndarray:
            nonlocal first, second, count
            count += 1
            first = betas[0] * first + (1 - betas[0]) * gradient
            second = betas[1] * second + (1 - betas[1]) * gradient**2
            return first / (1 - betas[0] ** count) / (np.sqrt(second / (1 - betas[1] ** count)) + epsilon)

        return direction

    return _descend(features, targets, masks, rate, steps, start, fresh, batch_size)


def sign_descent(
    features: ArrayLike,
    targets: ArrayLike,
    masks: ColumnMasks,
    rate: ArrayLike,
    steps: ArrayLike,
    start: ArrayLike = 0.0,
    *,
    batch_size: int | None = None,
) -> np.ndarray:
    """Return iterates of sign descent: w_{t+1} = w_t - rate sign(grad L(w_t)), Adam with both averages switched off.

    In the book: `prop-first-order` in one_rate_for_every_density,
    `prop-reparameterisation` in one_rate_for_every_density.

    Arguments and result are those of `gradient_descent`, and batch_size: as for `sgd`; all examples if None.
    """
    return _descend(features, targets, masks, rate, steps, start, lambda: np.sign, batch_size)


def _descend(features, targets, masks, rate, steps, start, fresh, batch_size=None):
    """Run the loop of all methods; `fresh()` makes the function from gradient to direction for one mask."""
    features, targets, rates, steps, start = _check(features, targets, masks, rate, steps, start)
    n = len(features)
    batch_size = n if batch_size is None else check_size(batch_size, "batch_size")
    if batch_size > n:
        raise ValueError(f"batch_size must be at most the number of examples, {n}, got {batch_size}.")
    wanted = steps.reshape(-1)
    result = np.empty((*rates.shape, wanted.size, masks.width))
    result[...] = start
    for index in np.ndindex(masks.shape):
        columns = masks.columns(index)
        run = result[(..., *index, slice(None), slice(None))]  # a view, (..., steps, d)
        mask_rates = rates[(..., *index)][..., None]  # (..., 1)
        inputs, outputs = take_columns(features, columns), targets  # (n, k), (n,)
        weights = np.empty((*mask_rates.shape[:-1], len(columns)))
        weights[...] = start[columns]
        direction, generator = fresh(), masks.generator(index, "batches")
        for step in range(int(wanted.max(initial=0)) + 1):
            for place in np.flatnonzero(wanted == step):
                run[..., place, columns] = weights
            if batch_size < n:
                batch = generator.choice(n, batch_size, replace=False)
                inputs_now, outputs_now = inputs[batch], outputs[batch]
            else:
                inputs_now, outputs_now = inputs, outputs
            with np.errstate(over="ignore", invalid="ignore"):  # diverging runs
                gradient = (weights @ inputs_now.T - outputs_now) @ inputs_now / batch_size
                weights = weights - mask_rates * direction(gradient)
    return result.reshape(*rates.shape, *steps.shape, masks.width)


def _check(features, targets, masks, rate, steps, start):
    features = check_features(features, masks)
    targets, start = check_targets(targets, features), check_start(start, masks.width)
    rates = np.asarray(rate, dtype=np.float64)
    if not (np.isfinite(rates) & (rates > 0)).all():
        raise ValueError(f"the learning rate must be a positive finite number, got {rate!r}.")
    try:
        shape = np.broadcast_shapes(rates.shape, masks.shape)
    except ValueError:
        shape = None
    if shape is None or (masks.shape and shape[-len(masks.shape) :] != masks.shape):
        raise ValueError(
            f"rates of shape {rates.shape} do not fit masks of shape {masks.shape}: give one rate, one for each mask, "
            "or several on further leading axes."
        )
    steps = np.asarray(steps)
    if steps.dtype.kind not in "iu" or (steps < 0).any():
        raise ValueError(f"steps must be step numbers of at least 0, got {steps!r}.")
    return features, targets, np.broadcast_to(rates, shape), steps, start
