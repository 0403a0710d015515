"""The norm of the Hessian against dense Hessians in float64, and against closed forms."""

import numpy as np
import pytest
import torch
from conftest import TwoLayers
from hypothesis import given, settings
from hypothesis import strategies as st
from test_landscape import Fit, masked, rows
from torch import nn

from rmbook import apply_masks, sample_mask
from rmbook.landscape.curvature import hessian_norm
from rmbook.landscape.landscape import Landscape
from rmbook.methods.apply import full_finetuning, lora
from rmbook.offline.digits import MLP_TARGETS, Digits, PretrainingConfig, new_vit
from rmbook.theory.regression import ColumnMasks, gram_eigenvalues, sample_regression
from rmbook.training.objectives import Objective


class Form(nn.Module):
    """The loss w' A w / 2, whose Hessian is A."""

    def __init__(self, matrix):
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.w = nn.Parameter(torch.ones(len(matrix), dtype=matrix.dtype))


class Value(Objective):
    def loss(self, model, examples):
        return len(examples) * (model.w @ model.matrix @ model.w) / 2


def form(eigenvalues, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    eigenvalues = torch.as_tensor(eigenvalues, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues), generator=generator, dtype=torch.float64))[0]
    return Landscape(Form((turn * eigenvalues @ turn.T).to(dtype)), [0, 1, 2], Value())


def net(density=0.2, scale=1.0):
    """A masked network away from S = 0, where the Hessian of this loss has both signs."""
    model, masking = masked(density, scale)
    return model, masking, Landscape(model, rows(23), Fit(), batch_size=10)


def dense_hessian(landscape):
    """The whole Hessian, (n, n), one product a row."""
    return torch.stack([landscape.hessian_product(row) for row in torch.eye(landscape.size, dtype=landscape.dtype)])


def spectrum(landscape):
    """Eigenvalues by falling magnitude."""
    values = torch.linalg.eigvalsh(dense_hessian(landscape)).numpy()
    return values[np.argsort(-np.abs(values))]


def full_hessian(weights, data):
    """The Hessian over all entries of the two target matrices, without any of the package's code."""
    x, y = (torch.stack([row[place] for row in data]) for place in range(2))
    model = TwoLayers(torch.float64)
    shapes = [weight.shape for weight in weights]

    def loss(flat):
        pieces = flat.split([shape.numel() for shape in shapes])
        values = {f"{n}.weight": p.view(s) for n, p, s in zip(("first", "second"), pieces, shapes, strict=True)}
        return (torch.func.functional_call(model, values, (x,)) - y).square().sum() / len(x)

    return torch.func.hessian(loss)(torch.cat([weight.reshape(-1) for weight in weights]))


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_a_mask_takes_a_principal_submatrix_and_a_scale_its_square(scale):
    model, masking, landscape = net(0.04, scale)
    hessian = dense_hessian(landscape)
    layers = list(masking.layers.values())
    chosen = torch.cat([layers[0].mask.positions.long(), 24 * 40 + layers[1].mask.positions.long()])
    masking.merge()
    full = full_hessian([model.first.weight.detach(), model.second.weight.detach()], rows(23))
    torch.testing.assert_close(hessian, scale**2 * full[chosen][:, chosen], rtol=1e-9, atol=1e-12)
    assert full[chosen][:, chosen].abs().max() > 1e-3


@pytest.mark.parametrize("density", [0.02, 0.2])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_norm_of_a_masked_net_is_that_of_the_dense_hessian(density, scale):
    model, masking, landscape = net(density, scale)
    wanted = spectrum(landscape)
    assert wanted.min() < -1e-3 * wanted.max(), "negative curvature is part of this test"
    found = hessian_norm(landscape, tolerance=1e-7, max_iterations=1000)
    assert found.converged and found.eigenvalue == pytest.approx(wanted[0], rel=1e-9)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_full_finetuning_and_lora_against_a_second_implementation(method):
    model = TwoLayers(torch.float64)
    if method == "full":
        full_finetuning(model, exclude=["first", "last"])
    else:
        torch.manual_seed(0)
        lora(model, ["second"], rank=2)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.normal_(std=0.3)
    data = rows(12)
    landscape = Landscape(model, data, Fit(), batch_size=5)
    trained = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    assert (set(trained) == {"second.weight", "second.bias"}) == (method == "full")

    def loss(values):
        x, y = (torch.stack([row[place] for row in data]) for place in range(2))
        return (torch.func.functional_call(model, values, (x,)) - y).square().sum() / len(x)

    parts = torch.func.hessian(loss)(trained)
    wanted = torch.cat([torch.cat([parts[a][b].reshape(trained[a].numel(), -1) for b in trained], 1) for a in trained])
    torch.testing.assert_close(dense_hessian(landscape), wanted, rtol=1e-9, atol=1e-12)
    dense = torch.linalg.eigvalsh(wanted)
    found = hessian_norm(landscape, tolerance=1e-6, max_iterations=2000)
    assert found.converged and found.norm == pytest.approx(dense.abs().max().item(), rel=1e-9)


@pytest.mark.parametrize("density", [0.02, 0.3, 1.0])
def test_linear_regression_has_the_gram_matrix_eigenvalues(density):
    """The Hessian of equation (1) is M X' X M / n, and lambda_1 belongs to the Gram matrix X M X'."""
    n, d = 12, 300
    features, targets, _ = sample_regression(n, d, seed=0)
    model = nn.Sequential(nn.Linear(d, 1, bias=False, dtype=torch.float64))
    apply_masks(model, {"0": sample_mask((1, d), density, 3, "rmbook.regression")})
    data = [(torch.tensor(x), torch.tensor([y])) for x, y in zip(features, targets, strict=True)]
    landscape = Landscape(model, data, Fit(half=True), batch_size=5)
    wanted = gram_eigenvalues(features, ColumnMasks(d, density, 3)) / n
    assert hessian_norm(landscape, tolerance=1e-6).eigenvalue == pytest.approx(wanted[0], rel=1e-10)
    everything = np.sort(np.linalg.eigvalsh(dense_hessian(landscape).numpy()))[::-1]
    k = min(n, landscape.size)
    np.testing.assert_allclose(everything[:k], wanted[:k], rtol=1e-8, atol=1e-10 * wanted[0])


signed = st.floats(-3, 3, allow_nan=False).map(lambda x: round(x, 3))


@settings(max_examples=60, deadline=None)
@given(st.lists(signed, min_size=1, max_size=12), st.floats(3.5, 100), st.booleans(), st.integers(0, 2**70))
def test_any_dominant_eigenvalue_is_found_with_its_sign(rest, largest, negative, seed):
    eigenvalue = -largest if negative else largest
    found = hessian_norm(form([eigenvalue, *rest]), tolerance=1e-6, max_iterations=500, seed=seed)
    assert found.converged and found.residual <= 1e-6
    assert found.eigenvalue == pytest.approx(eigenvalue, rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.lists(signed, min_size=1, max_size=12), st.integers(0, 1000), st.integers(1, 12))
def test_the_residual_bounds_the_distance_to_an_eigenvalue(eigenvalues, seed, iterations):
    """Whether converged or not, in any spectrum, ties and zeros included."""
    found = hessian_norm(form(eigenvalues), tolerance=1e-12, max_iterations=iterations, seed=seed)
    assert found.iterations <= iterations and found.converged == (found.residual <= 1e-12)
    nearest = min(abs(found.eigenvalue - value) for value in eigenvalues)
    assert nearest <= found.residual * found.norm + 1e-12
    assert found.norm <= max(map(abs, eigenvalues)) + 1e-12


@pytest.mark.parametrize("gap", [0.0, 1e-9, 1e-3])
def test_opposite_eigenvalues_of_the_same_size_are_told_apart(gap):
    """Plain power iteration goes round in circles here: its Rayleigh quotient stays anywhere in between."""
    found = hessian_norm(form([4.0, -4.0 - gap, 1.0, -0.5, 0.1]), tolerance=1e-8, keep_vector=True)
    assert found.converged and found.norm == pytest.approx(4.0 + gap, rel=1e-7 + gap)
    landscape = form([4.0, -4.0 - gap, 1.0, -0.5, 0.1])
    product = landscape.hessian_product(found.vector)
    torch.testing.assert_close(product, found.eigenvalue * found.vector, rtol=0, atol=1e-6)
    assert found.vector.norm().item() == pytest.approx(1)


def test_too_few_iterations_are_reported():
    eigenvalues = np.linspace(0.9, 1, 200)
    found = hessian_norm(form(eigenvalues), tolerance=1e-6, max_iterations=3)
    assert not found.converged and found.residual > 1e-6 and found.iterations == 3 and found.vector is None


@pytest.mark.parametrize("size", [1, 5, 100])
def test_a_zero_hessian(size):
    landscape = form(np.zeros(size))
    found = hessian_norm(landscape)
    assert found.converged and (found.eigenvalue, found.residual, found.iterations) == (0.0, 0.0, 1)


def test_the_same_seed_gives_the_same_bits():
    landscape = net()[-1]
    one, two = (hessian_norm(landscape, max_iterations=3, seed=5, keep_vector=True) for _ in range(2))
    assert torch.equal(one.vector, two.vector) and one.eigenvalue == two.eigenvalue
    assert hessian_norm(landscape, max_iterations=3, seed=6).eigenvalue != one.eigenvalue


def test_single_precision_reaches_the_default_tolerance():
    eigenvalues = [-50.0, 20.0, *np.linspace(-5, 5, 60)]
    found = hessian_norm(form(eigenvalues, dtype=torch.float32), tolerance=1e-5)
    assert found.converged and found.eigenvalue == pytest.approx(-50, rel=1e-5)


def test_a_vision_transformer_in_double_precision():
    """Attention, layer norms and a softmax, whose fused forms have no second derivative."""
    model = new_vit(PretrainingConfig(hidden_size=8, layers=2))
    first = next(name for name, _ in model.named_modules() if name.endswith(MLP_TARGETS[0]))
    apply_masks(model, {first: sample_mask((32, 8), 0.1, 0, "x")})  # before the second layer's attention
    data = torch.utils.data.Subset(Digits("train", "mirrored"), range(10))
    landscape = Landscape(model, data, batch_size=4, double=True)
    hessian, point, step = dense_hessian(landscape), landscape.point(), 1e-5
    units = torch.eye(landscape.size, dtype=torch.float64)
    differences = [landscape.gradient(point + step * u) - landscape.gradient(point - step * u) for u in units]
    torch.testing.assert_close(hessian, torch.stack(differences) / (2 * step), rtol=1e-5, atol=1e-8)
    found = hessian_norm(landscape, tolerance=1e-6, max_iterations=2000)
    assert found.norm == pytest.approx(torch.linalg.matrix_norm(hessian, 2).item(), rel=1e-6)


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="max_iterations must be an integer of at least 1"):
        hessian_norm(form([1.0, 2.0]), max_iterations=0)
    with pytest.raises(ValueError, match="infinite or not a number.*double=True"):
        hessian_norm(form([np.nan] * 30))
