"""Scores by which others choose the entries that are trained, from a weight and its gradient alone."""

import torch


def principal_weights(weight: torch.Tensor, rank: int) -> torch.Tensor:
    """Return the size of each entry of a weight's best approximation of a rank: LIFT trains the largest.

    The approximation keeps the `rank` largest singular values. Source: Liu et al., LIFT the Veil for the Truth, 2025
    (arXiv:2506.00772), whose masks are chosen anew along the way; this is the choice at the start.

    Args:
        weight: (out, in).
        rank: 1 to min(out, in); at the largest one these are the sizes of the weights themselves.

    Returns:
        (out, in), float32.

    Raises:
        ValueError: another rank, or no matrix.
    """
    if weight.ndim != 2 or not 1 <= rank <= min(weight.shape):
        raise ValueError(f"rank must be 1 to the smaller side of a matrix, got {rank!r} for {tuple(weight.shape)}.")
    left, values, right = torch.linalg.svd(weight.detach().float(), full_matrices=False)
    return ((left[:, :rank] * values[:rank]) @ right[:rank]).abs()


def gradient_to_weight(gradient: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return |gradient| / |weight|: the entries that a step of gradient descent changes most, beside their size.

    Args:
        gradient, weight: (out, in).

    Returns:
        (out, in), float32; infinite where the weight alone is zero, and 0 where both are.

    Raises:
        ValueError: the shapes differ.
    """
    if gradient.shape != weight.shape:
        raise ValueError(f"a gradient has its weight's shape, got {tuple(gradient.shape)} and {tuple(weight.shape)}.")
    ratio = gradient.detach().float().abs() / weight.detach().float().abs()
    return torch.where(gradient == 0, torch.zeros(()), ratio)
