"""The explorer of density and learning rate, over the small models of `rmbook.theory.networks`."""

import numpy as np

from rmbook.theory.networks import Problem, train_masked
from rmbook.widgets.explorer import Explorer, Runs

DENSITIES = np.geomspace(0.03, 1, 6)
RATES = {"descent": np.geomspace(0.01, 1000, 11), "adam": np.geomspace(1e-4, 10, 11)}
STEPS = np.arange(0, 31, 3)


def explore_networks(problem: Problem, method: str, batch: int | None = None, seed: int = 0) -> Explorer:
    """Return an explorer whose runs are computed when a slider moves.

    Args:
        problem: what is trained.
        method: "descent" or "adam".
        batch: examples of a step; all if None.
        seed: of the masks and the batches.
    """

    def run(densities: np.ndarray, rates: np.ndarray) -> Runs:
        found = train_masked(problem, densities, rates, STEPS, method=method, batch=batch, seed=seed)
        return Runs(found.losses.double().numpy(), found.distances.double().numpy())

    title = f"Density and learning rate, {'Adam' if method == 'adam' else 'gradient descent'}"
    lost = "ends above its start"
    return Explorer(run, DENSITIES, RATES[method], STEPS, title=title, lost_label=lost, density=0.1, learning_rate=1.0)
