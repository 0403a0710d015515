"""The end of gradient descent on a masked linear regression, and how far away it is (section 5.3 of the paper).

With y = X w* + noise of variance sigma^2, the squared norm of the limit (XM)^+ y is on average

    E[|w|^2 | M] = |(XM)^+ X w*|^2 + sigma^2 sum_{lambda_i > 0} 1 / lambda_i

The paper's equation (2) keeps the second term alone, as a lower bound. The noise needs mean 0 and covariance
sigma^2 I; it need not be Gaussian.

The average is over the noise for a *given* mask. Do not average it over masks where k, the number of chosen columns,
comes near n: lambda_n is then close to 0 for some masks, and for Gaussian X the mean of 1 / lambda_n is infinite at
k = n - 1, n and n + 1. Report medians there. For k > n + 1 and standard normal entries the second term's mean is
sigma^2 n / (k - n - 1), and for k < n - 1 it is sigma^2 k / (n - k - 1): the limit moves away as p falls only while
k > n, and comes back to 0 after that.
"""

import numpy as np
from numpy.typing import ArrayLike

from rmbook.checks import check_scale, check_size
from rmbook.theory.regression import ColumnMasks, check_features, check_targets, check_vector, masked_svd


def limit_point(features: ArrayLike, targets: ArrayLike, masks: ColumnMasks, start: ArrayLike = 0.0) -> np.ndarray:
    """Return the limit of gradient descent at a stable rate: (XM)^+ y plus the start's part in the null space of X M.

    The proof of Proposition 5.2 says that it is (XM)^+ y from every start. That holds for starts in the row space of
    X M, such as the paper's w_0 = 0: gradients stay in that space, so the rest of the start never changes.

    In the book: `thm-stable-step` in how_large_a_step, `prop-nested` in proofs.

    Args:
        features: X, (n, d).
        targets: y, (n,).
        masks: masks of width d.
        start: w_0, (d,), or one number for all entries.

    Returns:
        The limit for each mask, (*masks.shape, d).
    """
    features = check_features(features, masks)
    targets, start = check_targets(targets, features), check_start(start, masks.width)
    result = np.empty((*masks.shape, masks.width))
    result[...] = start
    for index in np.ndindex(masks.shape):
        columns = masks.columns(index)
        left, values, right = masked_svd(features, columns)
        result[(*index, columns)] += right @ (left.T @ targets / values - right.T @ start[columns])
    return result


def expected_squared_norm(
    features: ArrayLike, true_weights: ArrayLike, noise: float, masks: ColumnMasks
) -> tuple[np.ndarray, np.ndarray]:
    """Return both terms of Proposition 5.3; their sum is the mean of |(XM)^+ y|^2 over the noise, for each mask.

    In the book: `thm-distance` in further_from_home, `prop-harmonic` in proofs, `prop-peak` in proofs.

    Args:
        features: X, (n, d).
        true_weights: w*, (d,); with pretrained weights w~, pass w* - w~.
        noise: sigma, the standard deviation of the noise, in units of y.
        masks: masks of width d.

    Returns:
        signal: |(XM)^+ X w*|^2, (*masks.shape).
        noise: sigma^2 sum over lambda_i > 0 of 1 / lambda_i, (*masks.shape): the bound of equation (2).
    """
    features, mean, sigma = _check_truth(features, true_weights, noise, masks)
    signal, spread = np.empty(masks.shape), np.empty(masks.shape)
    for index in np.ndindex(masks.shape):
        left, values, _ = masked_svd(features, masks.columns(index))
        signal[index] = ((left.T @ mean / values) ** 2).sum()
        spread[index] = sigma**2 * (values**-2.0).sum()
    return signal, spread


def simulated_squared_norm(
    features: ArrayLike, true_weights: ArrayLike, noise: float, masks: ColumnMasks, draws: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the same mean by simulation: draw the noise, find the limit point, average its squared norm.

    The noise is Gaussian and drawn from the masks' seeds, so a seed has the same noise at every density.

    In the book: `thm-distance` in further_from_home.

    Args:
        features, true_weights, noise, masks: as for `expected_squared_norm`.
        draws: noise vectors for each mask, at least 2.

    Returns:
        mean: (*masks.shape).
        standard_error: of the mean, (*masks.shape).
    """
    features, mean, sigma = _check_truth(features, true_weights, noise, masks)
    if check_size(draws, "draws") < 2:
        raise ValueError("draws must be at least 2: one draw has no standard error.")
    norms = np.empty((*masks.shape, draws))
    for index in np.ndindex(masks.shape):
        chosen = features[:, masks.columns(index)]
        inverse = np.linalg.pinv(chosen, rcond=max(chosen.shape) * np.finfo(float).eps)  # (k, n)
        targets = mean + sigma * masks.generator(index, "noise").standard_normal((draws, len(features)))
        norms[index] = ((targets @ inverse.T) ** 2).sum(-1)
    return norms.mean(-1), norms.std(-1, ddof=1) / draws**0.5


def check_start(start: ArrayLike, width: int) -> np.ndarray:
    """Return w_0 as (d,) float64, or raise ValueError if it is neither d finite numbers nor one."""
    start = np.asarray(start, dtype=np.float64)
    return check_vector(np.full(width, start) if start.ndim == 0 else start, width, "the start w_0")


def _check_truth(features, true_weights, noise, masks):
    features = check_features(features, masks)
    mean = features @ check_vector(true_weights, masks.width, "the true weights w*")  # (n,)
    return features, mean, check_scale(noise, "noise, the standard deviation sigma,")
