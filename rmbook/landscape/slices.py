"""Lines and planes through the loss landscape: along the gradient, along a path, and 2-d slices of it."""

import numpy as np
import torch
from numpy.typing import ArrayLike

from rmbook.engine.layer import MaskedLinear
from rmbook.landscape.landscape import Landscape


def loss_along_gradient(landscape: Landscape, rates: ArrayLike, point: torch.Tensor | None = None) -> np.ndarray:
    """Losses after one step of gradient descent, L(w - rate * gradient), for each learning rate: (rates,)."""
    start = landscape.point() if point is None else point
    return loss_plane(landscape, -landscape.gradient(start), None, rates, [0.0], start)[:, 0]


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


def loss_plane(
    landscape: Landscape,
    first: torch.Tensor,
    second: torch.Tensor | None,
    first_steps: ArrayLike,
    second_steps: ArrayLike,
    point: torch.Tensor | None = None,
) -> np.ndarray:
    """Losses at point + a * first + b * second for all steps a and b: (first_steps, second_steps).

    Args:
        landscape: whose loss is taken.
        first, second: directions, (n,), such as `filter_normalised` ones; a missing second one is zero.
        first_steps, second_steps: multiples of them.
        point: of steps 0 and 0, (n,); the model's own if None.
    """
    point = landscape.point() if point is None else point
    second = torch.zeros_like(point) if second is None else second
    columns = np.asarray(second_steps, dtype=np.float64).tolist()
    rows = np.asarray(first_steps, dtype=np.float64).tolist()
    return np.array([[landscape.loss(point + a * first + b * second) for b in columns] for a in rows])


def filter_normalised(landscape: Landscape, seed: int) -> torch.Tensor:
    """A random direction, (n,), in which each filter has the norm of the model's own filter (Li et al., 2018).

    A filter is what makes one output: a row of a matrix, the first axis of a larger tensor. In a masked layer it is
    the trained entries of a row of W + S, so that the direction does not vanish where S does. Vectors (biases, norms)
    get zeros, as in the paper. So do LoRA's factors B while they are zero.

    Raises:
        ValueError: no trainable parameter has filters.
    """
    random, pieces, start = landscape.random_vector(seed), [], 0
    for name, parameter in landscape.model.named_parameters():
        if name not in landscape.names:
            continue
        piece = random[start : start + parameter.numel()]
        pieces.append(piece * _filter_scales(landscape.model, name, parameter.detach(), piece).to(piece.dtype))
        start += parameter.numel()
    direction = torch.cat(pieces)
    if not direction.any():
        raise ValueError(
            "filter normalisation needs trainable matrices that are not zero, but there are only vectors (biases, "
            "norms) or zeros; give loss_plane directions of your own, such as Landscape.random_vector."
        )
    return direction


def _filter_scales(model, name, parameter, direction) -> torch.Tensor:
    owner, _, last = name.rpartition(".")
    layer, scale = model.get_submodule(owner), 1.0
    if isinstance(layer, MaskedLinear) and last == "values":
        counts, scale = layer.row_starts.diff().long(), layer.scale
        weight = layer.original.to(parameter.dtype) + layer.delta.detach()
    elif parameter.dim() < 2 or parameter.numel() == 0:
        return torch.zeros_like(direction)
    else:
        weight = parameter.reshape(-1)
        counts = torch.full((len(parameter),), parameter[0].numel(), device=parameter.device)
    rows = torch.repeat_interleave(counts)
    sums = [counts.new_zeros(counts.shape, dtype=torch.float64) for _ in range(2)]
    wanted, got = (s.index_add_(0, rows, t.double().square()) for s, t in zip(sums, (weight, direction), strict=True))
    return ((wanted / got.clamp(min=1e-300)).sqrt() / scale)[rows]
