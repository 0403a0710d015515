"""Masks: the law of the draws, their independence and determinism, and the meaning of ratio and density."""

import csv
import tracemalloc

import numpy as np
import pytest
import torch
from conftest import LargestTensor
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rmbook import Mask, density_to_ratio, ratio_to_density, sample_mask
from rmbook.masks.sample import _bernoulli_positions

shapes = st.tuples(st.integers(1, 60), st.integers(1, 60))


@given(shapes, st.floats(0, 1), st.integers(0, 2**40), st.text(max_size=8))
@settings(max_examples=200, deadline=None)
def test_positions_are_sorted_unique_and_inside(shape, density, seed, name):
    mask = sample_mask(shape, density, seed, name)
    assert mask.positions.dtype == torch.int32
    assert (mask.positions.diff() > 0).all()
    assert mask.nnz == 0 or (mask.positions[0] >= 0 and mask.positions[-1] < shape[0] * shape[1])


@given(shapes, st.floats(0, 1), st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_dense_csr_and_coordinates_describe_the_same_matrix(shape, density, seed):
    mask = sample_mask(shape, density, seed, "w")
    dense = mask.dense()
    rows, columns = dense.nonzero(as_tuple=True)
    assert torch.equal(rows, mask.rows.long()) and torch.equal(columns, mask.columns.long())
    assert torch.equal(mask.row_starts.diff().long(), dense.sum(1))
    assert mask.row_starts[0] == 0 and mask.row_starts[-1] == mask.nnz


@pytest.mark.parametrize("density", [1e-6, 1e-4, 0.01, 0.3, 0.9, 0.999])
def test_number_of_entries_is_binomial(density):
    """The total over many masks lies within 4 standard deviations: at 1e-6 a float32 comparison would be off by 9."""
    numel = int(min(2**31, 2e6 / density))  # about two million entries in all, or 2**31 trials
    trials = max(1, int(5e6 / (numel * density)))
    total = sum(_bernoulli_positions(numel, density, np.random.Philox(key=k)).numel() for k in range(trials))
    deviation = (total - trials * numel * density) / (trials * numel * density * (1 - density)) ** 0.5
    assert abs(deviation) < 4


def test_gaps_are_geometric_and_entries_independent():
    density = 0.05
    positions = _bernoulli_positions(10_000_000, density, np.random.Philox(key=3)).long()
    gaps = positions.diff().numpy()
    observed = np.bincount(np.minimum(gaps, 100), minlength=101)[1:]
    law = stats.geom(density)
    expected = np.append(law.pmf(np.arange(1, 100)), law.sf(99)) * len(gaps)
    assert stats.chisquare(observed, expected).pvalue > 1e-4
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 4 / len(gaps) ** 0.5


def test_every_entry_has_the_same_probability():
    counts = sum(sample_mask((8, 5), 0.3, seed, "w").dense(torch.int64) for seed in range(3000))
    assert stats.chisquare(counts.flatten().numpy()).pvalue > 1e-4


def test_density_zero_and_one():
    assert sample_mask((7, 9), 0.0, 0, "w").nnz == 0
    assert torch.equal(sample_mask((7, 9), 1, 0, "w").positions, torch.arange(63, dtype=torch.int32))
    assert sample_mask((7, 9), 1e-300, 0, "w").nnz == 0


def test_draws_depend_on_seed_and_name_only():
    state = torch.random.get_rng_state()
    first = sample_mask((300, 200), 0.1, 5, "a.weight")
    np.random.seed(1), torch.manual_seed(99), torch.rand(10)
    threads = torch.get_num_threads()
    torch.set_num_threads(2 if threads == 1 else 1)
    again = sample_mask((300, 200), 0.1, 5, "a.weight")
    torch.set_num_threads(threads)
    torch.random.set_rng_state(state)
    assert first.digest() == again.digest()
    overlaps = []
    for other in (sample_mask((300, 200), 0.1, 5, "b.weight"), sample_mask((300, 200), 0.1, 6, "a.weight")):
        overlaps.append(int((first.dense() & other.dense()).sum()))
    # Independent masks share a Binomial(60,000, 0.01) number of entries: 600 with standard deviation 24.
    assert all(abs(overlap - 600) < 5 * 24 for overlap in overlaps)


def test_global_random_state_is_untouched():
    before_torch, before_numpy = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    sample_mask((50, 50), 0.2, 0, "w")
    assert torch.equal(before_torch, torch.random.get_rng_state())
    assert (before_numpy == np.random.get_state()[1]).all()


def test_known_positions_on_every_machine():
    """An adapter stores no positions, so this draw must never change; the key holds a version for the day it has to."""
    assert sample_mask((1000, 1000), 1e-5, 0, "layer.weight").positions.tolist() == KNOWN


KNOWN = [110974, 119023, 142972, 236485, 617219, 692892, 775790, 817769]


def test_more_than_2_31_entries_use_int64_and_little_memory():
    tracemalloc.start()
    with LargestTensor() as seen:
        mask = sample_mask((70_000, 70_000), 1e-7, 0, "w")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert mask.positions.dtype == torch.int64
    assert abs(mask.nnz - 490) < 5 * 490**0.5
    assert mask.positions[-1] > 2**31 and (mask.positions.diff() > 0).all()
    assert peak < 1_000_000 and seen.largest < 2 * mask.nnz
    assert sample_mask((2**16, 2**15), 1e-7, 0, "w").positions.dtype == torch.int32


def test_digest_tells_masks_apart():
    mask = sample_mask((6, 4), 0.5, 0, "w")
    assert Mask((4, 6), mask.positions).digest() != mask.digest()
    assert Mask((6, 4), mask.positions.long()).digest() == mask.digest()


@pytest.mark.parametrize("density", [-0.1, 1.1, float("nan"), float("inf"), "0.1", None, True])
def test_bad_density_is_named(density):
    with pytest.raises(ValueError, match="density"):
        sample_mask((4, 4), density, 0, "w")


@pytest.mark.parametrize("shape", [(4,), (0, 4), (2, 3, 4)])
def test_bad_shape_is_named(shape):
    with pytest.raises(ValueError, match="shape"):
        sample_mask(shape, 0.5, 0, "w")


@pytest.mark.parametrize("seed", [0.5, None, "1", True])
def test_bad_seed_is_named(seed):
    with pytest.raises(ValueError, match="seed"):
        sample_mask((4, 4), 0.5, seed, "w")


@given(st.integers(1, 10**9), st.integers(1, 10**9), st.floats(0, 1))
def test_ratio_and_density_are_inverse(target, rest, density):
    ratio = density_to_ratio(density, target + rest, target)
    assert ratio_to_density(min(ratio, target / (target + rest)), target + rest, target) == pytest.approx(density)


@pytest.mark.parametrize(
    "total, layers, width, per_ratio, largest",
    [
        (125_239_296, 12, 768, 8.847, 0.113),
        (1_315_758_080, 24, 2048, 6.535, 0.153),
        (12_853_473_280, 40, 5120, 6.129, 0.163),
    ],
)
def test_conversion_for_the_papers_models(total, layers, width, per_ratio, largest):
    """Density per unit of ratio for q and v of OPT-125m, 1.3b and 13b, computed by hand in the notes."""
    target = 2 * layers * width**2
    assert ratio_to_density(0.1, total, target) == pytest.approx(0.1 * per_ratio, abs=1e-4)
    with pytest.raises(ValueError, match=f"largest possible ratio here is {largest}"):
        ratio_to_density(0.2, total, target)


def test_every_random_masking_ratio_of_the_papers_table_is_possible(shared):
    models = {
        "OPT-125m": (125_239_296, 12, 768),
        "OPT-1.3b": (1_315_758_080, 24, 2048),
        "OPT-13b": (12_853_473_280, 40, 5120),
    }
    tried = 0
    with open(shared / "paper/tables/table5.csv") as file:
        for row in csv.DictReader(file):
            model = next((m for m in models if m.lower() == row["model"].lower()), None)
            if model and "random" in row["method"].lower():
                total, layers, width = models[model]
                ratio = float(row["ratio"].rstrip("%")) / (100 if "%" in row["ratio"] else 1)
                assert 0 < ratio_to_density(ratio, total, 2 * layers * width**2) < 1
                tried += 1
    assert tried > 0
