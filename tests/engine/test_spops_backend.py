"""The spops backend: equal to the reference where IST-DASLab's spops is built, clear errors where it is not."""

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rmbook import sample_mask
from rmbook.engine.product_spops import TOKEN_CHUNK, check_spops, sampled_product
from rmbook.engine.product_torch import sampled_product_reference


def why_not(device_type):
    try:
        check_spops(device_type)
    except ImportError as error:
        return str(error)
    return "" if device_type == "cpu" or torch.cuda.is_available() else "there is no GPU on this machine"


needs_spops = pytest.mark.skipif(bool(why_not("cpu")), reason=why_not("cpu"))


def relative_error(device, tokens, shape, density, dtype, seed=0):
    mask = sample_mask(shape, density, seed, "w").to(device)
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(tokens, shape[0], generator=generator).to(device, dtype)
    right = torch.randn(tokens, shape[1], generator=generator).to(device, dtype)
    got = sampled_product(left, right, mask.row_starts, mask.columns)
    exact = sampled_product_reference(left.double(), right.double(), mask.rows, mask.columns)
    assert got.dtype == torch.float32 and got.shape == exact.shape
    # Of what is added up, not of the sum: terms that cancel leave their rounding errors.
    terms = sampled_product_reference(left.double().abs(), right.double().abs(), mask.rows, mask.columns)
    return float((got - exact).norm() / terms.norm().clamp_min(1e-30))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("density", [0.0, 0.003, 0.05, 1.0])
def test_equals_the_reference_in_double_precision(device, dtype, density):
    if why_not(device):
        pytest.skip(why_not(device))
    assert relative_error(device, 700, (96, 80), density, dtype) < 1e-6


@needs_spops
@given(st.integers(0, 70), st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 9))
@settings(max_examples=50, deadline=None)
def test_equals_the_reference_for_any_shape(tokens, out, width, density, seed):
    assert relative_error("cpu", tokens, (out, width), density, torch.float32, seed) < 1e-6


@needs_spops
def test_long_batches_are_taken_in_pieces():
    assert relative_error("cpu", 2 * TOKEN_CHUNK + 3, (5, 7), 0.5, torch.bfloat16) < 1e-6


@needs_spops
def test_operands_that_need_a_gradient_and_are_not_contiguous():
    mask = sample_mask((6, 5), 0.5, 0, "w")
    left, right = torch.randn(6, 9, requires_grad=True).t(), torch.randn(9, 10)[:, ::2]
    exact = sampled_product_reference(left.double(), right.double(), mask.rows, mask.columns)
    got = sampled_product(left, right, mask.row_starts, mask.columns)
    assert (got - exact).norm() / exact.norm() < 1e-6


def test_float64_is_refused():
    mask = sample_mask((6, 5), 0.5, 0, "w")
    with pytest.raises(TypeError, match="float64"):
        sampled_product(torch.ones(3, 6).double(), torch.ones(3, 5).double(), mask.row_starts, mask.columns)


# ---------------------------------------------------------------------------------------- which spops is installed


@pytest.fixture
def site(tmp_path, monkeypatch):
    """An empty folder that is the only place where modules are found, and no memory of an installed spops."""
    check_spops.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0].startswith("spops")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "meta_path", [finder for finder in sys.meta_path if "Editable" not in repr(finder)])
    yield tmp_path
    check_spops.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0].startswith("spops")]:
        del sys.modules[name]


def package(site, files):
    for name, text in files.items():
        (site / name).parent.mkdir(exist_ok=True)
        (site / name).write_text(text)


def test_missing_spops_is_named(site):
    with pytest.raises(ImportError, match="not installed.*IST-DASLab/spops"):
        check_spops()


@pytest.mark.parametrize("imports", ["import h5py_that_is_not_here", "database = None"])
def test_the_astronomers_package_is_recognised_even_where_its_import_fails(site, imports):
    package(site, {"spops/__init__.py": imports, "spops/spops.py": ""})
    with pytest.raises(ImportError, match="not IST-DASLab's.*PyPI.*pip uninstall spops"):
        check_spops()
    assert "spops" not in sys.modules


@pytest.mark.parametrize("device_type, compiled", [("cpu", "spops_backend"), ("cuda", "spops_backend_cpu")])
def test_a_build_without_the_needed_part_is_named(site, device_type, compiled):
    package(site, {"spops/__init__.py": "", "spops/sddmm.py": "", f"{compiled}.py": ""})
    with pytest.raises(ImportError, match=f"built without .* part for '{device_type}'"):
        check_spops(device_type)
    other = "cuda" if device_type == "cpu" else "cpu"
    assert check_spops(other).__file__ == str(site / "spops" / "__init__.py")


def test_other_devices_are_refused():
    with pytest.raises(ValueError, match="'mps'"):
        check_spops("mps")
