"""Masked training where least squares end: logistic regression and a network of two layers, by descent and by Adam.

Both models are small enough that all runs of a map of densities and learning rates are trained at once. Their data are
scikit-learn's 8 x 8 digits, odd against even; the network is pretrained on them upright, and fine-tuned on their mirror
images.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch.func import grad, grad_and_value, vmap

EXAMPLES, WIDTH, FEATURES = 256, 48, 512
BETAS, EPSILON = (0.9, 0.999), 1e-8  # Adam's


@dataclass(frozen=True)
class Problem:
    """A model, its data and where training starts.

    Attributes:
        logit: logit(weights, inputs) gives (n,), of weights (P,) and inputs (n, d).
        inputs: (n, d) float32.
        labels: (n,) 0.0 or 1.0.
        start: (P,) weights before training.
    """

    logit: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    inputs: torch.Tensor
    labels: torch.Tensor
    start: torch.Tensor

    def loss(self, weights: torch.Tensor, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean logistic loss."""
        logits = self.logit(weights, inputs)
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)


@dataclass(frozen=True)
class Runs:
    """What `train_masked` gives, for R learning rates and D densities.

    Attributes:
        losses: (R, D, T) training losses over all examples, before each of `steps` and at the end.
        distances: (R, D) from the start.
    """

    losses: torch.Tensor
    distances: torch.Tensor


def _digits(mirrored: bool) -> tuple[torch.Tensor, torch.Tensor]:
    data = load_digits()
    images = torch.tensor(data.images / 16, dtype=torch.float32)[:EXAMPLES]
    images = images.flip(-1) if mirrored else images
    return images.flatten(1) - 0.3, torch.tensor(data.target % 2, dtype=torch.float32)[:EXAMPLES]


@functools.cache
def logistic_regression() -> Problem:
    """Logistic regression on 512 random features of the digits, from zero."""
    inputs, labels = _digits(mirrored=False)
    generator = torch.Generator().manual_seed(0)
    features = torch.relu(inputs @ torch.randn(inputs.shape[1], FEATURES, generator=generator) / 8)
    return Problem(lambda weights, given: given @ weights, features, labels, torch.zeros(FEATURES))


@functools.cache
def two_layers() -> Problem:
    """A network with 48 hidden units, pretrained on upright digits by Adam; the data are mirrored ones."""
    inputs, labels = _digits(mirrored=False)
    size = inputs.shape[1]

    def logit(weights, given):
        first, second = weights[: WIDTH * size].view(WIDTH, size), weights[WIDTH * size :]
        return torch.tanh(given @ first.T) @ second

    generator = torch.Generator().manual_seed(1)
    new = torch.randn(WIDTH * size + WIDTH, generator=generator)
    scale = torch.cat([torch.full((WIDTH * size,), size**-0.5), torch.full((WIDTH,), WIDTH**-0.5)])
    problem = Problem(logit, inputs, labels, new * scale)
    weights = _train(problem, torch.ones(1, len(new)), torch.tensor([3e-3]), [300], "adam")[1][0]
    return Problem(logit, *_digits(mirrored=True), weights)


def train_masked(
    problem: Problem,
    densities: Sequence[float],
    learning_rates: Sequence[float],
    steps: Sequence[int],
    *,
    method: str = "descent",
    batch: int | None = None,
    seed: int = 0,
) -> Runs:
    """Train masked entries at each density and learning rate.

    Args:
        problem: what is trained.
        densities: (D,); the masks of one seed lie within each other.
        learning_rates: (R,).
        steps: (T,) rising, the first 0: where the loss is measured; the last is the number of steps.
        method: "descent", plain gradient descent, or "adam".
        batch: examples of a step, drawn without replacement; all if None.
        seed: of the masks and the batches.

    Returns:
        Losses that are no longer finite are infinite.

    Raises:
        ValueError: another method, or steps that do not begin with 0 and rise.
    """
    steps = [int(step) for step in steps]
    if method not in ("descent", "adam") or steps[0] != 0 or sorted(set(steps)) != steps:
        raise ValueError(f"method must be descent or adam, and steps rise from 0, got {method!r} and {steps}.")
    rates, kept = torch.as_tensor(learning_rates, dtype=torch.float32), masks(problem, densities, seed)
    pairs = torch.cartesian_prod(torch.arange(len(rates)), torch.arange(len(kept)))
    losses, weights = _train(problem, kept[pairs[:, 1]], rates[pairs[:, 0]], steps, method, batch, seed)
    shape = len(rates), len(kept)
    losses = losses.nan_to_num(nan=torch.inf).view(*shape, -1)
    distances = (weights - problem.start).norm(dim=1).nan_to_num(nan=torch.inf).view(shape)
    return Runs(losses, distances)


def masks(problem: Problem, densities: Sequence[float], seed: int) -> torch.Tensor:
    """(D, P) masks of zeros and ones, those of smaller density within those of larger."""
    drawn = torch.rand(len(problem.start), generator=torch.Generator().manual_seed(seed))
    return (drawn < torch.as_tensor(densities, dtype=torch.float32)[:, None]).float()


def sharpness(problem: Problem, kept: torch.Tensor) -> float:
    """Largest eigenvalue of the loss's Hessian at the start in the trained entries, by 40 steps of power iteration.

    Args:
        problem: whose loss, over all examples.
        kept: (P,) mask.
    """
    gradient = grad(lambda w: problem.loss(w, problem.inputs, problem.labels))
    vector = kept * torch.randn(len(kept), generator=torch.Generator().manual_seed(0))
    for _ in range(40):
        vector = vector / vector.norm()
        product = kept * torch.func.jvp(gradient, (problem.start,), (vector,))[1]
        value, vector = float(vector @ product), product
    return value


def _train(problem, kept, rates, steps, method, batch=None, seed=0) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses (B, T) and last weights (B, P) of B runs with a mask (B, P) and a rate (B,) each."""
    generator = torch.Generator().manual_seed(1000 + seed)
    weights = problem.start.repeat(len(kept), 1)
    slopes = vmap(grad_and_value(problem.loss), in_dims=(0, None, None))
    whole = vmap(problem.loss, in_dims=(0, None, None))
    first, second, losses = torch.zeros_like(weights), torch.zeros_like(weights), []
    for step in range(steps[-1] + 1):
        if step in steps:
            losses.append(whole(weights, problem.inputs, problem.labels))
        if step == steps[-1]:
            break
        chosen = slice(None) if batch is None else torch.randperm(len(problem.labels), generator=generator)[:batch]
        gradient, _ = slopes(weights, problem.inputs[chosen], problem.labels[chosen])
        gradient = gradient * kept
        if method == "adam":
            first = BETAS[0] * first + (1 - BETAS[0]) * gradient
            second = BETAS[1] * second + (1 - BETAS[1]) * gradient.square()
            corrected = second / (1 - BETAS[1] ** (step + 1))
            gradient = first / (1 - BETAS[0] ** (step + 1)) / (corrected.sqrt() + EPSILON)
        weights = weights - rates[:, None] * gradient
    return torch.stack(losses, 1), weights
