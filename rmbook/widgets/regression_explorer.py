"""The explorer of masked linear regression: runs of `rmbook.theory.descent`, with the border that theory names."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from rmbook.checks import check_size
from rmbook.theory.descent import gradient_descent
from rmbook.theory.regression import ColumnMasks, check_features, largest_stable_rate, loss
from rmbook.widgets.explorer import Explorer, Runs

CURVE_POINTS = 16


def explore_regression(
    features: ArrayLike,
    targets: ArrayLike,
    *,
    method: Callable = gradient_descent,
    steps: int = 300,
    seed: int = 0,
    densities: ArrayLike | None = None,
    learning_rates: ArrayLike | None = None,
    density: float = 0.05,
    learning_rate: float = 0.01,
    border: Callable[[np.ndarray], np.ndarray] | None = None,
    border_label: str = "largest stable rate",
    title: str = "Masked linear regression",
) -> Explorer:
    """Return an explorer of the loss of equation (1) and the distance |w_t| under a method of `rmbook.theory.descent`.

    Every run is iterated, step by step, and the border comes from the eigenvalues alone: one checks the other.

    Args:
        features: X, (n, d).
        targets: y, (n,).
        method: `gradient_descent`, `sgd`, `adam` or `sign_descent`; `closed_form` is quicker for very many steps.
        steps: number of steps of each run; at least 2.
        seed: of the masks; there is one mask for each density.
        densities, learning_rates: the grid; 0.01 to 1 and 1e-4 to 1 if None.
        density, learning_rate: where the sliders stand at first.
        border: function of densities (D,) that returns learning rates (D,); 2n / lambda_1 of each mask
            (Proposition 5.2) if None.
        border_label: name of the border.
        title: what a screen reader calls the figure.

    Returns:
        The explorer; in a kernel it is live.

    Raises:
        ValueError: for features or targets that are not finite or do not fit each other, and for grids that are not
            evenly spaced on a logarithmic axis.
    """
    features = check_features(features)
    if check_size(steps, "steps") < 2:
        raise ValueError(f"steps must be at least 2, got {steps}.")
    times = np.unique(np.geomspace(1, steps + 1, CURVE_POINTS).round().astype(int)) - 1  # dense where losses fall fast

    def simulate(densities: np.ndarray, rates: np.ndarray) -> Runs:
        losses = np.empty((len(rates), len(densities), len(times)))
        distances = np.empty(losses.shape[:2])
        for place, p in enumerate(densities):  # one mask at a time: (R, T, d) weights stay small
            mask = ColumnMasks(features.shape[1], p, seed)
            weights = method(features, targets, mask, rates, times)  # (R, T, d)
            with np.errstate(over="ignore", invalid="ignore"):  # diverging runs
                losses[:, place] = loss(features, targets, weights)
                distances[:, place] = np.linalg.norm(weights[:, -1], axis=-1)
        losses[np.isnan(losses)], distances[np.isnan(distances)] = np.inf, np.inf  # infinity minus infinity
        if border is None:
            return Runs(
                losses, distances, largest_stable_rate(features, ColumnMasks(features.shape[1], densities, seed))
            )
        return Runs(losses, distances, border(densities))

    return Explorer(
        simulate,
        np.geomspace(0.01, 1, 17) if densities is None else densities,
        np.geomspace(1e-4, 1, 21) if learning_rates is None else learning_rates,
        times,
        density=density,
        learning_rate=learning_rate,
        title=title,
        border_label=border_label,
    )
