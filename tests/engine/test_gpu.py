"""The masked layer on a CUDA GPU, by every backend that is there; all skipped without one."""

import copy

import pytest
import torch
from conftest import TwoLayers
from torch import nn
from torch.utils.checkpoint import checkpoint

from rmbook import MaskedLinear, apply_random_mask, load_adapter, masked_linear_reference, sample_mask, save_adapter
from rmbook.engine.product_costs import cheapest_way

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU on this machine")
BACKENDS = ["torch", "triton", "dense"]


def masked_layer(density, dtype, backend="auto", out=40, width=56):
    torch.manual_seed(0)
    linear = nn.Linear(width, out, dtype=dtype, device="cuda")
    weight = linear.weight.detach().clone()
    layer = MaskedLinear.attach(linear, sample_mask((out, width), density, 0, "weight"), backend)
    with torch.no_grad():
        layer.values.normal_(std=0.1)
    return layer, weight


def masked_model(dtype=torch.float32, scale=1.0):
    model = TwoLayers(dtype).cuda()
    return model, apply_random_mask(model, ["first", "second"], density=0.2, scale=scale)


def trained(steps=5, dtype=torch.float32, scale=1.0, forward=None, set_up=None):
    """A model and its mask after a few steps of fused AdamW."""
    model, masking = masked_model(dtype, scale)
    if set_up:
        set_up(masking)
    optimizer = torch.optim.AdamW(masking.parameters(), lr=0.01, fused=True)
    call = forward(model) if forward else model
    x = torch.randn(8, 24, generator=torch.Generator().manual_seed(3)).to("cuda", dtype)
    for _ in range(steps):
        optimizer.zero_grad()
        call(x).square().mean().backward()
        optimizer.step()
    return model, masking, x


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("density", [0.002, 0.05, 0.6])
def test_output_and_gradients_equal_the_dense_mask_in_double_precision(backend, density):
    layer, weight = masked_layer(density, torch.float64, backend)
    x = torch.randn(3, 7, 56, dtype=torch.float64, device="cuda", requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, _: layer(x), (x, layer.values))
    wanted = masked_linear_reference(x, weight, layer.bias, layer.mask, layer.values)
    got = layer(x)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    for g, w in zip(*(torch.autograd.grad(y.pow(3).sum(), (x, layer.values)) for y in (got, wanted)), strict=True):
        torch.testing.assert_close(g, w, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("density", [0.0005, 0.01, 0.3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradients_are_as_exact_as_their_inputs(density, dtype):
    layer, _ = masked_layer(density, dtype, "triton", 512, 512)
    x, direction = torch.randn(2, 2048, 512, device="cuda").to(dtype)
    layer(x).backward(direction)
    exact = (direction.double().t() @ x.double()).view(-1)[layer.mask.positions.long()]
    way = cheapest_way(layer.product_shape, 2048, layer.mask.nnz, dtype)
    assert layer.mask.nnz > 50 and (density < 0.01) == (way != "dense")
    # Sums of sampled entries are kept in float32; tensor cores keep a little less than that.
    assert (layer.values.grad - exact).norm() / exact.norm() < (1e-4 if way == "dense" else 1e-6)


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_merging_all_layers_at_once_gives_the_bits_of_merging_one_by_one(scale):
    _, together, x = trained(scale=scale)
    _, apart, _ = trained(scale=scale, set_up=lambda masking: masking._refresh.remove())
    assert torch.equal(together.model(x), apart.model(x))
    for one, other in zip(together.layers.values(), apart.layers.values(), strict=True):
        assert torch.equal(one.values, other.values) and torch.equal(one.weight, other.weight)
        # At the start and in each forward pass, never in a backward pass.
        assert one.writes == other.writes == 1 + 5 + 1


def test_a_step_never_waits_for_the_gpu():
    model, masking, x = trained()
    optimizer = torch.optim.AdamW(masking.parameters(), lr=0.01, fused=True)
    for _ in range(2):
        model(x).square().mean().backward()
        optimizer.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(x).square().mean().backward()
        optimizer.step()
        with pytest.raises(RuntimeError, match="synchroniz"):
            x.sum().item()  # that the mode sees a wait
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_whole_step_can_be_captured_and_replayed():
    _, eager, x = trained(steps=6)
    model, masking = masked_model()
    optimizer = torch.optim.AdamW(masking.parameters(), lr=0.01, fused=True, capturable=True)

    def step():
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for _ in range(3):
        graph.replay()
    for a, b in zip(masking.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_training_equals_training_on_the_cpu_and_repeats_bit_for_bit():
    model, masking, x = trained(dtype=torch.float64)
    again = trained(dtype=torch.float64)[0]
    assert torch.equal(model(x), again(x))
    twin = TwoLayers(torch.float64)
    slow = apply_random_mask(twin, ["first", "second"], density=0.2)
    optimizer = torch.optim.AdamW(slow.parameters(), lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        twin(x.cpu()).square().mean().backward()
        optimizer.step()
    for fast, reference in zip(masking.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(fast.cpu(), reference, rtol=0, atol=1e-10)


@pytest.mark.parametrize("way", ["reentrant", "not reentrant", "compiled"])
def test_checkpointing_and_compilation_change_nothing(way):
    def forward(model):
        if way == "compiled":
            return torch.compile(model, fullgraph=True)
        return lambda x: checkpoint(model, x.requires_grad_(), use_reentrant=way == "reentrant")

    plain, wrapped = trained()[1], trained(forward=forward)[1]
    for a, b in zip(plain.parameters(), wrapped.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5 if way == "compiled" else 0, atol=1e-6 if way == "compiled" else 0)


def test_two_forward_passes_with_other_values_before_their_backward_passes():
    model, masking, x = trained(dtype=torch.float64)
    x = x.requires_grad_()
    values = [v.detach().clone() for v in masking.parameters()]
    (alone,) = torch.autograd.grad(model(x).square().sum(), x)
    first = model(x).square().sum()
    second = torch.func.functional_call(model, {n: 2 * v for n, v in masking.named_parameters()}, (x,)).square().sum()
    assert first.item() != second.item()
    (after,) = torch.autograd.grad(first, x)
    assert torch.equal(alone, after)
    assert all(torch.equal(v, w) for v, w in zip(values, masking.parameters(), strict=True))


def test_moving_copying_saving_and_removing(tmp_path):
    model, masking, x = trained(dtype=torch.bfloat16)
    output, path = model(x), tmp_path / "adapter.safetensors"
    save_adapter(masking, path)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), output)
    model.cpu()
    assert masking.layers["first"].backend == "torch"
    model.cuda()
    assert masking.layers["first"].backend == "triton" and torch.equal(model(x), output)
    base = TwoLayers(torch.bfloat16).cuda()
    masking.remove()
    for p, q in zip(model.parameters(), base.parameters(), strict=True):
        assert torch.equal(p.view(torch.int16), q.view(torch.int16))
    load_adapter(base, path)
    assert torch.equal(base(x), output)


def test_autocast_computes_the_product_in_low_precision_and_keeps_float32_values():
    layer, weight = masked_layer(0.1, torch.float32)
    x = torch.randn(16, 56, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        output = layer(x)
        output.float().square().sum().backward()
    assert output.dtype == torch.bfloat16 and layer.values.grad.dtype == torch.float32
    wanted = layer.values.detach().requires_grad_()
    masked_linear_reference(x, weight, layer.bias, layer.mask, wanted).square().sum().backward()
    assert (layer.values.grad - wanted.grad).norm() / wanted.grad.norm() < 0.02
