"""Damaged and forged adapters: one short refusal, and the model stays as it is; or the model that was trained."""

import json
import random

import pytest
import torch
from conftest import TwoLayers, state_bytes
from fuzzing import damaged_bytes, damaged_value, refusal, seeds
from safetensors import safe_open
from torch import nn

from rmbook import AdapterBank, apply_random_mask, load_adapter, save_adapter
from rmbook.adapters.adapter_file import content_digest
from rmbook.adapters.shira import load_from_shira, save_as_shira
from rmbook.methods.saved import load_trained
from rmbook.runs.describe import describe_path
from rmbook.tensor_files import digest_tensors


def trained():
    masking = apply_random_mask(TwoLayers(), ["first", "second"], density=0.1)
    with torch.no_grad():
        for values in masking.parameters():
            values.normal_(generator=torch.Generator().manual_seed(0))
    return masking


def parts(content: bytes) -> tuple[dict, bytes]:
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def whole(header, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def forged(draw: random.Random, content: bytes, sign) -> bytes:
    """The file with damage in its header, in a text of JSON in there, or in its numbers, and signed again."""
    header, data = parts(content)
    metadata = header["__metadata__"]
    kind = draw.randrange(4)
    if kind == 0:
        return whole(damaged_value(draw, header), data)
    if kind == 1:
        data = damaged_bytes(draw, data) if draw.random() < 0.3 else draw.randbytes(len(data))
    else:
        texts = [name for name, value in metadata.items() if value[:1] in "[{0123456789n"]
        name = draw.choice(texts)
        try:
            metadata[name] = json.dumps(damaged_value(draw, json.loads(metadata[name])))
        except ValueError:  # a number in hexadecimal
            metadata[name] = damaged_bytes(draw, metadata[name].encode()).decode("latin-1")
    return sign(whole(header, data))


def signed(path, content: bytes, digest) -> bytes:
    path.write_bytes(content)
    header, data = parts(content)
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        header["__metadata__"] |= digest(tensors, header["__metadata__"])
    except Exception:  # noqa: BLE001 - then nobody can sign it
        return content
    return whole(header, data)


def unchanged(model, before) -> None:
    assert state_bytes(model) == before and all(type(child) is nn.Linear for child in model.children())


@pytest.mark.parametrize("positions", [False, True], ids=["drawn", "stored"])
def test_damaged_adapter_files(positions, tmp_path):
    path, scratch = tmp_path / "a.safetensors", tmp_path / "scratch"
    save_adapter(trained(), path, store_positions=positions)
    content, model = path.read_bytes(), TwoLayers()
    before, taken = state_bytes(model), 0

    def sign(new: bytes) -> bytes:
        return signed(scratch, new, lambda tensors, fields: {"content": content_digest(tensors, fields)})

    for seed in seeds(250):
        draw = random.Random(seed)
        path.write_bytes(forged(draw, content, sign) if draw.random() < 0.6 else damaged_bytes(draw, content))
        refusal(lambda: describe_path(path), ("described", seed))
        bank = AdapterBank(model)
        refused = refusal(lambda: bank.add("a", path), ("in a bank", seed))  # noqa: B023 - called at once
        masking = []
        again = refusal(lambda: masking.append(load_trained(model, path)), ("loaded", seed))  # noqa: B023
        assert (refused is None) == (again is None), (seed, refused, again)
        if again is None:
            taken += 1
            masking[0].remove()
            bank.activate("a")
            bank.activate()
        unchanged(model, before)
    assert taken < len(seeds(250)) / 2


def test_damaged_shira_folders(tmp_path):
    folder = tmp_path / "shira"
    save_as_shira(trained(), folder)
    config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    good, content, model = config.read_bytes(), weights.read_bytes(), TwoLayers()
    before, taken = state_bytes(model), 0

    def sign(new: bytes) -> bytes:
        def digest(tensors, fields):
            return {"rmbook_content": digest_tensors(tensors, fields["rmbook"])}

        return signed(tmp_path / "scratch", new, digest)

    for seed in seeds(300):
        draw = random.Random(seed)
        config.write_bytes(good)
        weights.write_bytes(content)
        kind = draw.randrange(4)
        if kind == 0:
            config.write_bytes(json.dumps(damaged_value(draw, json.loads(good))).encode())
        elif kind == 1:
            config.write_bytes(damaged_bytes(draw, good))
        elif kind == 2:
            weights.write_bytes(damaged_bytes(draw, content))
        else:
            weights.write_bytes(forged(draw, content, sign))
        masking = []
        if refusal(lambda: masking.append(load_from_shira(model, folder)), seed) is None:  # noqa: B023
            taken += 1
            masking[0].remove()
        unchanged(model, before)
    assert taken < len(seeds(300)) / 2


def test_a_sound_adapter_is_taken_by_all_of_these(tmp_path):
    """What the tests above would refuse for a reason of their own proves nothing."""
    save_adapter(trained(), tmp_path / "a.safetensors")
    save_as_shira(trained(), tmp_path / "shira")
    assert load_adapter(TwoLayers(), tmp_path / "a.safetensors").layers
    assert load_from_shira(TwoLayers(), tmp_path / "shira").layers
    assert "values" in describe_path(tmp_path / "a.safetensors")
