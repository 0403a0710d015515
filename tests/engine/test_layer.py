"""The masked layer against the dense reference, in float64, and every pitfall that once broke such a layer."""

import copy
import shutil
import sysconfig
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import LargestTensor, TwoLayers, state_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from rmbook import Mask, MaskedLinear, apply_random_mask, masked_linear_reference, sample_mask
from rmbook.engine import product_torch
from rmbook.engine.product_torch import cheapest_way, expand_rows, sampled_product, sampled_product_reference

OUT, IN = 48, 40
DENSITIES = [0.0, 0.003, 0.05, 0.25, 0.6, 1.0]  # together they reach every path of the sampled product


def layer_and_reference(density, bias=True, dtype=torch.float64, shape=(OUT, IN)):
    torch.manual_seed(1)
    linear = nn.Linear(shape[1], shape[0], bias=bias, dtype=dtype)
    weight = linear.weight.detach().clone()
    layer = MaskedLinear.attach(linear, sample_mask(shape, density, 0, "w"))

    def reference(x, values):
        return masked_linear_reference(x, weight, linear.bias, layer.mask, values)

    return layer, reference


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [(7,), (3, 5), (2, 3, 4), ()])
def test_output_and_gradients_equal_the_dense_reference(density, bias, batch):
    layer, reference = layer_and_reference(density, bias)
    with torch.no_grad():
        layer.values.normal_()
    values = layer.values.detach().clone().requires_grad_()
    x = torch.randn(*batch, IN, dtype=torch.float64, requires_grad=True)
    other = x.detach().clone().requires_grad_()
    weighting = torch.randn(*batch, OUT, dtype=torch.float64)
    fast, dense = layer(x), reference(other, values)
    (fast * weighting).sum().backward()
    (dense * weighting).sum().backward()
    for got, wanted in ((fast, dense), (x.grad, other.grad), (layer.values.grad, values.grad)):
        torch.testing.assert_close(got, wanted, atol=1e-10, rtol=0)
    assert layer.weight.grad is None


@pytest.mark.parametrize("density", [0.003, 0.05, 0.6])
def test_twenty_adam_steps_equal_the_dense_reference(density):
    layer, reference = layer_and_reference(density)
    values = torch.zeros_like(layer.values, requires_grad=True)
    x, target = torch.randn(30, IN, dtype=torch.float64), torch.randn(30, OUT, dtype=torch.float64)
    optimizers = [torch.optim.AdamW([v], lr=0.03, weight_decay=0) for v in (layer.values, values)]
    for _ in range(20):
        for optimizer, forward in zip(optimizers, (layer, lambda x: reference(x, values)), strict=True):
            optimizer.zero_grad()
            F.mse_loss(forward(x), target).backward()
            optimizer.step()
    assert (layer.values - values).abs().max() < 1e-10
    assert (layer(x) - reference(x, values)).abs().max() < 1e-10


@pytest.mark.parametrize("density", [0.05, 0.2, 1.0])
@pytest.mark.parametrize("batch", [(4,), (2, 3)])
def test_gradcheck(density, batch):
    layer, _ = layer_and_reference(density, shape=(5, 6))
    x = torch.randn(*batch, 6, dtype=torch.float64, requires_grad=True)
    values = torch.randn(layer.mask.nnz, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, v: functional_call(layer, {"values": v}, x), (x, values))


@given(st.integers(1, 700), st.integers(1, 60), st.integers(1, 60), st.floats(0, 1), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_sampled_product_equals_dense_product(tokens, out, width, density, seed):
    mask = sample_mask((out, width), density, seed, "w")
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(tokens, out, dtype=torch.float64, generator=generator)
    right = torch.randn(tokens, width, dtype=torch.float64, generator=generator)
    assert torch.equal(expand_rows(mask.row_starts, mask.nnz), mask.rows)
    got = sampled_product(left, right, mask.row_starts, mask.columns)
    torch.testing.assert_close(got, sampled_product_reference(left, right, mask.rows, mask.columns), atol=1e-10, rtol=0)


@given(st.integers(0, 90), st.integers(0, 70), st.integers(0, 3), st.booleans(), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_transposed_copies_every_number(tokens, width, first, turned, seed):
    """By the fast way, which float32 takes where torch has it, and by the plain one, of any slice of any layout."""
    numbers = torch.randn(width, tokens + first, generator=torch.Generator().manual_seed(seed))
    source = numbers.t()[first:] if turned else numbers.t().contiguous()[first:]
    for given_dtype in (torch.float32, torch.bfloat16, torch.float64):
        wanted = source.to(given_dtype).t()
        for dtype in (torch.float32, torch.float64):
            copy = product_torch.transposed(source.to(given_dtype), dtype)
            assert copy.is_contiguous() and torch.equal(copy, wanted.to(dtype))


def test_row_blocks_larger_than_one_block():
    mask = sample_mask((1300, 12), 0.5, 0, "w")
    left, right = torch.randn(9, 1300, dtype=torch.float64), torch.randn(9, 12, dtype=torch.float64)
    torch.testing.assert_close(
        sampled_product(left, right, mask.row_starts, mask.columns),
        sampled_product_reference(left, right, mask.rows, mask.columns),
        atol=1e-12,
        rtol=0,
    )


# ------------------------------------------------------------------------------------------------------- pitfalls


def _set_data(layer):
    layer.values.data = torch.full_like(layer.values, 0.5)


def _fused_adamw(layer):
    optimizer = torch.optim.AdamW([layer.values], lr=0.5, fused=True)
    layer.values.grad = torch.ones_like(layer.values)
    optimizer.step()


def _vector(layer):
    nn.utils.vector_to_parameters(torch.full_like(layer.values, 0.5).detach(), [layer.values])


def _assign(layer):
    layer.load_state_dict({**layer.state_dict(), "values": torch.full_like(layer.values.detach(), 0.5)}, assign=True)


def _data_add(layer):
    layer.values.data.add_(0.5)


@pytest.mark.parametrize("change", [_set_data, _fused_adamw, _vector, _assign, _data_add])
def test_pitfall_1_every_way_to_change_the_values_is_seen(change):
    layer, reference = layer_and_reference(0.1)
    x = torch.randn(5, IN, dtype=torch.float64)
    before = layer(x)
    change(layer)
    after = layer(x)
    assert (after - before).abs().max() > 1e-3
    assert (after - reference(x, layer.values)).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("density", [1e-4, 0.01])
def test_pitfall_2_nothing_of_the_weights_size_is_ever_made(dtype, density):
    """Forward, backward, step and refresh of a 1024 x 1024 layer with 16 tokens: no dense copy, no dense gradient."""
    layer, _ = layer_and_reference(density, dtype=dtype, shape=(1024, 1024))
    optimizer = torch.optim.AdamW([layer.values], lr=1e-2)
    x = torch.randn(16, 1024, dtype=dtype, requires_grad=True)
    with LargestTensor() as seen:
        for _ in range(2):
            layer(x).square().sum().backward()
            optimizer.step()
    assert 16 * 1024 <= seen.largest < 1024 * 1024 / 8


def test_pitfall_3_two_forwards_before_one_backward():
    layer, reference = layer_and_reference(0.1)
    with torch.no_grad():
        layer.values.normal_()
    x, y = torch.randn(2, 6, IN, dtype=torch.float64)
    (layer(x).square().sum() + layer(y).square().sum()).backward()
    values = layer.values.detach().clone().requires_grad_()
    (reference(x, values).square().sum() + reference(y, values).square().sum()).backward()
    assert (layer.values.grad - values.grad).abs().max() < 1e-10


@pytest.mark.parametrize("again", [True, False])
def test_values_that_change_between_forward_and_backward_are_refused(again):
    layer, _ = layer_and_reference(0.1)
    x = torch.randn(4, IN, dtype=torch.float64, requires_grad=True)
    loss = layer(x).square().sum()
    with torch.no_grad():
        layer.values.add_(1)
    if again:
        layer(x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_forwards_with_different_values_before_one_backward():
    layer, reference = layer_and_reference(0.1)
    x = torch.randn(4, IN, dtype=torch.float64)
    values = torch.randn(3, layer.mask.nnz, dtype=torch.float64)

    def gradients(forward):
        inputs, vectors = x.clone().requires_grad_(), values.clone().requires_grad_()
        sum(forward(inputs * k, vectors[k]).pow(3).sum() for k in range(3)).backward()
        return inputs.grad, vectors.grad

    fast = gradients(lambda x, v: functional_call(layer, {"values": v}, x))
    for got, wanted in zip(fast, gradients(reference), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-10, rtol=1e-12)


def test_frozen_values_still_give_the_right_input_gradient():
    layer, reference = layer_and_reference(0.1)
    layer.values.requires_grad_(False)
    x = torch.randn(4, IN, dtype=torch.float64, requires_grad=True)
    loss = layer(x).square().sum()
    old, layer.values = layer.values, nn.Parameter(torch.ones_like(layer.values))
    layer(x)
    loss.backward()
    wanted = torch.autograd.grad(reference(x, old).square().sum(), x)[0]
    assert (x.grad - wanted).abs().max() < 1e-10


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_pitfall_4_torch_compile_gives_the_same_losses_without_graph_breaks(backend):
    headers = Path(sysconfig.get_path("include"), "Python.h").is_file()
    if backend == "inductor" and not (shutil.which("g++") and headers):
        pytest.skip("torch.compile's default backend needs g++ and Python's headers, which are not here")
    losses = []
    for compiled in (False, True):
        model = TwoLayers()
        masking = apply_random_mask(model, ["first", "second"], density=0.1)
        forward = torch.compile(model, fullgraph=True, backend=backend) if compiled else model
        optimizer = torch.optim.AdamW(masking.parameters(), lr=0.05)
        x = torch.randn(8, 24, generator=torch.Generator().manual_seed(3))
        losses.append([])
        for _ in range(5):
            optimizer.zero_grad()
            loss = forward(x).square().sum()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0] == (losses[1] if backend == "aot_eager" else pytest.approx(losses[1], rel=1e-5))
    assert losses[0][-1] < losses[0][0]


def test_pitfall_7_a_plain_layer_gets_the_trained_weight_from_state_dict_and_a_masked_one_both():
    layer, _ = layer_and_reference(0.2)
    weight = layer.weight.detach().clone()
    with torch.no_grad():
        layer.values.normal_()
    x = torch.randn(3, IN, dtype=torch.float64)
    state = copy.deepcopy(layer.state_dict())  # no forward pass came between
    assert torch.equal(layer.weight, weight), "saving changes nothing"
    output = layer(x)
    plain = nn.Linear(IN, len(weight), bias=layer.bias is not None, dtype=torch.float64)
    plain.load_state_dict(state, strict=False)
    assert torch.equal(plain(x), output)
    layer.set_dense_form(True)
    assert torch.equal(layer.state_dict()["weight"], state["weight"])
    fresh, _ = layer_and_reference(0.2)
    fresh(x)
    fresh.load_state_dict(state)
    assert torch.equal(fresh(x), output)
    assert torch.equal(fresh.original, layer.original)
    base = torch.randn_like(weight)  # another base under the same values
    fresh.load_state_dict({"weight": base, **{k: v for k, v in state.items() if k not in ("weight", "_extra_state")}})
    assert (fresh(x) - masked_linear_reference(x, base, fresh.bias, fresh.mask, fresh.values)).abs().max() < 1e-12
    assert torch.equal(fresh.detach().weight, base)


def test_pitfall_8_double_backward_is_refused_and_the_dense_form_is_right():
    model = TwoLayers(torch.float64)
    masking = apply_random_mask(model, ["first", "second"], density=0.2)
    with torch.no_grad():
        for values in masking.parameters():
            values.normal_(std=0.1)
    x = torch.randn(6, 24, dtype=torch.float64)
    values = list(masking.parameters())
    for loss in (model(x).square().sum(), model(x).sum()):  # also where the loss itself is linear in the output
        with pytest.raises(RuntimeError, match="dense_form"):
            torch.autograd.grad(loss, values, create_graph=True)
    direction = [torch.randn_like(v) for v in values]

    def gradient():
        return torch.autograd.grad(model(x).square().sum(), values)

    fast = gradient()
    with masking.dense_form():
        dense = torch.autograd.grad(model(x).square().sum(), values, create_graph=True)
        product = torch.autograd.grad(sum((g * d).sum() for g, d in zip(dense, direction, strict=True)), values)
    step, differences = 1e-5, []
    for sign in (1, -1):
        with torch.no_grad():
            for v, d in zip(values, direction, strict=True):
                v.add_(d, alpha=sign * step)
        differences.append(gradient())
        with torch.no_grad():
            for v, d in zip(values, direction, strict=True):
                v.sub_(d, alpha=sign * step)
    for f, g, h, up, down in zip(fast, dense, product, *differences, strict=True):
        assert (f - g).abs().max() < 1e-10
        torch.testing.assert_close(h, (up - down) / (2 * step), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_pitfall_10_the_original_weight_comes_back_bit_for_bit(dtype):
    layer, _ = layer_and_reference(0.3, dtype=dtype)
    plain, _ = layer_and_reference(0.0, dtype=dtype)
    optimizer = torch.optim.AdamW([layer.values], lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        layer(torch.randn(4, IN, dtype=dtype)).float().square().sum().backward()
        optimizer.step()
    layer(torch.randn(4, IN, dtype=dtype))
    assert not torch.equal(layer.weight, plain.weight)
    restored = layer.detach()
    assert type(restored) is nn.Linear
    assert torch.equal(restored.weight.view(torch.uint8), plain.weight.view(torch.uint8))


@pytest.mark.parametrize("width", [40, 3000, 200_000])
def test_pieces_of_any_length_add_up_to_the_dense_product(width):
    """Wide inputs are taken in shorter pieces of tokens."""
    mask = sample_mask((7, width), min(0.1, 30 / width), 0, "w")
    left, right = (torch.randn(150, side, dtype=torch.float64) for side in mask.shape)
    exact = (left[:, mask.rows.long()] * right[:, mask.columns.long()]).sum(0)
    for compute in (product_torch._sparse, sampled_product):
        torch.testing.assert_close(compute(left, right, mask.row_starts, mask.columns), exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("density", [0.001, 0.01])
def test_pitfall_11_bfloat16_gradient_is_as_exact_as_its_inputs(density):
    """Products are summed in float32, so rounding the result to bfloat16, 4e-3, is avoided."""
    shape = (256, 320)
    mask = sample_mask(shape, density, 0, "w")
    way, _ = cheapest_way(shape, mask.nnz, torch.bfloat16, "cpu")
    assert way == ("gather" if density == 0.001 else "sparse")  # both low-density ways
    left, right = torch.randn(700, 256).bfloat16(), torch.randn(700, 320).bfloat16()
    exact = sampled_product_reference(left.double(), right.double(), mask.rows, mask.columns)
    got = sampled_product(left, right, mask.row_starts, mask.columns)
    dense = sampled_product_reference(left, right, mask.rows, mask.columns)
    scale = exact.norm()
    assert got.dtype == torch.float32
    assert (got - exact).norm() / scale < 1e-6 < 1e-4 < (dense - exact).norm() / scale


def test_small_updates_are_not_lost_in_bfloat16():
    """A hundred steps of 1e-6 on weights of 0.02 vanish when added in place in bf16; fp32 values keep them."""
    layer, _ = layer_and_reference(0.5, dtype=torch.bfloat16)
    with torch.no_grad():
        for _ in range(100):
            layer.values.add_(1e-6)
            layer.refresh()
    assert torch.allclose(layer.values, torch.full_like(layer.values, 1e-4), rtol=1e-4)
    wanted = (layer.original.float() + layer.values).bfloat16()
    assert torch.equal(layer.weight.view(-1)[layer.mask.positions.long()], wanted)


def test_pitfall_12_saving_only_touched_columns_changes_nothing():
    positions = torch.tensor([3, 5, IN + 3, 7 * IN + 5, 9 * IN + 3], dtype=torch.int32)  # columns 3 and 5 only
    linear = nn.Linear(IN, OUT, dtype=torch.float64)
    layer = MaskedLinear.attach(linear, Mask((OUT, IN), positions))
    assert layer.touched.tolist() == [3, 5]
    x = torch.randn(2, 6, IN, dtype=torch.float64)
    layer(x).pow(3).sum().backward()
    compact, layer.values.grad = layer.values.grad, None
    layer.touched, layer.columns = None, layer.mask.columns
    layer(x).pow(3).sum().backward()
    assert (compact - layer.values.grad).abs().max() < 1e-12
    saved = []
    layer._set_mask(layer.mask)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        layer(x)
    assert 2 * 6 * 2 in saved and 2 * 6 * IN not in saved


def test_evaluation_after_the_last_step_sees_it():
    layer, reference = layer_and_reference(0.1)
    x = torch.randn(3, IN, dtype=torch.float64)
    layer(x).square().sum().backward()
    torch.optim.SGD([layer.values], lr=0.01).step()
    layer.eval()
    with torch.no_grad():
        assert (layer(x) - reference(x, layer.values)).abs().max() < 1e-12
    with torch.inference_mode():
        assert (layer(x) - reference(x, layer.values)).abs().max() < 1e-12


def test_train_and_eval_switches_refresh_for_callers_that_read_the_weight():
    """nn.TransformerEncoderLayer's fast path reads the weights of its linear layers without calling them."""
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0, batch_first=True)
    masking = apply_random_mask(block, ["linear1", "linear2"], density=0.3)
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        for values in masking.parameters():
            values.normal_()
        block.train()
        slow = block(x)
        for values in masking.parameters():
            values.mul_(2)
        block.eval()
        fast = block(x)
        for layer in masking.layers.values():
            layer.train()
        torch.testing.assert_close(fast, block.train()(x), rtol=1e-4, atol=1e-5)
    assert (fast - slow).abs().max() > 1e-3


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing(use_reentrant):
    gradients = []
    for checkpointed in (False, True):
        model = TwoLayers(torch.float64)
        masking = apply_random_mask(model, ["first", "second"], density=0.2)
        x = torch.randn(5, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        output = checkpoint(model, x, use_reentrant=use_reentrant) if checkpointed else model(x)
        output.square().sum().backward()
        gradients.append([v.grad for v in masking.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_autocast_keeps_values_and_their_gradient_in_float32():
    layer, reference = layer_and_reference(0.1, dtype=torch.float32)
    x = torch.randn(64, IN)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(x)
        output.float().square().sum().backward()
    assert output.dtype == torch.bfloat16 and layer.values.grad.dtype == torch.float32
    values = layer.values.detach().clone().requires_grad_()
    reference(x, values).square().sum().backward()
    assert (layer.values.grad - values.grad).norm() / values.grad.norm() < 2e-2


def test_deepcopy_is_independent():
    layer, reference = layer_and_reference(0.1)
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        twin.values.fill_(1)
    x = torch.randn(3, IN, dtype=torch.float64)
    assert (twin(x) - reference(x, twin.values)).abs().max() < 1e-12
    assert (layer(x) - reference(x, torch.zeros_like(layer.values))).abs().max() < 1e-12


def test_diverged_values_do_not_break_a_second_forward():
    layer, _ = layer_and_reference(0.1)
    with torch.no_grad():
        layer.values.fill_(float("nan"))
    x = torch.randn(2, IN, dtype=torch.float64, requires_grad=True)
    (layer(x).sum() + layer(x).sum()).backward()  # NaN equals itself, so nothing is rewritten in between


@pytest.mark.parametrize(
    "start, end",
    [
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float64),
        (torch.float64, torch.float16),
    ],
)
def test_casting_casts_the_base_and_keeps_the_values(start, end):
    layer, _ = layer_and_reference(0.2, dtype=start)
    plain, _ = layer_and_reference(0.0, dtype=start)
    with torch.no_grad():
        layer.values.normal_()
    layer(torch.randn(2, IN, dtype=start)).sum().backward()
    values, parameter = layer.values.detach().clone(), layer.values
    layer.to(end)
    wide = torch.float64 if end == torch.float64 else torch.float32
    assert layer.values is parameter and layer.values.dtype == wide == layer.values.grad.dtype
    torch.testing.assert_close(layer.values.detach(), values.to(wide))
    layer(torch.randn(2, IN, dtype=end)).sum().backward()
    assert torch.equal(layer.detach().weight, plain.weight.detach().to(end))


def test_bake_keeps_the_result():
    layer, reference = layer_and_reference(0.2)
    with torch.no_grad():
        layer.values.normal_()
    x = torch.randn(3, IN, dtype=torch.float64)
    wanted = reference(x, layer.values)
    plain = layer.bake()
    assert type(plain) is nn.Linear and set(plain.state_dict()) == {"weight", "bias"}
    assert (plain(x) - wanted).abs().max() < 1e-12


def test_module_identity_hooks_and_references_survive():
    model = TwoLayers()
    seen = []
    reference = model.first
    model.first.register_forward_hook(lambda *_: seen.append(1))
    masking = apply_random_mask(model, ["first"], density=0.1)
    model(torch.randn(2, 24))
    assert model.first is reference and seen == [1]
    masking.remove()
    assert type(reference) is nn.Linear and state_bytes(model) == state_bytes(TwoLayers())
