"""Adapters from strangers: forged, huge or special files end in one short error, at once, and change no model."""

import json
import os
import socket
import sys
import tracemalloc
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import TwoLayers, state_bytes
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from rmbook import AdapterBank, apply_random_mask, load_adapter, save_adapter
from rmbook.adapters.adapter_file import check_adapter, content_digest
from rmbook.adapters.adapter_header import FIELDS
from rmbook.adapters.base import base_fingerprint
from rmbook.adapters.errors import AdapterCorruptError, AdapterError
from rmbook.adapters.merged import save_merged
from rmbook.adapters.shira import save_as_shira
from rmbook.adapters.shira_folder import ShiraError
from rmbook.methods.architectures import conv1d_to_linear
from rmbook.tensor_files import HEADER_LIMIT, read_safetensors

MEBIBYTE = 2**20


def refused(path, model=None, error=AdapterError):
    """Every reader refuses the file with one short line, in little memory, and the model stays as it is."""
    model = model or TwoLayers()
    before = state_bytes(model)
    for read in (lambda: load_adapter(model, path), lambda: AdapterBank(model).add("a", path)):
        tracemalloc.start()
        with pytest.raises(error) as caught:
            read()
        assert tracemalloc.get_traced_memory()[1] < 100 * MEBIBYTE
        tracemalloc.stop()
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
        assert state_bytes(model) == before and all(type(child) is nn.Linear for child in model.children())
    return str(caught.value)


def forged(path, change, density=0.2, store_positions=False, model=None):
    """Save an adapter, change its header and tensors, and sign it again."""
    masking = apply_random_mask(model or TwoLayers(), ["first", "second"], density=density)
    save_adapter(masking, path, store_positions=store_positions)
    masking.remove()
    with safetensors.safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
    fields = {name: json.loads(metadata[name]) for name in ("recipe", "scale", "layers")}
    change(metadata, fields, tensors)
    metadata |= {name: json.dumps(value) for name, value in fields.items()}
    metadata["content"] = content_digest(tensors, metadata)
    safetensors.torch.save_file(tensors, path, metadata)
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda m, f, t: f["layers"]["first"].update(shape=[2**30, 2**30]),
        lambda m, f, t: f["layers"]["first"].update(shape=[24, 40, 1]),
        lambda m, f, t: f["layers"]["first"].update(shape=[40.0, 24]),
        lambda m, f, t: f["layers"]["first"].update(shape=[True, 24]),
        lambda m, f, t: f["layers"]["first"].update(digest=["0" * 64]),
        lambda m, f, t: f["layers"].update({"third": f["layers"]["first"]}),
        lambda m, f, t: f.update(layers=[[]] * 1000),
        lambda m, f, t: f.update(recipe=[1]),
        lambda m, f, t: f["recipe"].update(density=1e-300),
        lambda m, f, t: f["recipe"].update(density=True),
        lambda m, f, t: f["recipe"].update(density=float("nan")),
        lambda m, f, t: f["recipe"].update(seed=10**100),
        lambda m, f, t: f["recipe"].update(seed=1.5),
        lambda m, f, t: f["recipe"].update(structure=["entries"]),
        lambda m, f, t: f["recipe"].update(structure="leading_columns"),
        lambda m, f, t: f["recipe"].update(targets="first"),
        lambda m, f, t: f["recipe"].update(more=1),
        lambda m, f, t: f.update(scale=1e308),
        lambda m, f, t: f.update(scale=-1.0),
        lambda m, f, t: f.update(scale=True),
        lambda m, f, t: f.update(scale=float("inf")),
        lambda m, f, t: m.update(rmbook_version="9" * 1000),
        lambda m, f, t: t["first.values"].fill_(torch.inf),
        lambda m, f, t: t.update({"first.values": torch.full_like(t["first.values"], 1e300, dtype=torch.float64)}),
        lambda m, f, t: t.update({"first.values": t["first.values"][None]}),
        lambda m, f, t: t.update({"third.values": torch.zeros(3)}),
    ],
)
def test_a_forged_field_is_refused_though_the_hash_is_right(tmp_path, change):
    refused(forged(tmp_path / "a.safetensors", change), error=AdapterCorruptError)


def test_deep_nesting_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    for field in ("recipe", "layers"):
        forged(path, lambda m, f, t: None)
        with safetensors.safe_open(path, "pt") as file:
            metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
        metadata[field] = "[" * 100_000
        metadata["content"] = content_digest(tensors, metadata)
        safetensors.torch.save_file(tensors, path, metadata)
        refused(path, error=AdapterCorruptError)


def test_a_mask_of_the_transposed_shape_is_refused_by_the_bank(tmp_path):
    model = TwoLayers()
    layer = model.first.weight.shape

    def turn(metadata, fields, tensors):
        fields["layers"]["first"]["shape"] = list(layer)[::-1]
        fields["recipe"] = None

    refused(forged(tmp_path / "a.safetensors", turn, store_positions=True), error=AdapterCorruptError)


def test_the_sum_must_be_finite_not_the_values_alone(tmp_path):
    model = TwoLayers()
    with torch.no_grad():
        model.first.weight.fill_(3e38)
    path = forged(tmp_path / "a.safetensors", lambda m, f, t: t["first.values"].fill_(3e38), model=model)
    assert "infinite" in refused(path, model, AdapterCorruptError)


def test_strengths_that_make_weights_infinite_change_nothing(tmp_path):
    model, path = TwoLayers(), tmp_path / "a.safetensors"
    forged(path, lambda m, f, t: t["first.values"].fill_(1.0))
    bank = AdapterBank(model)
    bank.add("a", path)
    bank.activate("a")
    before = state_bytes(model)
    with pytest.raises(ValueError, match="infinite; nothing was changed"):
        bank.activate("a", strengths={"a": 1e300})
    assert state_bytes(model) == before and bank.active == {"a": 1.0}
    bank.add("b", path)  # while another is active, against the base
    assert state_bytes(model) == before


def raw(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_huge_headers_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    refused(raw(path, {str(number): empty for number in range(400_000)}), error=AdapterCorruptError)
    refused(raw(path, {"__metadata__": {str(number): "" for number in range(500_000)}}), error=AdapterCorruptError)
    refused(raw(path, b"[" * (HEADER_LIMIT - 1)), error=AdapterCorruptError)
    refused(raw(path, b"[" + b"[]," * (HEADER_LIMIT // 3 - 2) + b"[]]"), error=AdapterCorruptError)
    path.write_bytes(b"\xff" * 8 + b"x")
    refused(path, error=AdapterCorruptError)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2**47, 2**47], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [4], "data_offsets": [16, 32]},
        {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": 4, "data_offsets": [0, 16]},
        {"dtype": ["F32"], "shape": [4], "data_offsets": [0, 16]},
        {"dtype": "F99", "shape": [4], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], "more": 1},
        {"dtype": "F32", "shape": [True] * 4, "data_offsets": [0, 4]},
        [1, 2, 3],
    ],
)
def test_layouts_that_do_not_describe_the_file_are_refused(tmp_path, entry):
    refused(raw(tmp_path / "a.safetensors", {"a": entry}, bytes(16)), error=AdapterCorruptError)


def test_a_sparse_file_of_50_gigabytes_is_refused(tmp_path):
    size = 50 * 2**30
    path = raw(tmp_path / "a.safetensors", {"a": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}})
    with open(path, "r+b") as file:
        file.truncate(os.path.getsize(path) + size)
    refused(path, error=AdapterCorruptError)
    with pytest.raises(AdapterCorruptError):
        check_adapter(path)


@pytest.mark.skipif(sys.platform != "linux", reason="limits a process's memory as Linux does")
@pytest.mark.parametrize("times", [0.5, 1.5])  # the file is mapped twice: by safetensors, then by torch
def test_too_little_memory_is_no_fault_of_the_file(tmp_path, times):
    import resource

    size = 2**28
    path = raw(tmp_path / "a.safetensors", {"a": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}})
    with open(path, "r+b") as file:
        file.truncate(os.path.getsize(path) + size)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + int(times * size), before[1]))
    try:
        with pytest.raises(MemoryError):
            read_safetensors(path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert read_safetensors(path)[1]["a"].shape == (size // 4,)


@pytest.mark.skipif(os.name != "posix", reason="has no such files")
def test_special_files_are_refused_without_waiting(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "fifo")
    monkeypatch.chdir(tmp_path)  # a socket's name is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        for name, kind in (("fifo", "a FIFO"), ("socket", "a socket"), ("/dev/zero", "a device"), (".", "a folder")):
            assert kind in refused(tmp_path / name, error=AdapterCorruptError)
            masking = apply_random_mask(TwoLayers(), ["first"], density=0.1)
            with pytest.raises(OSError, match=kind):
                save_adapter(masking, tmp_path / name)


def test_saving_through_a_symbolic_link_writes_the_file_behind_it(tmp_path):
    masking = apply_random_mask(TwoLayers(), ["first"], density=0.1)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "a.safetensors")
    for _ in range(2):  # the file is new, then older
        save_adapter(masking, tmp_path / "link")
        assert (tmp_path / "link").is_symlink() and not (tmp_path / "real" / "a.safetensors").is_symlink()
    check_adapter(tmp_path / "real" / "a.safetensors")


def test_the_shared_files_are_refused(shared):
    for name in ("adapter_bomb", "adapter_float64_1e300"):
        refused(shared / "cases" / "inputs" / f"{name}.safetensors")
    with pytest.raises(AdapterCorruptError):
        check_adapter(shared / "cases" / "inputs" / "adapter_bomb.safetensors")


def test_gpt2_goes_back_in_its_own_form_or_not_at_all(tmp_path):
    torch.manual_seed(0)
    sizes = dict(n_embd=16, n_layer=1, n_head=2, n_positions=32, vocab_size=50, bos_token_id=0, eos_token_id=0)
    genuine, ids = GPT2LMHeadModel(GPT2Config(**sizes)).eval(), torch.arange(8)[None]
    genuine.save_pretrained(tmp_path / "base")
    model = conv1d_to_linear(GPT2LMHeadModel.from_pretrained(tmp_path / "base").eval())
    plain = model.state_dict()
    assert all(torch.equal(value, plain[name]) for name, value in genuine.state_dict().items())
    masking = apply_random_mask(model, ["c_attn", "attn.c_proj"], density=0.05)  # c_proj is square: no shape tells
    with torch.no_grad():
        for values in masking.parameters():
            values.normal_()
    wanted = model(ids).logits
    save_merged(masking, tmp_path / "merged")
    model.save_pretrained(tmp_path / "saved")  # as Trainer does
    for folder in ("merged", "saved"):
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / folder).eval()
        torch.testing.assert_close(loaded(ids).logits, wanted, rtol=0, atol=1e-5)
    with pytest.raises(ShiraError, match="Conv1D"):
        save_as_shira(masking, tmp_path / "shira")
    assert not (tmp_path / "shira").exists()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    other = conv1d_to_linear(GPT2LMHeadModel(GPT2Config(**sizes)).eval())
    apply_random_mask(other, ["c_attn", "attn.c_proj"], density=0.05)
    other.load_state_dict(state)
    assert torch.equal(other(ids).logits, wanted) and base_fingerprint(other) == base_fingerprint(model)


def test_the_fields_are_those_of_the_format():
    """An adapter of earlier versions has exactly these, and loads."""
    assert FIELDS == ("format", "rmbook_version", "base_fingerprint", "recipe", "scale", "layers")
