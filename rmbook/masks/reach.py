"""Reach of a mask in its matrix: inputs that it reads, outputs that it changes, rank that its change can have.

Masks of equal count differ in this: one of whole columns reads a handful of inputs, random entries to nearly all.
"""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import structural_rank

from rmbook.masks.sample import Mask


@dataclass(frozen=True)
class Reach:
    """Counts of what the entries of a mask touch.

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
