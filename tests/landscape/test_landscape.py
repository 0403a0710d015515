"""Loss, gradient and Hessian-vector product over batches; lines; and that the model stays as it was."""

import copy
import weakref

import numpy as np
import pytest
import torch
from conftest import TwoLayers, state_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rmbook import TrainingConfig, apply_random_mask, train
from rmbook.landscape.landscape import Landscape
from rmbook.landscape.slices import loss_along_gradient, loss_along_path
from rmbook.methods.apply import apply_method, bitfit, full_finetuning, lora
from rmbook.training.objectives import Objective


class Fit(Objective):
    """Mean squared error, or half of it; a row's optional third entry is its weight."""

    def __init__(self, half=False):
        self.half = half

    def weight(self, examples):
        return sum(row[2] if len(row) > 2 else 1.0 for row in examples)

    def loss(self, model, examples):
        x, y = (torch.stack([row[place] for row in examples]) for place in range(2))
        weights = torch.tensor([row[2] if len(row) > 2 else 1.0 for row in examples], dtype=x.dtype)
        return (weights * (model(x) - y).square().sum(-1)).sum() * (0.5 if self.half else 1.0)


def rows(count, seed=0, dtype=torch.float64, weighted=False):
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(count, size, generator=generator, dtype=torch.float64).to(dtype) for size in (24, 3))
    weights = (0.5 + torch.rand(count, generator=generator)).tolist()
    return [(*row, weight) if weighted else row for *row, weight in zip(x, y, weights, strict=True)]


def masked(density=0.2, scale=1.0, dtype=torch.float64, spread=0.3):
    """A masked network whose S is not zero."""
    model = TwoLayers(dtype)
    masking = apply_random_mask(model, ["first", "second"], density=density, scale=scale)
    with torch.no_grad():
        for number, values in enumerate(masking.parameters()):
            values.copy_(torch.randn(values.shape, generator=torch.Generator().manual_seed(number)) * spread / scale)
    return model, masking


def with_method(name):
    model = TwoLayers(torch.float64)
    if name == "mask":
        return masked(0.2, 3.0)[0]
    if name == "lora":
        torch.manual_seed(0)
        return lora(model, ["first", "second"], rank=2)
    return full_finetuning(model) if name == "full" else bitfit(model)


METHODS = ["full", "lora", "mask", "bitfit"]


@pytest.mark.parametrize("name", METHODS)
def test_loss_and_gradient_are_those_of_plain_autograd(name):
    model, data = with_method(name), rows(17, weighted=True)
    landscape = Landscape(model, data, Fit(), batch_size=6)
    wanted = Fit().loss(model, data) / Fit().weight(data)
    gradient = torch.autograd.grad(wanted, [p for p in model.parameters() if p.requires_grad])
    gradient = torch.cat([piece.reshape(-1) for piece in gradient])
    assert landscape.loss() == pytest.approx(wanted.item(), rel=1e-12)
    torch.testing.assert_close(landscape.gradient(), gradient, rtol=1e-10, atol=1e-14)
    assert landscape.size == len(gradient)


@pytest.mark.parametrize("name", METHODS)
def test_hessian_product_is_the_derivative_of_the_gradient(name):
    landscape = Landscape(with_method(name), rows(9), Fit(), batch_size=4)
    vector, point, step = landscape.random_vector(1), landscape.random_vector(2) * 0.1, 1e-6
    difference = landscape.gradient(point + step * vector) - landscape.gradient(point - step * vector)
    torch.testing.assert_close(
        landscape.hessian_product(vector, point), difference / (2 * step), rtol=1e-4, atol=1e-5 * difference.abs().max()
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 40), st.booleans())
def test_the_size_of_a_batch_does_not_matter(count, one, other, weighted):
    model, data = masked()[0], rows(count, weighted=weighted)
    first, second = (Landscape(model, data, Fit(), batch_size=size) for size in (one, other))
    vector = first.random_vector(0)
    assert first.loss() == pytest.approx(second.loss(), rel=1e-12)
    torch.testing.assert_close(first.gradient(), second.gradient(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(first.hessian_product(vector), second.hessian_product(vector), rtol=1e-9, atol=1e-11)


class Live:
    """Counts the bytes that graphs keep for the backward pass, at most."""

    def __init__(self):
        self.now = self.most = 0

    def pack(self, tensor):
        held = [tensor]
        box = type("Box", (), {"held": held})()
        size = tensor.numel() * tensor.element_size()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(box, self.release, size)
        return box

    def release(self, size):
        self.now -= size

    def __enter__(self):
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda box: box.held[0])
        self.hooks.__enter__()
        return self

    def __exit__(self, *error):
        self.hooks.__exit__(*error)


@pytest.mark.parametrize("what", ["gradient", "hessian_product"])
def test_memory_does_not_grow_with_the_data(what):
    most = {}
    for count, batch_size in ((16, 16), (160, 16), (160, 160)):
        landscape = Landscape(masked()[0], rows(count), Fit(), batch_size=batch_size)
        call = getattr(landscape, what)
        with Live() as live:
            call(*([landscape.random_vector(0)] if what == "hessian_product" else []))
        most[count, batch_size] = live.most
    assert most[160, 16] == most[16, 16] > 0
    assert most[160, 160] > 2 * most[16, 16], "the counter sees what a larger batch costs"


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_left_as_it_was(name, double, fails, training):
    model, data = with_method(name), rows(9)
    model.train(training)
    model.last.train(not training)
    Fit().loss(model, data[:3]).backward()
    others = dict(model.named_parameters())
    before, modes = state_bytes(model), [module.training for module in model.modules()]
    wanted = {n: (p.requires_grad, None if p.grad is None else p.grad.clone(), p) for n, p in others.items()}
    output = model(data[0][0])
    landscape = Landscape(model, data, Fit(), batch_size=4, double=double)
    point = landscape.point() + 1
    if fails:
        landscape.objective.loss = failing(landscape.objective.loss)
    for call in (
        lambda: landscape.loss(point),
        lambda: landscape.gradient(point),
        lambda: landscape.hessian_product(point, point),
    ):
        if fails:
            with pytest.raises(KeyboardInterrupt):
                call()
        else:
            call()
        assert state_bytes(model) == before
        assert [module.training for module in model.modules()] == modes
        for parameter_name, parameter in model.named_parameters():
            flag, gradient, same = wanted[parameter_name]
            assert parameter is same and parameter.requires_grad == flag
            assert (parameter.grad is None) if gradient is None else torch.equal(parameter.grad, gradient)
        assert torch.equal(model(data[0][0]), output)


def failing(loss):
    calls = []

    def fail_in_the_second_batch(model, examples):
        calls.append(loss(model, examples))
        if len(calls) % 2 == 0:
            raise KeyboardInterrupt
        return calls[-1]

    return fail_in_the_second_batch


def test_a_merge_that_was_due_is_still_due():
    """Values changed by an optimiser reach the weight at the next forward pass, not here: the bits stay."""
    model, masking = masked()
    model(rows(1)[0][0])
    with torch.no_grad():
        for values in masking.parameters():
            values.add_(1.0)
    before = state_bytes(model)
    landscape = Landscape(model, rows(5), Fit())
    landscape.hessian_product(landscape.point())
    assert state_bytes(model) == before
    with masking.dense_form():
        inside = landscape.loss()
        landscape.hessian_product(landscape.point())
        assert all(layer.dense_form for layer in masking.layers.values())
    assert inside == pytest.approx(landscape.loss(), rel=1e-12)


def test_dropout_is_off_and_grad_mode_does_not_matter():
    model = nn.Sequential(nn.Dropout(0.5), TwoLayers(torch.float64)).train()
    landscape = Landscape(model, rows(8), Fit())
    plain = Landscape(copy.deepcopy(model[1]), rows(8), Fit())
    with torch.no_grad():
        assert landscape.loss() == plain.loss()
        assert torch.equal(landscape.gradient(), plain.gradient())
        vector = plain.random_vector(0)
        assert torch.equal(landscape.hessian_product(vector), plain.hessian_product(vector))


def test_double_precision_computes_from_the_models_own_numbers():
    single = masked(dtype=torch.float32)[0]
    data = rows(8, dtype=torch.float32)
    landscape = Landscape(single, data, Fit(), double=True)
    reference = copy.deepcopy(single).double()
    with torch.no_grad():  # seen, although the copy was made before
        for model in (single, reference):
            model.first.values.mul_(2.0)  # exact in both
    wanted = Landscape(reference, [tuple(t.double() for t in row) for row in data], Fit())
    vector = wanted.random_vector(0)
    assert landscape.dtype == torch.float64 and landscape.gradient().dtype == torch.float64
    torch.testing.assert_close(
        landscape.hessian_product(vector), wanted.hessian_product(vector), rtol=1e-12, atol=1e-14
    )
    assert landscape.loss() == pytest.approx(wanted.loss(), rel=1e-13)
    rough = Landscape(single, data, Fit())
    assert rough.dtype == torch.float32 and rough.gradient().dtype == torch.float32
    torch.testing.assert_close(rough.gradient().double(), landscape.gradient(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_lines_against_the_model_itself(name):
    model, data = with_method(name), rows(7)
    landscape = Landscape(model, data, Fit(), batch_size=3)
    here, away = landscape.point(), landscape.random_vector(3)

    def direct(point):
        moved, start = copy.deepcopy(model), 0
        with torch.no_grad():
            for parameter in (p for p in moved.parameters() if p.requires_grad):
                parameter.copy_(point[start : start + parameter.numel()].view(parameter.shape))
                start += parameter.numel()
            return (Fit().loss(moved, data) / len(data)).item()

    gradient = landscape.gradient()
    rates, fractions = [0.0, 0.01, 0.3], [0.0, 0.25, 1.0, 1.5]
    np.testing.assert_allclose(
        loss_along_gradient(landscape, rates), [direct(here - rate * gradient) for rate in rates], rtol=1e-10
    )
    np.testing.assert_allclose(
        loss_along_path(landscape, away, fractions=fractions),
        [direct(away + f * (here - away)) for f in fractions],
        rtol=1e-10,
    )
    assert len(loss_along_path(landscape, here, away)) == 11
    assert loss_along_path(landscape, here, away, [1.0])[0] == landscape.loss(away)


def test_a_small_step_lowers_the_loss_by_the_squared_gradient():
    landscape = Landscape(masked()[0], rows(12), Fit())
    fall = landscape.loss() - loss_along_gradient(landscape, [1e-6])[0]
    assert fall / 1e-6 == pytest.approx(landscape.gradient().square().sum().item(), rel=1e-3)


def test_the_path_from_before_training_to_after():
    model = TwoLayers(torch.float64)
    method = apply_method(model, "random_masking", targets=["first", "second"], density=0.3, seed=0)
    start, data = method.state(), rows(20)
    train(model, data, data, TrainingConfig(0.01, epochs=2), objective=EvaluatedFit(), method=method, progress=False)
    landscape = Landscape(model, data, Fit())
    losses = loss_along_path(landscape, landscape.point(start))
    assert torch.equal(landscape.point(start), torch.zeros(landscape.size, dtype=torch.float64))
    assert losses[-1] == pytest.approx(landscape.loss(), rel=1e-12)
    assert losses[0] > losses[-1]
    method.remove()
    assert losses[0] == pytest.approx((Fit().loss(model, data) / 20).item(), rel=1e-12)


class EvaluatedFit(Fit):
    def evaluate(self, model, examples):
        return self.loss(model, examples), None


def test_states_of_other_methods_are_refused():
    model = with_method("full")
    landscape = Landscape(model, rows(3), Fit())
    assert torch.equal(landscape.point(model.state_dict() | {"more": torch.zeros(1)}), landscape.point())
    state = model.state_dict()
    with pytest.raises(ValueError, match="'first.weight', or has it in another shape than"):
        landscape.point(state | {"first.weight": torch.zeros(2)})
    del state["last.bias"]
    with pytest.raises(ValueError, match="the state lacks 'last.bias'"):
        landscape.point(state)


def test_errors_say_what_to_do():
    model = TwoLayers(torch.float64)
    for data in ([], [(*row, 0.0) for row in rows(3)]):
        with pytest.raises(ValueError, match="examples of weight 0"):
            Landscape(model, data, Fit())
    with pytest.raises(ValueError, match="batch_size must be an integer of at least 1, got 0"):
        Landscape(model, rows(3), Fit(), batch_size=0)
    landscape = Landscape(model, rows(3), Fit())
    with pytest.raises(ValueError, match=rf"shape \({landscape.size},\).* got \(3,\)"):
        landscape.hessian_product(torch.zeros(3))
    with pytest.raises(ValueError, match="got ndarray"):
        landscape.loss(np.zeros(landscape.size))
    objective = Fit()
    objective.loss = lambda model, examples: torch.tensor(1.0)
    with pytest.raises(ValueError, match="cut off from them"):
        Landscape(model, rows(3), objective).gradient()
    with pytest.raises(ValueError, match="no trainable entries"):
        Landscape(model.requires_grad_(False), rows(3), Fit())
