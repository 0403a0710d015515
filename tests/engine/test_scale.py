"""S = scale * values: the same function of other parameters, so that one learning rate can serve every density."""

import copy
import math

import pytest
import torch
from conftest import TwoLayers, state_bytes
from small_language_models import TARGETS, logits, small, train_a_little

from rmbook import AdapterBank, apply_random_mask, load_adapter, save_adapter
from rmbook.adapters.adapter_file import read_adapter
from rmbook.adapters.merged import merged_state_dict
from rmbook.adapters.shira import load_from_shira, save_as_shira
from rmbook.methods.apply import apply_method

X = torch.randn(9, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def masked(density, scale, dtype=torch.float64):
    model = TwoLayers(dtype)
    return model, apply_random_mask(model, ["first", "second"], density=density, scale=scale)


def deltas(masking):
    return torch.cat([layer.delta.detach() for layer in masking.layers.values()])


@pytest.mark.parametrize("density", [1.0, 0.3, 0.02])
def test_adam_at_one_rate_does_what_the_rate_over_the_density_does_without_scale(density):
    """Proposition "Rescaled weights": Adam's step is the rate, whatever the scale, once its epsilon is scaled too."""
    rate, paths = 1e-3, []
    for scale, factor in (("inverse_density", 1.0), (1.0, 1 / density)):
        model, masking = masked(density, scale)
        epsilon = 1e-8 / density if scale == "inverse_density" else 1e-8
        optimizer = torch.optim.AdamW(masking.parameters(), lr=rate * factor, weight_decay=0.0, eps=epsilon)
        path = []
        for _ in range(6):
            optimizer.zero_grad()
            model(X).square().sum().backward()
            optimizer.step()
            path.append(deltas(masking))
        paths.append(torch.stack(path))
    torch.testing.assert_close(paths[0], paths[1], rtol=1e-9, atol=1e-12)
    assert paths[0][0].abs().max().item() == pytest.approx(rate / density, rel=1e-4)


@pytest.mark.parametrize("dense_form", [False, True])
@pytest.mark.parametrize("backend", ["torch", "dense"])
def test_output_and_gradient_are_those_of_the_scaled_values(backend, dense_form):
    model = TwoLayers(torch.float64)
    masking = apply_random_mask(model, ["first", "second"], density=0.3, scale=7.0, backend=backend)
    plain = TwoLayers(torch.float64)
    reference = apply_random_mask(plain, ["first", "second"], density=0.3)
    with torch.no_grad():
        for own, other in zip(masking.parameters(), reference.parameters(), strict=True):
            own.normal_(std=0.1)
            other.copy_(7 * own)
    if dense_form:
        with masking.dense_form():
            output = model(X)
            output.square().sum().backward()
    else:
        output = model(X)
        output.square().sum().backward()
    wanted = plain(X)
    wanted.square().sum().backward()
    torch.testing.assert_close(output, wanted)
    for own, other in zip(masking.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(own.grad, 7 * other.grad)
    assert masking.distance() == pytest.approx(reference.distance()) == pytest.approx(deltas(masking).norm().item())


def test_the_fast_gradient_is_that_of_finite_differences():
    model, masking = masked(0.05, "inverse_density")
    values = dict(masking.named_parameters())

    def loss(*tensors):
        return torch.func.functional_call(model, dict(zip(values, tensors, strict=True)), (X,))

    start = [value.detach().clone().requires_grad_() for value in values.values()]
    assert torch.autograd.gradcheck(loss, start)


@pytest.mark.parametrize("kind", ["opt", "llama"])
def test_a_scaled_adapter_comes_back_in_every_form(kind, tmp_path):
    model = small(kind)
    before = state_bytes(model)
    masking = apply_random_mask(model, TARGETS[kind], density=0.2, scale="inverse_density")
    train_a_little(model, masking.parameters(), learning_rate=0.005)
    wanted, trained = logits(model), deltas(masking)
    save_adapter(masking, tmp_path / "a.safetensors")
    save_as_shira(masking, tmp_path / "shira")
    merged = merged_state_dict(masking)
    assert read_adapter(tmp_path / "a.safetensors").scale == 1 / 0.2
    masking.remove()
    assert state_bytes(model) == before

    again = load_adapter(model, tmp_path / "a.safetensors")
    assert torch.equal(logits(model), wanted) and torch.equal(deltas(again), trained)
    again.remove()
    bank = AdapterBank(model)
    bank.add("scaled", tmp_path / "a.safetensors")
    bank.activate("scaled")
    assert torch.equal(logits(model), wanted)
    bank.activate()
    assert state_bytes(model) == before
    from_shira = load_from_shira(model, tmp_path / "shira")
    assert torch.equal(logits(model), wanted)
    from_shira.remove()
    model.load_state_dict(merged)
    assert torch.equal(logits(model), wanted)


def test_copies_casts_and_merging_keep_the_scale():
    model, masking = masked(0.3, 5.0, torch.float32)
    with torch.no_grad():
        for values in masking.parameters():
            values.normal_(std=0.1)
    x = X.float()
    wanted = model(x)
    assert torch.equal(copy.deepcopy(model)(x), wanted)
    torch.testing.assert_close(copy.deepcopy(model).double()(X), wanted.double(), rtol=1e-4, atol=1e-5)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), wanted)
    masking.merge()
    torch.testing.assert_close(model(x), wanted)
    assert not hasattr(model.first, "scale")


def test_a_scale_of_one_changes_no_bit():
    plain, scaled = (masked(0.3, scale, torch.float32) for scale in (1.0, 1))
    results = []
    for model, masking in (plain, scaled):
        optimizer = torch.optim.AdamW(masking.parameters(), lr=0.01)
        model(X.float()).square().sum().backward()
        optimizer.step()
        results.append(model(X.float()))
    assert torch.equal(*results)


@pytest.mark.parametrize("scale", [0, -1.0, math.nan, math.inf, "1/p", True, None])
def test_a_bad_scale_is_refused_and_the_model_is_unchanged(scale):
    model = TwoLayers()
    before = state_bytes(model)
    with pytest.raises(ValueError, match="scale"):
        apply_random_mask(model, ["first"], density=0.1, scale=scale)
    assert state_bytes(model) == before and type(model.first) is torch.nn.Linear


@pytest.mark.parametrize("method", ["random_masking", "structured_masking"])
def test_methods_take_the_scale(method):
    applied = apply_method(small("opt"), method, density=0.25, scale="inverse_density")
    assert {layer.scale for layer in applied.mask.layers.values()} == {4.0}
