"""Several adapters on one model: switching is exact, combining has the semantics that the documentation states."""

import pytest
import torch
from conftest import LargestTensor, TwoLayers, state_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rmbook import AdapterBaseError, TargetError, apply_random_mask, load_adapter, save_adapter
from rmbook.adapters.bank import AdapterBank

TARGETS = {"a": ["first", "second"], "b": ["second", "last"], "c": ["second"]}
DTYPES = (torch.float64, torch.float32, torch.bfloat16)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three overlapping adapters in each dtype, as files."""
    folder, found = tmp_path_factory.mktemp("adapters"), {}
    for dtype in DTYPES:
        for number, (name, targets) in enumerate(TARGETS.items()):
            masking = apply_random_mask(TwoLayers(dtype), targets, density=0.5, seed=number)
            torch.manual_seed(number)
            for values in masking.parameters():
                values.data.normal_()
            found[dtype, name] = folder / f"{name} {dtype}"
            save_adapter(masking, found[dtype, name])
    return found


def bank_of(files, dtype=torch.float32):
    model = TwoLayers(dtype)
    bank = AdapterBank(model)
    for name in TARGETS:
        bank.add(name, files[dtype, name])
    return model, bank


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", TARGETS)
def test_one_adapter_alone_is_the_merged_model_bit_for_bit(files, dtype, name):
    model, bank = bank_of(files, dtype)
    bank.activate(name)
    merged = TwoLayers(dtype)
    load_adapter(merged, files[dtype, name]).merge()
    assert state_bytes(model) == state_bytes(merged)


@given(st.lists(st.sets(st.sampled_from(sorted(TARGETS))), max_size=6), st.sampled_from(DTYPES))
@settings(max_examples=60, deadline=None)
def test_any_walk_through_adapters_ends_where_a_fresh_model_would_be(files, walk, dtype):
    model, bank = bank_of(files, dtype)
    for names in walk:
        bank.activate(*names)
    fresh, other = bank_of(files, dtype)
    other.activate(*reversed(sorted(walk[-1] if walk else ())))
    assert state_bytes(model) == state_bytes(fresh)
    bank.activate()
    assert state_bytes(model) == state_bytes(TwoLayers(dtype)) and bank.active == {}


def test_combined_adapters_add_up(files):
    model, bank = bank_of(files, torch.float64)
    bank.activate("a", "b", "c", strengths={"b": -0.5, "c": 2})
    base = TwoLayers(torch.float64)
    for name, layer in base.named_children():
        expected = layer.weight.clone()
        for adapter, strength in {"a": 1.0, "b": -0.5, "c": 2.0}.items():
            other = TwoLayers(torch.float64)
            load_adapter(other, files[torch.float64, adapter]).merge()
            expected += strength * (other.get_submodule(name).weight - layer.weight)
        torch.testing.assert_close(model.get_submodule(name).weight, expected, rtol=1e-13, atol=1e-13)
    assert bank.active == {"a": 1.0, "b": -0.5, "c": 2.0}


def test_a_switch_makes_nothing_of_the_weights_size(tmp_path):
    model = nn.Sequential(nn.Linear(400, 400))
    masking = apply_random_mask(model, ["0"], density=0.01)
    for values in masking.parameters():
        values.data.normal_()
    save_adapter(masking, tmp_path / "a")
    nnz = masking.trainable
    masking.remove()
    bank = AdapterBank(model)
    bank.add("a", tmp_path / "a")
    with LargestTensor() as seen:
        bank.activate("a")
        bank.activate()
    assert 0 < seen.largest <= nnz


def test_the_model_stays_one_of_plain_layers_and_requires_grad_is_kept(files):
    model, bank = bank_of(files)
    bank.activate("a", "b")
    assert all(type(layer) is nn.Linear and layer.weight.requires_grad for layer in model.children())
    model(torch.randn(2, 24)).sum().backward()
    assert model.first.weight.grad.shape == (40, 24)


def test_refusals_change_nothing(files, tmp_path):
    model, bank = bank_of(files)
    bank.activate("a")
    before = state_bytes(model)
    for call, error in [
        (lambda: bank.activate("b", "nobody"), KeyError),
        (lambda: bank.activate("b", strengths={"nobody": 1}), KeyError),
        (lambda: bank.activate("b", strengths={"b": float("nan")}), ValueError),
        (lambda: bank.add("a", files[torch.float32, "b"]), ValueError),
        (lambda: bank.add("d", tmp_path / "none"), FileNotFoundError),
        (lambda: bank.add("d", files[torch.bfloat16, "b"]), AdapterBaseError),
        (lambda: bank.remove("a"), ValueError),
        (lambda: bank.remove("nobody"), KeyError),
    ]:
        with pytest.raises(error):
            call()
        assert state_bytes(model) == before and bank.active == {"a": 1.0} and bank.names == ("a", "b", "c")
    bank.activate("b")
    bank.remove("a")
    assert bank.names == ("b", "c")


def test_masks_and_banks_do_not_mix(files):
    model = TwoLayers()
    apply_random_mask(model, ["first"], density=0.1)
    with pytest.raises(TargetError, match="masked already"):
        AdapterBank(model)
    model, bank = bank_of(files)
    bank.remove("c")
    masking = apply_random_mask(model, ["last"], density=0.1)
    with pytest.raises(TargetError, match="masked already|cannot mask"):
        bank.add("c", files[torch.float32, "c"])
    masking.remove()
    bank.add("c", files[torch.float32, "c"])
