"""Distances of a masked problem's eigenvalues from p times the full ones: Theorem 5.1, and a bound that knows p.

All bounds are about Q = X M X' - p X X': with probability at least 1 - delta over the mask, |Q|_2 is at most the
bound. By Weyl's theorem the same then holds for every |lambda_i - p lambda_i(X'X)|. Both sides have the units of
|x|^2, the square of X's entries.
"""

import math
from numbers import Real

import numpy as np
from numpy.typing import ArrayLike

from rmbook.checks import check_density, check_size
from rmbook.theory.regression import COLUMN_BLOCK, ColumnMasks, check_features, gram


def theorem_5_1(n: int, d: int, entry_bound: float, delta: ArrayLike) -> np.ndarray:
    """Return the bound of Theorem 5.1, corrected: 2 sqrt(2 d n^3 r^4) + sqrt(2 d n^2 r^4 log(1/delta)).

    Its proof shows P(|Q|_2 > t + 2 sqrt(2 d n^3 r^4)) <= exp(-t^2 / (2 d n^2 r^4)); setting the right side to delta
    gives the second term. The bound does not depend on p: for entries uniform in [0, 1], where lambda_1(X'X) is
    about n d / 4, the first term alone exceeds p lambda_1(X'X) unless d > 128 n / p^2.

    In the book: `lem-generating` in flatter_landscape, `thm-concentration` in flatter_landscape.

    Args:
        n, d: shape of X.
        entry_bound: r, positive: the entries of X lie in [0, r]. (The proof works for [-r, r] as well.)
        delta: allowed probability of failure, in (0, 1); one or an array.

    Returns:
        The bound for each delta, (*delta.shape).
    """
    n, d, r, delta = _check(n, d, entry_bound, delta)
    return 2 * math.sqrt(2 * d * n**3) * r**2 + np.sqrt(2 * d * n**2 * np.log(1 / delta)) * r**2


def theorem_5_1_as_printed(n: int, d: int, entry_bound: float, delta: ArrayLike) -> np.ndarray:
    """Return Theorem 5.1's bound as printed, which is wrong: 2 sqrt(2 d n^3 r^4) + sqrt(2 log(1/delta) / (d n^2 r^4)).

    The second term has the units of 1 / |x|^2 and falls as d grows; `theorem_5_1` is the corrected bound. The first
    term is so large that the mistake does not show at ordinary delta. But for n = 1, X = (1, ..., 1), d = 10,000,
    p = 1/2 and delta = 1e-9 the bound fails with probability 1.6e-8, sixteen times what the theorem allows.

    In the book: `thm-concentration` in flatter_landscape, `sec-slips` in proofs.

    Arguments and result as for `theorem_5_1`.
    """
    n, d, r, delta = _check(n, d, entry_bound, delta)
    return 2 * math.sqrt(2 * d * n**3) * r**2 + np.sqrt(2 * np.log(1 / delta) / (d * n**2)) / r**2


def matrix_bernstein(features: ArrayLike, densities: ArrayLike, delta: ArrayLike) -> np.ndarray:
    """Return a bound on |Q|_2 that knows p and X: the matrix Bernstein inequality (Tropp 2012, theorem 1.4).

    Q is the sum over columns z_i of (m_i - p) z_i z_i', independent with mean 0 and norms of at most
    L = max |z_i|^2, and the sum of their mean squares has the norm v = p (1 - p) lambda_max(sum |z_i|^2 z_i z_i').
    So P(|Q|_2 >= t) <= 2 n exp(-t^2 / (2 v + 2 L t / 3)), and with c = log(2 n / delta) setting that to delta gives
    t = L c / 3 + sqrt((L c / 3)^2 + 2 v c).

    In the book: `thm-bernstein` in flatter_landscape.

    Args:
        features: X, (n, d).
        densities: p in [0, 1]; one or an array.
        delta: allowed probability of failure, in (0, 1); one or an array.

    Returns:
        The bound for each density and delta, (*densities.shape, *delta.shape).
    """
    features = check_features(features)
    n, d = features.shape
    _, _, _, delta = _check(n, d, 1.0, delta)
    given = np.array(densities, dtype=object)
    densities = np.array([check_density(p) for p in given.flat], dtype=np.float64).reshape(given.shape)
    largest, weighted = 0.0, np.zeros((n, n))
    for start in range(0, d, COLUMN_BLOCK):
        block = features[:, start : start + COLUMN_BLOCK]
        squares = (block**2).sum(0)  # |z_i|^2
        largest = max(largest, squares.max())
        weighted += (block * squares) @ block.T
    spread = np.multiply.outer(densities * (1 - densities), np.ones(delta.shape)) * np.linalg.eigvalsh(weighted)[-1]
    confidence = np.log(2 * n / delta)
    linear = largest * confidence / 3
    return linear + np.sqrt(linear**2 + 2 * spread * confidence)


def eigenvalue_deviation(features: ArrayLike, masks: ColumnMasks) -> tuple[np.ndarray, np.ndarray]:
    """Measure for each mask what the bounds are about.

    In the book: `thm-concentration` in flatter_landscape, `thm-bernstein` in flatter_landscape.

    Args:
        features: X, (n, d).
        masks: masks of width d.

    Returns:
        largest: max over i of |lambda_i - p lambda_i(X'X)|, (*masks.shape).
        norm: |X M X' - p X X'|_2, (*masks.shape); never smaller.
    """
    whole = gram(features, ColumnMasks(masks.width, 1.0, 0))  # (n, n)
    masked = gram(features, masks)  # (*masks.shape, n, n)
    densities = masks.densities.reshape(masks.densities.shape + (1,) * (masks.seeds.ndim + 2))
    difference = np.linalg.eigvalsh(masked) - densities[..., 0] * np.linalg.eigvalsh(whole)
    norms = np.abs(np.linalg.eigvalsh(masked - densities * whole)).max(-1)
    return np.abs(difference).max(-1), norms


def _check(n, d, entry_bound, delta):
    n, d = check_size(n, "n"), check_size(d, "d")
    if isinstance(entry_bound, bool) or not isinstance(entry_bound, Real) or not 0 < entry_bound < math.inf:
        raise ValueError(f"entry_bound must be a positive finite number, got {entry_bound!r}.")
    delta = np.asarray(delta, dtype=np.float64)
    if not ((delta > 0) & (delta < 1)).all():
        raise ValueError(f"delta, the probability of failure, must lie in (0, 1), got {delta!r}.")
    return n, d, float(entry_bound), delta
