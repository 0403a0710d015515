"""Right answers to the book's open exercises: who wants to solve them should not read on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rmbook.paper.models import count_parameters

# Eigenvalues, largest first, of a problem with n examples; the second has a direction in which the loss is flat.
_SPECTRA = ((np.array([90.0, 4.0, 1.0]), 3), (np.array([20.0, 5.0, 0.0]), 8), (np.array([2.0, 2.0]), 2))


@dataclass(frozen=True)
class Exercise:
    """An open exercise.

    Attributes:
        right: returns the right answer, for the inputs if a function is asked for.
        inputs: arguments that the reader's function is tried with; empty where a number is asked for.
        words: the inputs in a sentence, a format string.
        tolerance: relative to the right answer's largest entry.
    """

    right: Callable[..., Any]
    inputs: Callable[[], Iterator[tuple]] | None = None
    words: str = ""
    tolerance: float = 1e-3


def _gradients() -> Iterator[tuple]:
    for tokens, n_out in ((4, 3), (64, 80), (1, 5)):
        yield (torch.randn(tokens, n_out, dtype=torch.float64, generator=torch.Generator().manual_seed(tokens)),)


def _features() -> Iterator[tuple]:
    for n, d, p in ((8, 400, 0.1), (3, 50, 0.5), (8, 400, 1.0)):
        yield np.random.default_rng(n).random((n, d)) - 0.2, p


def _longest_step(t: int, beta1: float, beta2: float) -> float:
    first, second = ((1 - beta) * beta ** np.arange(t) / (1 - beta**t) for beta in (beta1, beta2))
    return float((first**2 / second).sum() ** 0.5)


ANSWERS = {
    "ex-bias": Exercise(lambda g: g.sum(0), _gradients, "a gradient of shape {0.shape}"),
    "ex-trace": Exercise(lambda features, p: p * (features**2).sum(), _features, "X of shape {0.shape} and p = {1}"),
    "ex-trace-concentration": Exercise(
        lambda features, p: (p * (1 - p) * ((features**2).sum(0) ** 2).sum()) ** 0.5,
        _features,
        "X of shape {0.shape} and p = {1}",
    ),
    "ex-best-step": Exercise(
        lambda eigenvalues, n: 2 * n / (eigenvalues[0] + eigenvalues[eigenvalues > 0][-1]),
        lambda: iter(_SPECTRA),
        "eigenvalues {0} and n = {1}",
    ),
    "ex-noise-alone": Exercise(
        lambda eigenvalues, sigma: sigma**2 * (1 / eigenvalues[eigenvalues > 0]).sum(),
        lambda: iter([(values, 0.5 * n) for values, n in _SPECTRA]),
        "eigenvalues {0} and sigma = {1}",
    ),
    "ex-longest-step": Exercise(
        _longest_step,
        lambda: iter([(1, 0.9, 0.999), (10, 0.9, 0.999), (1000, 0.9, 0.999), (50, 0.5, 0.9)]),
        "t = {0}, beta1 = {1} and beta2 = {2}",
    ),
    "ex-misprint": Exercise(lambda: 138),
    "ex-token-rate": Exercise(lambda: 10**-6.4 * count_parameters("Llama-2-7b")[0] / (2 * 4096), tolerance=0.02),
    "ex-ratio-density": Exercise(lambda: 1e-5 * 12_853_473_280 / (2 * 40 * 5120**2)),
    "ex-clip-equal-count": Exercise(lambda: 8 * (768 + 3072) / (768 * 3072)),
    "ex-opt-price": Exercise(lambda: 9 * 11 * 6 * 3 * 125 * 5 * 0.25 / 86_400, tolerance=0.02),
    "ex-llama-two-bytes": Exercise(lambda: 8 * count_parameters("Llama-2-7b")[0] / 1e9, tolerance=0.02),
    "ex-cost-tokens": Exercise(
        lambda width, corner: 2 * corner * width / (width - 4 * corner),
        lambda: iter([(768, 10.0), (2048, 40.0), (5120, 100.0)]),
        "width {0} and corner {1}",
    ),
}
