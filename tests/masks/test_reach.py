"""Laws of `rmbook.masks.reach`: counts by brute force, generic rank by linear algebra; laws of confined masks."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rmbook.masks.reach import Reach, reach
from rmbook.masks.sample import Mask, sample_mask
from rmbook.masks.structured import confined_mask, random_columns, random_rows

SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 12))


@given(shape=SHAPES, density=st.floats(0, 1), seed=st.integers(0, 2**40))
def test_reach_counts_what_a_matrix_of_random_values_has(shape, density, seed):
    mask = sample_mask(shape, density, seed, "layer")
    found, dense = reach(mask), mask.dense().numpy()
    values = np.random.default_rng(seed).standard_normal(shape) * dense
    assert found.entries == dense.sum()
    assert (found.inputs, found.outputs) == (dense.any(axis=0).sum(), dense.any(axis=1).sum())
    assert found.rank == np.linalg.matrix_rank(values, tol=1e-9)  # almost all values reach the largest rank


def test_reach_of_known_patterns():
    assert reach(random_columns((30, 20), 0.1, 0, "a")) == Reach(60, 2, 30, 2)
    assert reach(random_rows((30, 20), 0.1, 0, "a")) == Reach(60, 20, 3, 3)
    diagonal = Mask.checked((5, 5), torch.arange(0, 25, 6))
    assert reach(diagonal) == Reach(5, 5, 5, 5)
    assert reach(Mask.checked((3, 3), torch.tensor([], dtype=torch.int64))) == Reach(0, 0, 0, 0)


@given(shape=SHAPES, density=st.floats(0, 1), seed=st.integers(0, 2**40), data=st.data())
def test_confined_masks_hold_their_count_in_their_columns(shape, density, seed, data):
    out, width = shape
    count = int(out * width * density)
    inputs = data.draw(st.integers(max(1, -(-count // out)), width))
    mask = confined_mask(shape, density, inputs, seed, "layer")
    Mask.checked(mask.shape, mask.positions)
    assert mask.nnz == count and reach(mask).inputs <= inputs
    assert confined_mask(shape, density, inputs, seed, "layer").digest() == mask.digest()


def test_confined_masks_fill_columns_that_just_fit_and_nest():
    full = confined_mask((10, 8), 0.25, 2, 3, "layer")
    assert reach(full) == Reach(20, 2, 10, 2)
    wider = confined_mask((10, 8), 0.75, 6, 3, "layer")
    assert set(full.columns.tolist()) <= set(wider.columns.tolist())
    others = {confined_mask((10, 8), 0.25, 2, *key).digest() for key in ((4, "layer"), (3, "other"))}
    assert full.digest() not in others and len(others) == 2


def test_confined_entries_are_uniform_over_the_matrix():
    total = sum(confined_mask((6, 5), 0.2, 3, seed, "layer").dense(torch.float64) for seed in range(3000))
    assert (total / 3000 - 0.2).abs().max() < 5 * (0.2 * 0.8 / 3000) ** 0.5


@pytest.mark.parametrize("inputs", [0, 1, 9])
def test_columns_that_cannot_hold_the_entries_are_refused(inputs):
    with pytest.raises(ValueError, match="between 2 and 8 columns"):
        confined_mask((10, 8), 0.15, inputs, 0, "layer")
