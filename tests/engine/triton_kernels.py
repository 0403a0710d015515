"""The Triton kernels against dense references: run by test_triton_product.py, which says where and why separately."""

import copy
import itertools
import os

import pytest
import torch
from conftest import TwoLayers
from hypothesis import given, settings
from hypothesis import strategies as st

from rmbook import Mask, apply_random_mask, sample_mask
from rmbook.engine import merge as refresh
from rmbook.engine import product_triton
from rmbook.engine.merge_triton import MergeLayers, merge
from rmbook.engine.product_torch import sampled_product_reference
from rmbook.engine.product_triton import cheapest_product, dense_product, sampled_product
from rmbook.engine.tap import merge as torch_merge

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
WAYS = ["direct", "transposed"]


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """Small problems then reach all tile sizes, and slices."""
    monkeypatch.setattr(product_triton, "PROGRAMS", 8)
    tiles = {least // 128: tile for least, tile in product_triton.TILES.items()}
    monkeypatch.setattr(product_triton, "TILES", tiles)


def operands(tokens, shape, dtypes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(tokens, n, generator=generator).to(DEVICE, t) for n, t in zip(shape, dtypes, strict=True)]


def relative_error(got, left, right, mask):
    exact = sampled_product_reference(left.double(), right.double(), mask.rows, mask.columns)
    assert got.shape == exact.shape
    return float((got - exact).norm() / exact.norm().clamp_min(1e-30))


# ------------------------------------------------------------------------------------------------ sampled product


# Every pair of a dtype, a way and a density; on a GPU, where that takes no time, every triple too.
CASES = list(itertools.product(range(4), range(3), range(3)))
CASES = [case for case in CASES if not INTERPRETED or sum(case) % 3 == 0]


@pytest.mark.parametrize(
    "dtype, way, density", [(DTYPES[i], [*WAYS, None][j], [0.006, 0.08, 0.3][k]) for i, j, k in CASES]
)
def test_entries_equal_the_reference_in_double_precision(dtype, way, density):
    shape = (20, 30)
    mask = sample_mask(shape, density, 1, "w").to(DEVICE)  # 3, 48 and 180 entries or so: each tile size
    for tokens in (1, 1100):
        left, right = operands(tokens, shape, (dtype, dtype))
        got = sampled_product(left, right, mask.row_starts, mask.columns, way)
        assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        error = relative_error(got, left, right, mask)
        assert error < (1e-14 if dtype == torch.float64 else 1e-6)


@given(st.integers(0, 600), st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.sampled_from(WAYS))
@settings(max_examples=25, deadline=None)
def test_any_shape(tokens, out, width, density, way):
    mask = sample_mask((out, width), density, 0, "w").to(DEVICE)
    left, right = operands(tokens, (out, width), (torch.float64, torch.float64))
    got = sampled_product(left, right, mask.row_starts, mask.columns, way)
    assert relative_error(got, left, right, mask) < 1e-13


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("positions", [range(35, 42), [0], [69], [0, 69], [6, 7, 20, 21, 22, 23, 24, 25, 26, 27, 69]])
def test_empty_rows_and_unequal_rows(way, positions):
    mask = Mask((10, 7), torch.tensor(list(positions), dtype=torch.int32, device=DEVICE))
    left, right = operands(20, mask.shape, (torch.float32, torch.float32))
    assert relative_error(sampled_product(left, right, mask.row_starts, mask.columns, way), left, right, mask) < 1e-6


@pytest.mark.parametrize("way", WAYS)
def test_two_runs_give_identical_bytes(way):
    mask = sample_mask((30, 40), 0.3, 0, "w").to(DEVICE)
    left, right = operands(700, mask.shape, (torch.bfloat16, torch.bfloat16))
    once, again = (sampled_product(left, right, mask.row_starts, mask.columns, way) for _ in range(2))
    assert torch.equal(once.view(torch.int32), again.view(torch.int32))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float32, torch.float16)])
def test_operands_of_two_dtypes_and_not_contiguous(way, dtypes):
    mask = sample_mask((9, 11), 0.4, 0, "w").to(DEVICE)
    left, right = operands(33, (18, 11), dtypes)
    left, right = left[:, ::2], right.t().contiguous().t()
    assert relative_error(sampled_product(left, right, mask.row_starts, mask.columns, way), left, right, mask) < 1e-6


def test_long_batches_are_copied_in_pieces(monkeypatch):
    mask = sample_mask((5, 6), 0.5, 0, "w").to(DEVICE)
    left, right = operands(2500, mask.shape, (torch.float32, torch.float32))
    monkeypatch.setattr(product_triton, "COPIED", 1)  # then a piece is 1024 tokens
    got = sampled_product(left, right, mask.row_starts, mask.columns, "transposed")
    assert relative_error(got, left, right, mask) < 1e-6


@pytest.mark.parametrize("tokens, density", [(0, 0.5), (7, 0.0)])
def test_nothing_to_add_up(tokens, density):
    mask = sample_mask((5, 6), density, 0, "w").to(DEVICE)
    left, right = operands(tokens, mask.shape, (torch.bfloat16, torch.bfloat16))
    for product in (sampled_product, dense_product):
        got = product(left, right, mask.row_starts, mask.columns)
        assert got.dtype == torch.float32 and torch.equal(got, torch.zeros(mask.nnz, device=DEVICE))


@pytest.mark.skipif(INTERPRETED, reason="takes 6 GB and a GPU")
def test_offsets_beyond_int32():
    width = 2**30 + 8
    mask = Mask((2, width), torch.tensor([5, width - 1, 2 * width - 3], device=DEVICE))
    left, right = torch.randn(3, 2, device=DEVICE).bfloat16(), torch.ones(3, width, dtype=torch.bfloat16, device=DEVICE)
    right[2, -4:] = 7
    got = sampled_product(left, right, mask.row_starts, mask.columns, "direct")
    rows, columns = mask.rows.tolist(), mask.columns.tolist()
    exact = torch.stack([left[:, r].double() @ right[:, c].double() for r, c in zip(rows, columns, strict=True)])
    assert (got - exact).norm() / exact.norm() < 1e-6


def test_an_unknown_way_is_refused():
    mask = sample_mask((5, 6), 0.5, 0, "w").to(DEVICE)
    left, right = operands(4, mask.shape, (torch.float32, torch.float32))
    with pytest.raises(ValueError, match="'transposed'.*'sideways'"):
        sampled_product(left, right, mask.row_starts, mask.columns, "sideways")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", [1, 3, 100])
def test_picking_from_the_dense_product(dtype, block, monkeypatch):
    mask = sample_mask((10, 150), 0.9, 0, "w").to(DEVICE)  # about 135 entries a row: more than one step of the kernel
    left, right = operands(20, mask.shape, (dtype, dtype))
    wanted = sampled_product_reference(left, right, mask.rows, mask.columns)
    monkeypatch.setattr(product_triton, "DENSE", 150 * block)
    got = dense_product(left, right, mask.row_starts, mask.columns)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(got, wanted.to(got.dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("way", ["direct", "transposed", "dense"])
def test_the_cheapest_way_is_taken(way, monkeypatch):
    mask = sample_mask((10, 15), 0.5, 0, "w").to(DEVICE)
    left, right = operands(20, mask.shape, (torch.bfloat16, torch.bfloat16))
    monkeypatch.setattr(product_triton, "cheapest_way", lambda *_: way)
    sparse = [sampled_product(left, right, mask.row_starts, mask.columns, other) for other in WAYS]
    wanted = [*sparse, dense_product(left, right, mask.row_starts, mask.columns)][[*WAYS, "dense"].index(way)]
    assert torch.equal(cheapest_product(left, right, mask.row_starts, mask.columns), wanted)
    assert not torch.equal(sparse[0], dense_product(left, right, mask.row_starts, mask.columns))  # it is rounded


# ----------------------------------------------------------------------------------------------------------- merge


def layer(dtype, density, seed=0, long_positions=False):
    """Arguments of merge. bfloat16 sums are exact there, since Triton's interpreter, unlike a GPU, cuts them off."""
    generator = torch.Generator().manual_seed(seed)
    mask = sample_mask((30, 50), density, seed, "w")
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    weight, values = torch.randn(30, 50, generator=generator), torch.randn(mask.nnz, generator=generator)
    values *= 10.0 ** torch.randint(-42, 4, values.shape, generator=generator)  # some below the smallest normal number
    if dtype == torch.bfloat16 and INTERPRETED:
        weight, values = (20 * weight).round().clamp(-64, 64), (20 * torch.randn_like(values)).round().clamp(-64, 64)
    weight, values = weight.to(dtype) + 0, values.to(wide)  # + 0: no -0, whose sign an unchanged value leaves alone
    original = weight.view(-1)[mask.positions.long()]
    positions = mask.positions.long() if long_positions else mask.positions
    return [t.to(DEVICE) for t in (weight, torch.zeros_like(values), values, original, positions)]


def same_bytes(left, right):
    return all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("long_positions", [False, True])
def test_merge_gives_the_bits_of_the_torch_merge(dtype, long_positions):
    one = layer(dtype, 0.7, long_positions=long_positions)
    if dtype != torch.bfloat16:
        one[2][:5] = torch.tensor([float("nan"), float("inf"), -0.0, 0.0, 1e-45])
    other = copy.deepcopy(one)
    for _ in range(3):
        merge(*one)
        torch_merge(*other)
        assert same_bytes(one, other)
        for values in (one[2], other[2]):
            values[::3] -= 2
    assert not torch.equal(one[0].view(-1)[one[4].long()], one[3])


def test_merge_writes_only_where_the_bits_have_changed():
    weight, merged, values, original, positions = layer(torch.float32, 0.7)
    values[0] = float("nan")
    merge(weight, merged, values, original, positions)
    weight.fill_(123)
    merge(weight, merged, values, original, positions)
    assert (weight == 123).all()
    values[5] += 1
    merge(weight, merged, values, original, positions)
    changed = (weight != 123).view(-1).nonzero().view(-1)
    assert changed.tolist() == [int(positions[5])]


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_layers_in_one_launch(dtype):
    layers = [layer(dtype, density, seed) for seed, density in enumerate((0.5, 0.0, 1.0, 0.001, 0.9))]
    others = copy.deepcopy(layers)
    merge_layers = MergeLayers(layers)
    for step in range(3):
        merge_layers()
        for one, other in zip(layers, others, strict=True):
            torch_merge(*other)
            assert same_bytes(one, other)
            for values in (one[2], other[2]):
                values[::2] -= 1
        if step == 1:  # new memory at another address
            layers[2][2].data = layers[2][2].clone()


def test_merge_refuses_what_it_cannot_compare():
    weight, merged, values, original, positions = layer(torch.float32, 0.5)
    with pytest.raises(TypeError, match="float64.*float32"):
        merge(weight, merged, values.double(), original, positions)
    with pytest.raises(TypeError, match="must agree"):
        MergeLayers([layer(torch.float32, 0.5), layer(torch.float16, 0.5)])
    MergeLayers([])()


# ----------------------------------------------------------------------------- all layers of a model, when it is called


@pytest.mark.parametrize("scale", [1.0, 5.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_that_merges_in_one_launch_takes_the_steps_of_one_that_merges_layer_by_layer(dtype, scale, monkeypatch):
    launches = []
    launch = MergeLayers.__call__
    monkeypatch.setattr(MergeLayers, "__call__", lambda self: launches.append(len(self._layers)) or launch(self))
    results = []
    for together in (True, False):
        monkeypatch.setattr(refresh, "_can_join", lambda layer, together=together: together)
        model = TwoLayers(dtype).to(DEVICE)
        masking = apply_random_mask(model, ["first", "second"], density=0.3, scale=scale, backend="torch")
        optimizer = torch.optim.AdamW(masking.parameters(), lr=0.05)
        x = torch.randn(8, 24, generator=torch.Generator().manual_seed(3)).to(DEVICE, dtype)
        for step in range(4):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            if step == 1:  # other memory, other dtypes and back: the layers are arranged anew
                model.to(torch.float32 if dtype == torch.float64 else torch.float64).to(dtype)
        doubled = {name: 2 * values for name, values in masking.named_parameters()}
        results.append([model(x), torch.func.functional_call(model, doubled, (x,)), model(x)])
        results[-1] += [layer.weight.detach().clone() for layer in masking.layers.values()]
        assert all(layer.writes for layer in masking.layers.values())
    assert launches == [2] * 7
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert not torch.equal(results[0][0], results[0][1]) and torch.equal(results[0][0], results[0][2])


def test_a_replaced_weight_is_refused_when_the_model_is_called(monkeypatch):
    monkeypatch.setattr(refresh, "_can_join", lambda layer: True)
    model = TwoLayers().to(DEVICE)
    apply_random_mask(model, ["first"], density=0.3, backend="torch")
    x = torch.randn(8, 24, device=DEVICE)
    model(x)
    model.first.weight = torch.nn.Parameter(model.first.weight.detach().clone(), requires_grad=False)
    with pytest.raises(RuntimeError, match="replaced by another"):
        model(x)
