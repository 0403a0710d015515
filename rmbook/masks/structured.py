"""Structured masks: columns, rows or blocks of a matrix instead of single entries (section 4.4 of the paper).

A column of an (out, in) weight belongs to one input feature, a row to one output. Masks of columns need no sampled
product: the gradient of k columns is a matrix product with k columns of the input.
"""

from collections.abc import Sequence

import numpy as np
import torch

from rmbook.checks import check_density, check_seed, check_shape
from rmbook.masks.sample import Mask, keyed_stream, positions_dtype

BLOCK = 4  # rows and columns of a block


def leading_columns(shape: tuple[int, int], density: float) -> Mask:
    """Take the first columns until int(out * in * density) entries are used: the rule of the authors' code.

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
    """Take whole columns in a random order until int(out * in * density) entries are used.

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
    raw = keyed_stream(f"rmbook columns 1\0{seed}\0{name}")
    # Sorting random keys, not Generator.permutation: NumPy guarantees the raw stream across versions, and that alone.
    return _mask_of_columns(shape, density, np.argsort(raw.random_raw(shape[1]), kind="stable"))


def random_rows(shape: tuple[int, int], density: float, seed: int, name: str) -> Mask:
    """Take whole rows in a random order until int(out * in * density) entries are used.

    These are `random_columns` of the transposed matrix.

    Args:
        shape: (out, in), both at least 1.
        density: share of the entries, in [0, 1].
        seed, name: the order depends on them and on the shape alone.
    """
    out, width = check_shape(shape)
    columns = random_columns((width, out), density, seed, name).positions.long()
    return sorted_mask((out, width), columns % out * width + columns // out)


def random_blocks(shape: tuple[int, int], density: float, seed: int, name: str) -> Mask:
    """Take whole squares of BLOCK rows and columns in a random order until int(out * in * density) entries are used.

    Squares at the lower and right edges are cut; of the last one the first entries are used.

    Args:
        shape: (out, in), both at least 1.
        density: share of the entries, in [0, 1].
        seed, name: the order depends on them and on the shape alone.
    """
    (out, width), count = check_shape(shape), entry_count(shape, density)
    across = -(-width // BLOCK)
    rows, columns = np.divmod(np.arange(out * width), width)
    block = rows // BLOCK * across + columns // BLOCK
    raw = keyed_stream(f"rmbook blocks 1\0{check_seed(seed)}\0{name}")
    place = raw.random_raw(int(block.max()) + 1).argsort().argsort()
    order = np.argsort(place[block], kind="stable")  # entries block by block, blocks in random order
    return sorted_mask((out, width), torch.from_numpy(order[:count]))


def confined_mask(shape: tuple[int, int], density: float, inputs: int, seed: int, name: str) -> Mask:
    """Draw int(out * in * density) entries from `inputs` columns, which are drawn at random before.

    It lies between a mask of whole columns, where the entries just fill the columns, and random entries everywhere.

    Args:
        shape: (out, in), both at least 1.
        density: share of all entries of the matrix, in [0, 1].
        inputs: columns to draw from; those of a smaller number are among those of a larger.
        seed, name: the draw depends on them and on the other arguments alone.

    Raises:
        ValueError: the columns do not hold so many entries, or there are not so many columns.
    """
    (out, width), seed = check_shape(shape), check_seed(seed)
    count = entry_count((out, width), density)
    if not 0 < inputs <= width or count > out * inputs:
        raise ValueError(
            f"{inputs} of {width} columns, each of {out} entries, cannot hold {count}; give between "
            f"{max(1, -(-count // out))} and {width} columns."
        )
    raw = keyed_stream(f"rmbook confined 1\0{seed}\0{name}")
    columns = np.sort(np.argsort(raw.random_raw(width), kind="stable")[:inputs])
    places = np.sort(np.argsort(raw.random_raw(out * inputs), kind="stable")[:count])
    positions = torch.from_numpy(places // inputs * width + columns[places % inputs])
    return Mask((out, width), positions.to(positions_dtype(out * width)))


def entry_count(shape: Sequence[int], density: float) -> int:
    """Return the number of entries that a structured mask has, int(out * in * density); raise for a bad density."""
    return int(shape[0] * shape[1] * check_density(density))


def sorted_mask(shape: tuple[int, int], positions: torch.Tensor) -> Mask:
    """Return the mask at these flat positions, which need not be sorted."""
    return Mask(shape, positions.sort().values.to(positions_dtype(shape[0] * shape[1])))


def _mask_of_columns(shape: tuple[int, int], density: float, order: np.ndarray) -> Mask:
    out, width = shape
    whole, rest = divmod(entry_count(shape, density), out)
    parts = []
    for rows, count in ((range(rest), whole + 1), (range(rest, out), whole)):  # the last column serves `rest` rows
        columns = torch.from_numpy(np.sort(order[:count]).astype(np.int64))
        parts.append((torch.tensor(rows, dtype=torch.int64)[:, None] * width + columns).reshape(-1))
    return Mask(shape, torch.cat(parts).to(positions_dtype(out * width)))
