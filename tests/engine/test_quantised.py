"""Masks on quantised bases, against the dense layer that the quantised numbers stand for."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import state_bytes
from quantised_layers import every_kind, near, needs, quantise
from torch import nn

from rmbook import apply_random_mask, load_adapter, sample_mask, save_adapter
from rmbook.adapters.errors import AdapterBaseError
from rmbook.engine.dequantise import count_parameters, dequantise, quantisation
from rmbook.engine.quantised import QuantisedLinear
from rmbook.engine.quantised_product import added, has_own_product
from rmbook.engine.sparse_product import cheapest_way
from rmbook.engine.targets import TargetError

DTYPES = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2e-2}


class Quantised(nn.Module):
    """Two quantised targets and a plain layer."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.first = quantise(nn.Linear(64, 48), kind)
        self.second = quantise(nn.Linear(48, 32, bias=False), kind)
        self.last = nn.Linear(32, 3)

    def forward(self, x):
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))


def dense_of(model):
    """The same model with the dense weights that the quantised ones stand for."""
    plain = nn.ModuleDict({"last": copy.deepcopy(model.last)})
    for name in ("first", "second"):
        layer = getattr(model, name)
        plain[name] = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        plain[name].weight.data = dequantise(layer, torch.float32)
        if layer.bias is not None:
            plain[name].bias.data = layer.bias.data.clone()
    plain.forward = lambda x: plain["last"](torch.tanh(plain["second"](torch.tanh(plain["first"](x)))))
    return plain


@every_kind
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("density", [0.0, 0.002, 0.2])
def test_forward_and_gradients_equal_the_dense_reference(kind, dtype, density):
    torch.manual_seed(1)
    layer = QuantisedLinear.attach(quantise(nn.Linear(96, 64), kind), sample_mask((64, 96), density, 0, "w"))
    layer.values.data.normal_(std=0.1)
    x = torch.randn(2, 9, 96, dtype=dtype, requires_grad=True)
    dense = dequantise(layer, dtype)
    delta = torch.zeros(dense.numel(), dtype=layer.values.dtype)
    delta[layer.mask.positions.long()] = layer.values.detach()
    weight = (dense + delta.view_as(dense)).to(dtype).requires_grad_()
    other = x.detach().clone().requires_grad_()
    wanted = F.linear(other, weight, layer.bias.to(dtype))
    output, gradient = layer(x), torch.randn(2, 9, 64, dtype=dtype)
    output.backward(gradient)
    wanted.backward(gradient)
    limit = DTYPES[dtype]
    assert output.dtype == dtype and near(output, wanted, limit) and near(x.grad, other.grad, limit)
    exact = gradient.double().flatten(0, 1).t() @ other.detach().double().flatten(0, 1)
    assert near(layer.values.grad, exact.view(-1)[layer.mask.positions.long()], max(limit, 1e-6))
    with torch.no_grad():  # both ways
        assert near(layer(x), wanted, limit)
        if has_own_product(layer, dtype):
            x = x.detach()
            assert near(added(x, layer, layer.delta, layer), layer(x), max(limit, 1e-6))


@pytest.mark.parametrize("kind", [needs("torchao int8")])
def test_gradients_of_the_additive_way_are_those_of_the_merged_one(kind):
    mask = sample_mask((512, 512), 5e-5, 0, "w")
    assert mask.nnz and cheapest_way(mask.shape, 6, mask.nnz, "torchao") == "add"
    torch.manual_seed(1)
    layer, x = QuantisedLinear.attach(quantise(nn.Linear(512, 512), kind), mask), torch.randn(2, 3, 512)
    layer.values.data.normal_()
    layer.bias.requires_grad_(True)
    dense, gradient = dequantise(layer, torch.float32).view(-1), torch.randn(2, 3, 512)
    weight = dense.index_add(0, mask.positions.long(), layer.values.detach()).view(512, 512).requires_grad_()
    found, wanted = [], []
    for outputs, weights, function in (
        (found, layer.values, layer),
        (wanted, weight, lambda x: F.linear(x, weight, layer.bias)),
    ):
        own = x.clone().requires_grad_()
        output = function(own)
        outputs += [output, *torch.autograd.grad(output, (own, weights, layer.bias), gradient)]
    wanted[2] = wanted[2].view(-1)[mask.positions.long()]
    assert all(near(*pair, 1e-6) for pair in zip(found, wanted, strict=True))


@every_kind
def test_training_is_that_of_the_dense_model_and_the_base_stays_as_it_is(kind, tmp_path):
    model, plain = Quantised(kind), dense_of(Quantised(kind))
    before, parts = state_bytes(model) if "torchao" not in kind else None, [type(m) for m in model.children()]
    bases = [dequantise(layer, torch.float32) for layer in (model.first, model.second)]
    named, total = quantisation(model.first), count_parameters(model)
    assert named and total == 64 * 48 + 48 + 48 * 32 + 32 * 3 + 3
    maskings = [apply_random_mask(m, ["first", "second"], ratio=0.01, seed=4) for m in (model, plain)]
    assert maskings[0].total == total and maskings[0].trainable == maskings[1].trainable
    for step in range(4):
        x = torch.randn(5, 64, generator=torch.Generator().manual_seed(step))
        for m, masking in zip((model, plain), maskings, strict=True):
            masking.model.zero_grad()
            m(x).square().mean().backward()
            with torch.no_grad():
                for values in masking.parameters():
                    values -= 0.5 * values.grad
    for got, wanted in zip(maskings[0].parameters(), maskings[1].parameters(), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-7)
    maskings[0].explain()
    copied = copy.deepcopy(model)
    assert torch.equal(copied(x), model(x))
    save_adapter(maskings[0], tmp_path / "a.safetensors")
    again = Quantised(kind)
    load_adapter(again, tmp_path / "a.safetensors")
    assert torch.equal(again(x), model(x))
    with pytest.raises(RuntimeError, match="quantised weight.*remove"):
        maskings[0].merge()
    assert torch.equal(again(x), model(x))  # nothing was changed
    maskings[0].remove()
    assert [type(m) for m in model.children()] == parts and (before is None or state_bytes(model) == before)
    for layer, base in zip((model.first, model.second), bases, strict=True):
        assert torch.equal(dequantise(layer, torch.float32), base)


@pytest.mark.parametrize("kind", [needs("nf4")])
def test_an_adapter_belongs_to_the_quantised_base_that_it_was_trained_on(kind, tmp_path):
    save_adapter(apply_random_mask(Quantised(kind), ["first"], density=0.1), tmp_path / "a.safetensors")
    with pytest.raises(AdapterBaseError, match="trained on bitsandbytes nf4, blocks of 64; this model's are .*fp4"):
        load_adapter(Quantised("fp4"), tmp_path / "a.safetensors")
    with pytest.raises(AdapterBaseError, match="bitsandbytes nf4.*not quantised"):
        load_adapter(dense_of(Quantised(kind)), tmp_path / "a.safetensors")
    other = Quantised(kind)
    other.second.weight.data[3] += 1
    with pytest.raises(AdapterBaseError, match="fingerprint"):
        load_adapter(other, tmp_path / "a.safetensors")


@pytest.mark.parametrize("kind", [needs("nf4")])
def test_layers_that_hold_no_quantised_numbers_yet_are_refused(kind):
    import bitsandbytes

    with pytest.raises(TargetError, match="holds its numbers"):
        apply_random_mask(nn.Sequential(bitsandbytes.nn.Linear4bit(8, 8)), ["0"], density=0.5)
    with pytest.raises(TargetError, match="Linear8bitLt"):
        apply_random_mask(nn.Sequential(bitsandbytes.nn.Linear8bitLt(8, 8)), ["0"], density=0.5)
