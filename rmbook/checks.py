"""Checks of arguments that several rooms share: each returns the value in its plain type, or raises ValueError."""

import math
from numbers import Integral, Real

import numpy as np


def check_density(density: float) -> float:
    """Return `density` as a float, or raise.

    Raises:
        ValueError: if it is not a number in [0, 1].
    """
    if isinstance(density, bool) or not isinstance(density, Real):
        raise ValueError(f"density must be a number in [0, 1], got {density!r} of type {type(density).__name__}.")
    density = float(density)
    if not 0.0 <= density <= 1.0:  # also catches NaN
        raise ValueError(
            f"density is the probability that an entry is trained and must lie in [0, 1], got {density}. "
            "If you meant a share of all parameters of the model, pass it as ratio."
        )
    return density


def check_seed(seed: int) -> int:
    """Return `seed` as an int, or raise ValueError if it is not an integer."""
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise ValueError(f"seed must be an integer, got {seed!r} of type {type(seed).__name__}.")
    return int(seed)


def check_shape(shape: tuple[int, int]) -> tuple[int, int]:
    """Return the shape (out, in) of a matrix as two ints, or raise ValueError if it is none."""
    if len(shape) != 2 or any(size < 1 for size in shape):
        raise ValueError(f"a mask needs the shape (out, in) of a matrix with at least one entry, got {tuple(shape)}.")
    return int(shape[0]), int(shape[1])


def check_size(size: int, name: str) -> int:
    """Return a size as an int, or raise ValueError if it is not an integer of at least 1."""
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {size!r}.")
    return int(size)


def scale_factor(scale: float | str, density: float | None) -> float:
    """Return the factor in S = scale * values: `scale`, or 1 / density for "inverse_density" (1 at density 0).

    Raises:
        ValueError: it is neither a positive number nor "inverse_density", or that and there is no density.
    """
    if scale == "inverse_density" and density is not None:
        return 1 / density if density else 1.0
    try:
        factor = float(scale) if isinstance(scale, Real) and not isinstance(scale, bool) else 0.0
    except OverflowError:
        factor = math.inf
    if not 0 < factor < math.inf:
        raise ValueError(f'scale must be a positive number, or "inverse_density" of drawn masks, got {scale!r}.')
    return factor


def check_scale(value: float, name: str) -> float:
    """Return `value` as a float, or raise ValueError if it is negative or not finite."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value < math.inf:
        raise ValueError(f"{name} must be zero or a positive finite number, got {value!r}.")
    return float(value)
