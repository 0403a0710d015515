"""A classifier that is small enough to train inside a web page: 8 x 8 digits, three hidden layers of 64.

It is pretrained on upright digits, and its task is mirrored ones: fine-tuning changes entries of the three hidden
matrices; biases and head stay. `fine_tune` is the reference for `rmbook/widgets/digits_mlp.js`, which computes the same
from the same random numbers. All is float64; the packaged weights are 8-bit integers, one scale for each tensor.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from threadpoolctl import threadpool_limits

from rmbook.checks import check_density, check_seed, check_size
from rmbook.offline.digits import Digits
from rmbook.stamps import stamp
from rmbook.tensor_files import write_safetensors

SIZES = (64, 64, 64, 64, 10)
WEIGHTS = Path(__file__).with_name("digits_mlp.safetensors")
TRAIN, TEST = 300, 150  # mirrored digits that the page holds, from the splits of these names
STEPS, BATCH, EVERY = 200, 32, 5  # of fine-tuning; the accuracy is measured at every fifth step
BETAS, EPSILON = (0.9, 0.999), 1e-8  # of Adam

Parameters = list[np.ndarray]  # weight (out, in) and bias (out,) of each layer in turn


@dataclass(frozen=True)
class FineTuned:
    """What one run of `fine_tune` has measured.

    Attributes:
        losses: (steps,) mean cross-entropy of each step's batch, before the step, in nats.
        accuracies: (1 + steps // EVERY,) share of the test digits that are read correctly, from the start on.
        trained: number of entries that were trained.
    """

    losses: np.ndarray
    accuracies: np.ndarray
    trained: int


def uniform(stream: int, count: int) -> np.ndarray:
    """Return `count` numbers in [0, 1) of the generator mulberry32 with this seed: multiples of 2^-32, float64."""
    state = (np.uint64(stream) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x6D2B79F5)).astype(np.uint32)
    mixed = (state ^ (state >> 15)) * (state | np.uint32(1))
    mixed ^= mixed + (mixed ^ (mixed >> 7)) * (mixed | np.uint32(61))
    return (mixed ^ (mixed >> 14)) / 2.0**32


def draw_masks(density: float, seed: int) -> list[np.ndarray]:
    """Return the masks of the hidden layers, (64, 64) bool each; with one seed, denser masks hold sparser ones."""
    shape = SIZES[0], SIZES[0]
    return [uniform(1000 * seed + layer, SIZES[0] ** 2).reshape(shape) < density for layer in range(3)]


def mirrored_digits() -> tuple[np.ndarray, np.ndarray]:
    """Return (450, 64) grey levels, 0 to 15 (the data's 16 is cut to 15), and labels, both uint8; TRAIN first."""
    splits = [(Digits("train", "mirrored"), TRAIN), (Digits("test", "mirrored"), TEST)]
    levels = np.concatenate([_levels(digits)[:count] for digits, count in splits])
    return levels, np.concatenate([digits.labels.numpy()[:count] for digits, count in splits]).astype(np.uint8)


def quantized_weights() -> tuple[list[np.ndarray], list[float]]:
    """Return the packaged int8 tensors, in the order of `Parameters`, and the scale of each."""
    stored = safetensors.torch.load_file(WEIGHTS)
    return [stored[name].numpy() for name in _names()], stored["scales"].double().tolist()


def load_mlp() -> Parameters:
    """Return the pretrained parameters."""
    return [scale * integers for integers, scale in zip(*quantized_weights(), strict=True)]


def logits(parameters: Parameters, images: np.ndarray) -> list[np.ndarray]:
    """Return each layer's input, (examples, in), and the output, (examples, 10); images are (examples, 64), 0 to 1."""
    layers = [images]
    for weight, bias in zip(parameters[::2], parameters[1::2], strict=True):
        layers.append(layers[-1] @ weight.T + bias)
        if len(layers) < len(SIZES):
            np.maximum(layers[-1], 0, out=layers[-1])
    return layers


def adam_steps(
    parameters: Parameters,
    batches: Iterator[tuple[np.ndarray, np.ndarray]],
    learning_rate: float,
    trained: Sequence[np.ndarray | bool],
    weight_decay: float = 0.0,
) -> Iterator[float]:
    """Train in place by Adam, and yield each batch's mean cross-entropy, as it was before the step.

    Args:
        parameters: changed in place.
        batches: images (examples, 64) in [0, 1] and labels (examples,), one pair a step.
        learning_rate: constant.
        trained: for each array of parameters, which entries are trained: a mask, or True or False for all.
        weight_decay: of AdamW; 0 for none.
    """
    first, second = ([np.zeros_like(array) for array in parameters] for _ in range(2))
    for step, (images, labels) in enumerate(batches, 1):
        layers = logits(parameters, images)
        shifted = layers[-1] - layers[-1].max(1, keepdims=True)
        log_probabilities = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        rows = np.arange(len(labels))
        yield -float(log_probabilities[rows, labels].mean())
        flowing = np.exp(log_probabilities)  # the gradient of the loss on its way back, (examples, out)
        flowing[rows, labels] -= 1
        flowing /= len(labels)
        gradients: Parameters = []
        for layer in reversed(range(len(SIZES) - 1)):
            gradients = [flowing.T @ layers[layer], flowing.sum(0), *gradients]
            flowing = (flowing @ parameters[2 * layer]) * (layers[layer] > 0)
        for k, gradient in enumerate(gradients):
            if trained[k] is False:
                continue
            first[k] = BETAS[0] * first[k] + (1 - BETAS[0]) * gradient
            second[k] = BETAS[1] * second[k] + (1 - BETAS[1]) * gradient**2
            size = np.sqrt(second[k] / (1 - BETAS[1] ** step)) + EPSILON
            change = first[k] / (1 - BETAS[0] ** step) / size + weight_decay * parameters[k]
            parameters[k] -= learning_rate * np.where(trained[k], change, 0)


def fine_tune(density: float, learning_rate: float, seed: int = 0, steps: int = STEPS) -> FineTuned:
    """Fine-tune the pretrained classifier on mirrored digits: the entries of a random mask in the hidden layers.

    Args:
        density: probability of an entry to be trained; 1 trains all 12,288.
        learning_rate: of Adam.
        seed: of the mask and of the batches.
        steps: of BATCH digits each, drawn with replacement.

    Raises:
        ValueError: for a density outside [0, 1], a number of steps below 1, or a negative seed.
    """
    check_density(density)
    check_size(steps, "steps")
    if check_seed(seed) < 0:
        raise ValueError(f"seed must not be negative, got {seed}.")
    parameters, masks = load_mlp(), draw_masks(density, seed)
    levels, labels = mirrored_digits()
    images = levels / 15
    chosen = np.floor(TRAIN * uniform(1000 * seed + 500, steps * BATCH)).astype(int).reshape(steps, BATCH)
    trained = [part for mask in masks for part in (mask, False)] + [False, False]
    batches = ((images[batch], labels[batch]) for batch in chosen)
    losses, accuracies = [], []

    def measure():
        accuracies.append(float((logits(parameters, images[TRAIN:])[-1].argmax(1) == labels[TRAIN:]).mean()))

    with threadpool_limits(1):  # matrices of 64 rows: more threads only wait for each other
        measure()
        for step, loss in enumerate(adam_steps(parameters, batches, learning_rate, trained)):
            if step and step % EVERY == 0:
                measure()  # here, the steps before this one have been made, and this one has not
            losses.append(loss)
        if steps % EVERY == 0:
            measure()
    return FineTuned(np.array(losses), np.array(accuracies), sum(int(mask.sum()) for mask in masks))


def record_weights(command: str, path: Path = WEIGHTS) -> Path:
    """Pretrain on upright digits with noise, 1,000 steps, and write the weights as 8-bit integers; two seconds.

    Args:
        command: that is being carried out, for the stamp in the file's metadata.
        path: the file.

    Returns:
        The file.
    """
    made = stamp(command)
    generator = np.random.default_rng(0)
    parameters: Parameters = []
    for width, height in zip(SIZES[:-1], SIZES[1:], strict=True):
        parameters += [generator.standard_normal((height, width)) * np.sqrt(2 / width), np.zeros(height)]
    digits = Digits("pretrain", "upright")
    images, labels = _levels(digits) / 15, digits.labels.numpy()

    def batches():
        for _ in range(1000):
            batch = generator.integers(0, len(labels), BATCH)
            yield images[batch] + 0.2 * generator.standard_normal((BATCH, SIZES[0])), labels[batch]

    with threadpool_limits(1):
        for _ in adam_steps(parameters, batches(), 1e-3, [True] * len(parameters), weight_decay=0.05):
            pass
    scales = torch.tensor([np.abs(array).max() / 127 for array in parameters], dtype=torch.float32)
    tensors = {
        name: torch.tensor(np.round(array / scale), dtype=torch.int8)
        for name, array, scale in zip(_names(), parameters, scales.double().tolist(), strict=True)
    }
    write_safetensors(path, tensors | {"scales": scales}, {"stamp": json.dumps(made)})
    return path


def _levels(digits: Digits) -> np.ndarray:
    return np.minimum(np.round(digits.images.numpy() * 16), 15).astype(np.uint8).reshape(len(digits), -1)


def _names() -> list[str]:
    return [f"{layer}.{kind}" for layer in range(len(SIZES) - 1) for kind in ("weight", "bias")]
