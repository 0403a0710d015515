"""Structured masks: whole columns of a matrix instead of single entries (section 4.3 of the paper).

A column of an (out, in) weight belongs to one input feature. Masks of columns need no sampled product: the gradient of
k columns is a matrix product with k columns of the input.
"""

import hashlib

import numpy as np
import torch

from rmbook.checks import check_density, check_seed, check_shape
from rmbook.masks.sample import Mask, positions_dtype


def leading_columns(shape: tuple[int, int], density: float) -> Mask:
    """The rule of the authors' code: the first columns, until int(out * in * density) entries are used.

    The last column is used from the top as far as entries are left.

    Args:
        shape: (out, in), both at least 1.
        density: share of the entries, in [0, 1].

    Raises:
        ValueError: for a density outside [0, 1] or a shape that is no matrix.
    """
    shape, density = check_shape(shape), check_density(density)
    return _mask_of_columns(shape, density, np.arange(shape[1]))


def random_columns(shape: tuple[int, int], density: float, seed: int, name: str) -> Mask:
    """As `leading_columns`, but over the columns in a random order.

    The order depends on (seed, name, shape) alone, so a larger density adds columns to those of a smaller one.

    Args:
        shape: (out, in), both at least 1.
        density: share of the entries, in [0, 1].
        seed: any integer.
        name: the parameter's name in its model; different names give independent masks.

    Raises:
        ValueError: for a density outside [0, 1], a seed that is no integer or a shape that is no matrix.
    """
    shape, density, seed = check_shape(shape), check_density(density), check_seed(seed)
    key = hashlib.sha256(f"rmbook columns 1\0{seed}\0{name}".encode()).digest()[:16]
    raw = np.random.Philox(key=int.from_bytes(key, "little"))
    # Sorting random keys, not Generator.permutation: NumPy guarantees the raw stream across versions, and that alone.
    return _mask_of_columns(shape, density, np.argsort(raw.random_raw(shape[1]), kind="stable"))


def _mask_of_columns(shape: tuple[int, int], density: float, order: np.ndarray) -> Mask:
    out, width = shape
    whole, rest = divmod(int(out * width * density), out)
    parts = []
    for rows, count in ((range(rest), whole + 1), (range(rest, out), whole)):  # the last column serves `rest` rows
        columns = torch.from_numpy(np.sort(order[:count]).astype(np.int64))
        parts.append((torch.tensor(rows, dtype=torch.int64)[:, None] * width + columns).reshape(-1))
    return Mask(shape, torch.cat(parts).to(positions_dtype(out * width)))
