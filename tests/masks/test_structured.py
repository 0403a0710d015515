"""Structured masks: the rule of the authors, counted by hand, and laws of random columns, rows and blocks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rmbook.masks.recipe import STRUCTURES
from rmbook.masks.sample import Mask
from rmbook.masks.structured import BLOCK, leading_columns, random_blocks, random_columns, random_rows

SHAPES = st.tuples(st.integers(1, 30), st.integers(1, 30))
DENSITIES = st.floats(0, 1)


def by_the_authors_rule(shape, density):
    """`dim_mode='head'` of the authors' code, in words: fill column after column until the entries are used up."""
    matrix, left = torch.zeros(shape, dtype=torch.bool), int(shape[0] * shape[1] * density)
    for column in range(shape[1]):
        used = min(left, shape[0])
        matrix[:used, column] = True
        left -= used
    return matrix


@given(SHAPES, DENSITIES)
@settings(deadline=None)
def test_leading_columns_follow_the_authors_rule(shape, density):
    mask = leading_columns(shape, density)
    assert torch.equal(mask.dense(), by_the_authors_rule(shape, density))
    assert Mask.checked(mask.shape, mask.positions).digest() == mask.digest()  # sorted, unique, in range


@given(SHAPES, DENSITIES, st.integers(), st.text(max_size=5))
@settings(deadline=None)
def test_random_columns_are_leading_columns_in_another_order(shape, density, seed, name):
    mask = random_columns(shape, density, seed, name).dense()
    leading = by_the_authors_rule(shape, density)
    assert sorted(mask.sum(0).tolist()) == sorted(leading.sum(0).tolist())
    assert torch.equal(mask.sum(1).sort().values, leading.sum(1).sort().values)
    # Every column is used from the top.
    assert (mask.int().diff(dim=0) <= 0).all()


@given(SHAPES, st.integers(0, 100), DENSITIES, DENSITIES)
@settings(deadline=None)
def test_a_larger_density_adds_to_a_smaller_one(shape, seed, one, two):
    small, large = (random_columns(shape, p, seed, "w").dense() for p in sorted((one, two)))
    assert not (small & ~large).any()


def test_random_columns_are_uniform_and_differ_between_names_and_seeds():
    counts = sum(random_columns((2, 10), 0.3, seed, "w").dense()[0].int() for seed in range(2000))
    expected, deviation = 2000 * 0.3, (2000 * 0.3 * 0.7) ** 0.5
    assert (abs(counts - expected) < 5 * deviation).all()
    masks = {random_columns((4, 50), 0.2, seed, name).digest() for seed in (0, 1) for name in ("a", "b")}
    assert len(masks) == 4


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("shape, density, seed", [((3,), 0.1, 0), ((0, 3), 0.1, 0), ((3, 3), 1.1, 0), ((3, 3), "1", 0)])
def test_bad_input_is_refused(structure, shape, density, seed):
    with pytest.raises(ValueError, match="shape|density"):
        STRUCTURES[structure](shape, density, seed, "w")


@pytest.mark.parametrize(
    "positions",
    [[0.0, 1.0], [[0], [1]], [-1, 2], [0, 12], [3, 2], [2, 2]],
)
def test_positions_from_outside_are_checked(positions):
    with pytest.raises(ValueError, match="positions must"):
        Mask.checked((3, 4), torch.tensor(positions))


@given(SHAPES, DENSITIES, st.integers(0, 5))
def test_rows_are_columns_of_the_transposed_matrix(shape, density, seed):
    rows = random_rows(shape, density, seed, "a")
    columns = random_columns((shape[1], shape[0]), density, seed, "a")
    assert torch.equal(rows.dense(), columns.dense().T)


@given(SHAPES, DENSITIES, st.integers(0, 5))
def test_blocks_are_whole_but_for_one_and_grow_with_the_density(shape, density, seed):
    mask = random_blocks(shape, density, seed, "a").dense()
    assert mask.sum() == int(shape[0] * shape[1] * density)
    tiles = [tile for band in mask.split(BLOCK, 0) for tile in band.split(BLOCK, 1)]
    assert sum(bool(tile.any() and not tile.all()) for tile in tiles) <= 1
    more = random_blocks(shape, min(1.0, 1.5 * density), seed, "a").dense()
    assert not (mask & ~more).any()
