"""How far a mask reaches into its matrix: inputs it listens to, outputs it changes, rank that its change can have.

Masks of equal count differ in this: one of whole columns listens to a handful of inputs, random entries to nearly all.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import structural_rank

from rmbook.checks import check_density, check_seed, check_shape
from rmbook.masks.sample import Mask, positions_dtype


@dataclass(frozen=True)
class Reach:
    """What `reach` counts.

    Attributes:
        entries: trained ones.
        inputs: columns with a trained entry.
        outputs: rows with a trained entry.
        rank: largest rank that a matrix with these entries can have; almost all values reach it.
    """

    entries: int
    inputs: int
    outputs: int
    rank: int


def reach(mask: Mask) -> Reach:
    """Count what the entries of a mask touch.

    The rank is the size of the largest matching of rows and columns through the entries (`scipy`'s structural rank).
    """
    rows, columns = mask.rows.cpu().numpy(), mask.columns.cpu().numpy()
    pattern = csr_array((np.ones(mask.nnz), (rows, columns)), shape=mask.shape)
    rank = int(structural_rank(pattern)) if mask.nnz else 0
    return Reach(mask.nnz, len(np.unique(columns)), len(np.unique(rows)), rank)


def confined_mask(shape: tuple[int, int], density: float, inputs: int, seed: int, name: str) -> Mask:
    """int(out * in * density) entries, drawn at random from `inputs` columns, which are drawn at random before.

    Between a mask of whole columns, where the entries just fill the columns, and random entries everywhere.

    Args:
        shape: (out, in), both at least 1.
        density: share of all entries of the matrix, in [0, 1].
        inputs: columns to draw from; those of a smaller number are among those of a larger.
        seed, name: the draw depends on them and on the other arguments alone.

    Raises:
        ValueError: the columns do not hold so many entries, or there are not so many columns.
    """
    (out, width), seed = check_shape(shape), check_seed(seed)
    count = int(out * width * check_density(density))
    if not 0 < inputs <= width or count > out * inputs:
        raise ValueError(
            f"{inputs} of {width} columns, each of {out} entries, cannot hold {count}; give between "
            f"{max(1, -(-count // out))} and {width} columns."
        )
    key = hashlib.sha256(f"rmbook confined 1\0{seed}\0{name}".encode()).digest()[:16]
    raw = np.random.Philox(key=int.from_bytes(key, "little"))
    columns = np.sort(np.argsort(raw.random_raw(width), kind="stable")[:inputs])
    places = np.sort(np.argsort(raw.random_raw(out * inputs), kind="stable")[:count])
    positions = torch.from_numpy(places // inputs * width + columns[places % inputs])
    return Mask((out, width), positions.to(positions_dtype(out * width)))
