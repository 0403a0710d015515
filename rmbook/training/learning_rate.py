"""Learning rate times ratio is about constant: a law that the paper's table 6 obeys, though it is not stated there."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PAPER_CONSTANT = 10**-6.4  # learning rate * ratio, over all cells of the paper's table 6
PAPER_GRID = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


@dataclass(frozen=True)
class PowerLaw:
    """learning rate = 10**intercept * ratio**slope, a line on logarithmic axes.

    Attributes:
        slope: -1 means that learning rate times ratio is constant.
        intercept: decimal logarithm of the learning rate at ratio 1.
        residuals: decimal logarithms of what was measured over what the law says, in the order of the points.
    """

    slope: float
    intercept: float
    residuals: tuple[float, ...]


def suggest_learning_rate(
    ratio: float, *, known: tuple[float, float] | None = None, grid: Sequence[float] | None = None
) -> float:
    """Adam's learning rate for a random mask, by the law that learning rate times ratio is constant.

    Adam moves every trained entry by about the learning rate, so that a step changes the loss by about
    learning rate * ratio * |gradient|_1: to keep this the same, fewer entries want a larger rate.

    Args:
        ratio: trained entries / all parameters of the model (or a density, if `known` has one, too).
        known: a ratio and its best learning rate on the same model and task. If None the law's constant is that of the
            paper's table 6, 10**-6.4 for OPT: on its grid within a factor of 10 of the best in 94 to 100 % of cells,
            not counting the task WSC.
        grid: learning rates to choose from, on a logarithmic scale; None gives the law's own number.

    Raises:
        ValueError: a ratio or a learning rate is not a positive number, or the grid is empty.

    Example:
        >>> f"{suggest_learning_rate(0.001, known=(0.1, 3e-4)):g}"  # a hundredth of the entries
        '0.03'
    """
    numbers = [ratio, *(known or ()), *(grid if grid is not None else ())]
    if not all(isinstance(x, int | float) and not isinstance(x, bool) and 0 < x < math.inf for x in numbers):
        raise ValueError(f"ratio, known and grid must be positive finite numbers, got {ratio!r}, {known!r}, {grid!r}.")
    if ratio > 1 or (known and known[0] > 1):
        raise ValueError(f"a ratio is at most 1, got {ratio!r}{f' and {known[0]!r}' if known else ''}.")
    if grid is not None and not len(grid):
        raise ValueError("grid holds no learning rate to choose from.")
    rate = (known[0] * known[1] if known else PAPER_CONSTANT) / ratio
    return rate if grid is None else min(grid, key=lambda candidate: abs(math.log(candidate / rate)))


def fit_power_law(ratios: Sequence[float], learning_rates: Sequence[float]) -> PowerLaw:
    """The line of least squares through the logarithms of ratios and best learning rates.

    Raises:
        ValueError: fewer than two different ratios, or numbers that are not positive.
    """
    x, y = np.asarray(ratios, float), np.asarray(learning_rates, float)
    if x.shape != y.shape or len(np.unique(x)) < 2 or not ((x > 0) & (y > 0)).all():
        raise ValueError("a law needs one positive learning rate for each of at least two different positive ratios.")
    slope, intercept = np.polyfit(np.log10(x), np.log10(y), 1)
    residuals = np.log10(y) - (slope * np.log10(x) + intercept)
    return PowerLaw(float(slope), float(intercept), tuple(residuals.tolist()))
