"""Lines through the loss landscape: along the gradient and along a path."""

import numpy as np
import torch
from numpy.typing import ArrayLike

from rmbook.landscape.landscape import Landscape


def loss_along_gradient(landscape: Landscape, rates: ArrayLike, point: torch.Tensor | None = None) -> np.ndarray:
    """Losses after one step of gradient descent, L(w - rate * gradient), for each learning rate: (rates,).

    Args:
        landscape: whose loss is taken.
        rates: learning rates, (rates,).
        point: w, (n,); the model's own if None.
    """
    start = landscape.point() if point is None else point
    gradient = landscape.gradient(start)
    return np.array([landscape.loss(start - rate * gradient) for rate in np.asarray(rates, dtype=np.float64).tolist()])


def loss_along_path(
    landscape: Landscape, start: torch.Tensor, end: torch.Tensor | None = None, fractions: ArrayLike | None = None
) -> np.ndarray:
    """Losses on the straight line from start (n,) to end (n,), the model's own point if None: (fractions,).

    Args:
        landscape: whose loss is taken.
        start: at fraction 0. For a random mask the pretrained weights are zeros.
        end: at fraction 1.
        fractions: of the way; 0, 0.1, ..., 1 if None. Others than those between 0 and 1 extend the line.
    """
    end = landscape.point() if end is None else end
    fractions = np.linspace(0, 1, 11) if fractions is None else np.asarray(fractions, dtype=np.float64)
    # From both ends, so that fraction 1 is the end itself, without the rounding of start + (end - start).
    return np.array([landscape.loss(start * (1 - fraction) + end * fraction) for fraction in fractions.tolist()])
