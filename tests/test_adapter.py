"""Adapters: exact round trips, and named refusals of everything that is not the same base and the same file."""

import json
import os
import random

import pytest
import safetensors.torch
import torch
from conftest import TwoLayers, state_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rmbook import (
    AdapterBaseError,
    AdapterCorruptError,
    AdapterError,
    TargetError,
    apply_random_mask,
    load_adapter,
    save_adapter,
)
from rmbook.adapter import base_fingerprint


def trained(dtype=torch.float32):
    model = TwoLayers(dtype)
    masking = apply_random_mask(model, ["first", "second"], density=0.1, seed=4)
    with torch.no_grad():
        for values in masking.parameters():
            values.normal_()
    return model, masking


@pytest.fixture
def saved(tmp_path):
    model, masking = trained()
    save_adapter(masking, tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors", model, masking


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_round_trip_is_exact(tmp_path, dtype):
    model, masking = trained(dtype)
    x = torch.randn(3, 24, dtype=dtype)
    model(x)  # merge, so that saving has to look past the merged weight
    save_adapter(masking, tmp_path / "a.safetensors")
    fresh = TwoLayers(dtype)
    loaded = load_adapter(fresh, tmp_path / "a.safetensors")
    assert torch.equal(fresh(x), model(x))
    assert (loaded.seed, loaded.density, loaded.targets) == (4, 0.1, ("first", "second"))
    loaded.remove()
    assert state_bytes(fresh) == state_bytes(TwoLayers(dtype))


def test_loading_into_another_process_that_drew_other_random_numbers(saved):
    path, model, _ = saved
    torch.rand(1000)
    fresh = TwoLayers()
    torch.manual_seed(12345)
    load_adapter(fresh, path)
    x = torch.randn(2, 24)
    assert torch.equal(fresh(x), model(x))


def test_the_file_is_small(saved):
    path, _, masking = saved
    assert path.stat().st_size < 4 * masking.trainable + 2000  # values only: positions follow from the seed


def test_fingerprint_sees_one_bit_and_ignores_the_mask():
    model = TwoLayers()
    plain = base_fingerprint(model)
    masking = apply_random_mask(model, ["first"], density=0.5)
    with torch.no_grad():
        next(masking.parameters()).fill_(1)
    model(torch.randn(1, 24))
    assert base_fingerprint(model) == plain
    masking.remove()
    with torch.no_grad():
        model.last.bias.view(torch.int32)[0] ^= 1
    assert base_fingerprint(model) != plain


def _other_weights(model):
    with torch.no_grad():
        model.last.bias[0] += 1e-6


def _other_dtype(model):
    model.bfloat16()


def _other_shape(model):
    model.second = nn.Linear(40, 17)


def _other_name(model):
    model.third = model.second
    del model.second


@pytest.mark.parametrize("change", [_other_weights, _other_dtype, _other_shape, _other_name])
def test_another_base_is_refused(saved, change):
    path, _, _ = saved
    fresh = TwoLayers()
    change(fresh)
    before = state_bytes(fresh)
    with pytest.raises(AdapterBaseError, match="fingerprint"):
        load_adapter(fresh, path)
    assert state_bytes(fresh) == before and all(type(m) is nn.Linear for m in fresh.children())


def test_every_truncation_is_refused(saved):
    path, _, _ = saved
    whole = path.read_bytes()
    fresh = TwoLayers()
    before = state_bytes(fresh)
    for length in [*range(0, len(whole), 37), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(AdapterCorruptError):
            load_adapter(fresh, path)
    assert state_bytes(fresh) == before


def test_every_kind_of_bit_flip_is_refused(saved):
    path, _, _ = saved
    whole = path.read_bytes()
    fresh = TwoLayers()
    before = state_bytes(fresh)
    chooser = random.Random(0)
    for _ in range(500):
        damaged = bytearray(whole)
        damaged[chooser.randrange(len(damaged))] ^= 1 << chooser.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(AdapterError):
            load_adapter(fresh, path)
    assert state_bytes(fresh) == before and all(type(m) is nn.Linear for m in fresh.children())


def _edit(path, change):
    with safetensors.safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}
    change(metadata, tensors)
    safetensors.torch.save_file(tensors, path, metadata)


@pytest.mark.parametrize(
    "change",
    [
        lambda m, t: m.update(seed="5"),
        lambda m, t: m.update(density="0.2"),
        lambda m, t: m.pop("targets"),
        lambda m, t: m.update(extra="1"),
        lambda m, t: m.clear(),
        lambda m, t: m.update(format="rmbook-adapter-2"),
        lambda m, t: t.update({"first.values": t["first.values"] * 2}),
        lambda m, t: t.pop("first.values"),
        lambda m, t: t.update({"first.values": t["second.values"], "second.values": t["first.values"]}),
        lambda m, t: m.update(base_fingerprint="0" * 64),
        lambda m, t: m.update(layers=json.dumps({})),
    ],
)
def test_edited_files_are_refused(saved, change):
    path, _, _ = saved
    _edit(path, change)
    with pytest.raises(AdapterCorruptError):
        load_adapter(TwoLayers(), path)


def test_positions_that_differ_on_this_machine_are_refused(saved, monkeypatch):
    path, _, _ = saved
    from rmbook import masking as module

    genuine = module.sample_mask
    monkeypatch.setattr(
        module, "sample_mask", lambda shape, density, seed, name: genuine(shape, density, seed + 1, name)
    )
    fresh = TwoLayers()
    with pytest.raises(AdapterError, match="other mask positions"):
        load_adapter(fresh, path)
    assert state_bytes(fresh) == state_bytes(TwoLayers())


def test_a_masked_model_is_refused_and_left_as_it_is(saved):
    path, model, _ = saved
    before = state_bytes(model)
    with pytest.raises(TargetError, match="masked already"):
        load_adapter(model, path)
    assert state_bytes(model) == before


def test_a_removed_mask_and_a_missing_folder_are_refused(tmp_path):
    _, masking = trained()
    with pytest.raises(FileNotFoundError, match="folder"):
        save_adapter(masking, tmp_path / "none" / "a.safetensors")
    with pytest.raises(FileNotFoundError, match="no adapter file"):
        load_adapter(TwoLayers(), tmp_path / "a.safetensors")
    masking.remove()
    with pytest.raises(ValueError, match="removed"):
        save_adapter(masking, tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_keeps_the_old_file_and_leaves_no_rubbish(saved, monkeypatch):
    path, _, masking = saved
    old = path.read_bytes()

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_adapter(masking, path)
    assert path.read_bytes() == old and list(path.parent.iterdir()) == [path]


@given(st.binary(max_size=300))
@settings(max_examples=100, deadline=None)
def test_any_bytes_at_all_are_refused_by_name(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "rubbish"
    path.write_bytes(content)
    with pytest.raises(AdapterCorruptError):
        load_adapter(nn.Linear(2, 2), path)
