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
from rmbook.adapters.adapter_file import content_digest, read_adapter
from rmbook.adapters.adapter_header import FIELDS
from rmbook.adapters.base import base_fingerprint
from rmbook.engine.masking import apply_masks
from rmbook.masks.recipe import STRUCTURES


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


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("store_positions", [False, True])
def test_every_structure_round_trips_with_and_without_positions(tmp_path, structure, store_positions):
    model = TwoLayers()
    masking = apply_random_mask(model, ["first", "second"], density=0.1, seed=4, structure=structure)
    for values in masking.parameters():
        values.data.normal_()
    save_adapter(masking, tmp_path / "a.safetensors", store_positions=store_positions)
    fresh = TwoLayers()
    loaded = load_adapter(fresh, tmp_path / "a.safetensors")
    x = torch.randn(3, 24)
    assert torch.equal(fresh(x), model(x)) and loaded.recipe == masking.recipe


def test_masks_that_were_given_are_stored_with_their_positions(tmp_path):
    _, drawn = trained()
    model = TwoLayers()
    masking = apply_masks(model, {name: layer.mask for name, layer in drawn.layers.items()})
    for values in masking.parameters():
        values.data.normal_()
    save_adapter(masking, tmp_path / "a.safetensors")
    fresh = TwoLayers()
    loaded = load_adapter(fresh, tmp_path / "a.safetensors")
    x = torch.randn(3, 24)
    assert torch.equal(fresh(x), model(x))
    assert loaded.recipe is None and loaded.density is None and loaded.targets == ("first", "second")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_values_can_be_stored_rounded(tmp_path, dtype):
    _, masking = trained()
    save_adapter(masking, tmp_path / "a.safetensors", dtype=dtype)
    loaded = load_adapter(TwoLayers(), tmp_path / "a.safetensors")
    for own, back in zip(masking.parameters(), loaded.parameters(), strict=True):
        assert back.dtype == torch.float32 and torch.equal(back, own.to(dtype).float())


def test_values_that_are_not_finite_are_not_saved(tmp_path):
    _, masking = trained()
    next(masking.parameters()).data[3] = 1e6
    with pytest.raises(ValueError, match="not all finite in torch.float16"):
        save_adapter(masking, tmp_path / "a.safetensors", dtype=torch.float16)
    next(masking.parameters()).data[3] = float("nan")
    with pytest.raises(ValueError, match="diverged"):
        save_adapter(masking, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="dtype must be one of"):
        save_adapter(masking, tmp_path / "a.safetensors", dtype=torch.int8)
    assert list(tmp_path.iterdir()) == []


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


@pytest.mark.parametrize("options", [{}, {"store_positions": True, "dtype": torch.bfloat16}])
def test_ten_thousand_random_corruptions_are_refused(tmp_path, options):
    path, (_, masking) = tmp_path / "a.safetensors", trained()
    save_adapter(masking, path, **options)
    whole = path.read_bytes()
    names = [name.encode() for name in ("first.values", "second.values", "recipe", "layers", "content", "F32", "seed")]
    fresh, chooser = TwoLayers(), random.Random(0)
    before = state_bytes(fresh)
    for number in range(5000):
        damaged = bytearray(whole)
        if number % 10 == 0:
            del damaged[chooser.randrange(len(damaged)) :]
        elif number % 10 == 1:  # bytes inserted or removed
            place = chooser.randrange(len(damaged))
            damaged[place : place + chooser.randrange(3)] = chooser.randbytes(chooser.randrange(4))
        elif number % 10 == 2:  # keys exchanged
            one, two = chooser.sample(names, 2)
            damaged = bytearray(whole.replace(one, b"\0").replace(two, one).replace(b"\0", two))
        else:
            for _ in range(chooser.choice([1, 1, 2, 8])):
                damaged[chooser.randrange(len(damaged))] ^= 1 << chooser.randrange(8)
        if damaged == whole:
            continue
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
        lambda m, t: m.update(recipe=m["recipe"].replace('"seed": 4', '"seed": 5')),
        lambda m, t: m.update(recipe="null"),
        lambda m, t: m.pop("recipe"),
        lambda m, t: m.update(extra="1"),
        lambda m, t: m.clear(),
        lambda m, t: m.update(format="rmbook-adapter-1"),
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


def _layer(m, **changes):
    layers = json.loads(m["layers"])
    layers["first"] |= changes
    m["layers"] = json.dumps(layers)


@pytest.mark.parametrize(
    "change",
    [
        lambda m, t: t["first.positions"].neg_(),
        lambda m, t: t["first.positions"].copy_(t["first.positions"].flip(0)),
        lambda m, t: t["first.positions"].add_(40 * 24),
        lambda m, t: t.update({"first.positions": t["first.positions"].float()}),
        lambda m, t: t.update({"first.positions": t["first.positions"][:-1].clone()}),
        lambda m, t: (t.pop("first.positions"), t.pop("second.positions"), m.update(recipe="null")),
        lambda m, t: t["first.values"].fill_(float("nan")),
        lambda m, t: t.update({"first.values": t["first.values"].to(torch.int32)}),
        lambda m, t: t.pop("first.values"),
        lambda m, t: m.update(layers="[]"),
        lambda m, t: m.update(layers='{"first": 3}'),
        lambda m, t: m.update(recipe='{"targets": 3}'),
        lambda m, t: m.update(recipe="7"),
        lambda m, t: _layer(m, shape=[24, 40]),
        lambda m, t: _layer(m, shape=[0, 1]),
        lambda m, t: _layer(m, digest="0"),
    ],
)
def test_a_file_made_to_deceive_is_refused_though_its_hash_is_right(tmp_path, change):
    path, (_, masking) = tmp_path / "a.safetensors", trained()
    save_adapter(masking, path, store_positions=True)

    def change_and_sign(metadata, tensors):
        change(metadata, tensors)
        metadata["content"] = content_digest(tensors, metadata)

    _edit(path, change_and_sign)
    with pytest.raises(AdapterError):
        read_adapter(path)
    assert set(FIELDS) < set(safetensors.safe_open(path, "pt").metadata())


def test_positions_that_differ_on_this_machine_are_refused(saved, monkeypatch):
    path, _, _ = saved
    genuine = STRUCTURES["entries"]
    monkeypatch.setitem(STRUCTURES, "entries", lambda shape, p, seed, name: genuine(shape, p, seed + 1, name))
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
