"""Masks for one question of the paper (section 4.4): does it matter which entries are trained, at the same number?

Masks that are drawn (`rmbook.masks`) are compared with those of the entries that a score ranks first or last.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from rmbook.engine.targets import find_targets
from rmbook.masks.sample import Mask, sample_mask
from rmbook.masks.scores import gradient_to_weight, principal_weights
from rmbook.masks.structured import entry_count, random_blocks, random_columns, random_rows, sorted_mask
from rmbook.training.objectives import Objective


def largest_scores(scores: torch.Tensor, density: float) -> Mask:
    """Return the int(out * in * density) entries of largest score; of equal ones the first.

    Args:
        scores: (out, in).
        density: share of the entries, in [0, 1].

    Raises:
        ValueError: a score is not a number.
    """
    if scores.isnan().any():
        raise ValueError("a score is not a number; scores must be comparable.")
    order = scores.reshape(-1).argsort(descending=True, stable=True)
    return sorted_mask(tuple(scores.shape), order[: entry_count(scores.shape, density)].cpu())


def squared_gradients(
    model: nn.Module, targets: Sequence[str], objective: Objective, data: Sequence
) -> dict[str, torch.Tensor]:
    """Return each entry's empirical Fisher information: the mean over examples of the squared gradient of their loss.

    The score by which FISH masks are chosen (Sung et al., 2021), with the labels that the data have.

    Args:
        model: left as it is, `requires_grad` included.
        targets: names of the linear layers.
        objective: whose loss.
        data: examples, taken one by one.

    Returns:
        (out, in) for each target layer, by its name.
    """
    layers = find_targets(model, targets)
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    weights = {name: layer.weight for name, layer in layers.items()}
    sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    model.eval()
    try:
        model.requires_grad_(False)
        for weight in weights.values():
            weight.requires_grad_(True)
        for place in range(len(data)):
            loss = objective.loss(model, [data[place]])
            for name, gradient in zip(weights, torch.autograd.grad(loss, weights.values()), strict=True):
                sums[name] += gradient.square() / len(data)
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
    return sums


DRAWN: dict[str, Callable] = {
    "entries": sample_mask,
    "columns": random_columns,
    "rows": random_rows,
    "blocks": random_blocks,
}
OF_WEIGHTS = ("large_weights", "small_weights", "principal_weights")
OF_GRADIENTS = ("large_gradients", "small_gradients", "gradient_to_weight")
PRINCIPAL_SHARE = 8  # LIFT's rank is 128 for matrices of 1,024 and more: here an eighth of the shorter side


def choose_masks(
    model: nn.Module,
    targets: Sequence[str],
    choice: str,
    density: float,
    *,
    seed: int = 0,
    objective: Objective | None = None,
    data: Sequence = (),
) -> dict[str, Mask]:
    """Choose masks for `rmbook.engine.masking.apply_masks`, of the same density in each target layer.

    Args:
        model: as it is before training.
        targets: names of the linear layers.
        choice: drawn: "entries" (the paper's), "columns", "rows", "blocks"; ranked: "large_weights", "small_weights"
            (by magnitude), "principal_weights" (LIFT's), "large_gradients", "small_gradients" (by `squared_gradients`),
            "gradient_to_weight" (their root over the magnitude).
        density: share of the entries.
        seed: of what is drawn.
        objective, data: for the gradients.

    Raises:
        ValueError: an unknown choice, or gradients without data.
        TargetError: a target matches nothing.
    """
    layers = find_targets(model, targets)
    if choice in DRAWN:
        return {
            name: DRAWN[choice](tuple(layer.weight.shape), density, seed, f"{name}.weight")
            for name, layer in layers.items()
        }
    if choice not in OF_WEIGHTS + OF_GRADIENTS:
        known = ", ".join((*DRAWN, *OF_WEIGHTS, *OF_GRADIENTS))
        raise ValueError(f"choice must be one of {known}, got {choice!r}.")
    weights = {name: layer.weight.detach() for name, layer in layers.items()}
    if choice == "principal_weights":
        ranks = {name: max(1, min(weight.shape) // PRINCIPAL_SHARE) for name, weight in weights.items()}
        scores = {name: principal_weights(weight, ranks[name]) for name, weight in weights.items()}
    elif choice in OF_WEIGHTS:
        scores = {name: weight.abs() for name, weight in weights.items()}
    elif objective is None or not len(data):
        raise ValueError(f"{choice} needs an objective and data to take gradients of.")
    else:
        scores = squared_gradients(model, targets, objective, data)
    if choice == "gradient_to_weight":
        scores = {name: gradient_to_weight(score.sqrt(), weights[name]) for name, score in scores.items()}
    sign = -1 if choice.startswith("small") else 1
    return {name: largest_scores(sign * score, density) for name, score in scores.items()}
