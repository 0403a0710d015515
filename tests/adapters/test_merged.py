"""Merged models: the same numbers without rmbook, and a live model that notices nothing."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TwoLayers, state_bytes
from peft import LoraConfig, inject_adapter_in_model
from safetensors import SafetensorError, safe_open
from small_language_models import IDS, TARGETS, logits, small, train_a_little
from transformers import AutoModelForCausalLM, OPTConfig, OPTForCausalLM

from rmbook import apply_random_mask
from rmbook.adapters.merged import merged_state_dict, save_merged

LOAD_WITHOUT_RMBOOK = """
import sys, torch

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "rmbook":
            raise ImportError("rmbook is not installed here")

sys.meta_path.insert(0, Refuse())
try:
    import rmbook
except ImportError:
    from transformers import AutoModelForCausalLM
    ids = torch.load("ids.pt")
    for folder in sys.argv[1:]:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
        with torch.no_grad():
            torch.save(model(input_ids=ids).logits, folder + ".pt")
    assert not any(name.split(".")[0] == "rmbook" for name in sys.modules)
"""


def trained(kind, dtype=torch.float32):
    model = small(kind, dtype)
    masking = apply_random_mask(model, TARGETS[kind], density=0.1, seed=3)
    train_a_little(model, masking.parameters())
    return model, masking


def test_the_same_logits_in_a_process_without_rmbook(tmp_path):
    wanted = {}
    for kind, dtype in itertools.product(("opt", "llama"), (torch.float32, torch.bfloat16)):
        model, masking = trained(kind, dtype)
        folder = f"{kind}-{dtype}"
        wanted[folder] = logits(model)
        assert (wanted[folder] - logits(small(kind, dtype))).abs().max() > 0.01
        save_merged(masking, tmp_path / folder)
    torch.save(IDS, tmp_path / "ids.pt")
    command = [sys.executable, "-c", LOAD_WITHOUT_RMBOOK, *wanted]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for folder, ours in wanted.items():
        theirs = torch.load(tmp_path / f"{folder}.pt")
        assert theirs.dtype == ours.dtype
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["opt", "llama"])
def test_the_weights_are_those_of_merge_bit_for_bit_and_of_their_own_dtype(tmp_path, kind):
    model, masking = trained(kind, torch.bfloat16)
    save_merged(masking, tmp_path / "merged")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    masking.merge()
    assert state_bytes(loaded) == state_bytes(model)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("kind", ["opt", "llama"])
def test_training_goes_on_as_if_nothing_had_been_saved(tmp_path, kind):
    (model, masking), (other, other_masking) = trained(kind), trained(kind)
    before, config, generation = state_bytes(model), model.config.to_dict(), model.generation_config.to_dict()
    save_merged(masking, tmp_path / "merged")
    assert state_bytes(model) == before
    assert model.config.to_dict() == config and model.generation_config.to_dict() == generation
    assert all(module.config is model.config for module in model.modules() if hasattr(module, "config"))
    train_a_little(model, masking.parameters())
    train_a_little(other, other_masking.parameters())
    assert state_bytes(model) == state_bytes(other)
    masking.remove()
    assert state_bytes(model) == state_bytes(small(kind))


def test_nothing_of_rmbook_is_in_the_folder(tmp_path):
    model, masking = trained("opt")
    save_merged(masking, tmp_path / "merged")
    files = {path.name: path.read_bytes() for path in (tmp_path / "merged").iterdir()}
    assert files.keys() >= {"config.json", "model.safetensors"}
    assert not any(b"rmbook" in content or b"Masked" in content for content in files.values())
    assert json.loads(files["config.json"])["architectures"] == ["OPTForCausalLM"]
    small("opt").save_pretrained(tmp_path / "base")
    with safe_open(tmp_path / "merged/model.safetensors", "pt") as merged:
        with safe_open(tmp_path / "base/model.safetensors", "pt") as base:
            assert set(merged.keys()) == set(base.keys())


def test_the_dense_form_and_stale_weights_change_nothing(tmp_path):
    _, masking = trained("opt")
    wanted = {name: tensor.clone() for name, tensor in merged_state_dict(masking).items()}
    with masking.dense_form():
        inside = merged_state_dict(masking)
    assert wanted.keys() == inside.keys() and all(torch.equal(wanted[name], inside[name]) for name in wanted)
    with torch.no_grad():
        for values in masking.parameters():
            values.add_(1)  # no forward pass follows: the layers' own weights are behind
    ahead = merged_state_dict(masking)
    layer = next(iter(masking.layers))
    step = ahead[f"{layer}.weight"] - wanted[f"{layer}.weight"]
    torch.testing.assert_close(step, masking.layers[layer].mask.dense(torch.float32))


def test_tied_embeddings_stay_tied(tmp_path):
    torch.manual_seed(0)
    sizes = dict(vocab_size=50, hidden_size=32, ffn_dim=64, word_embed_proj_dim=32, num_hidden_layers=1)
    model = OPTForCausalLM(OPTConfig(**sizes, num_attention_heads=2, tie_word_embeddings=True)).eval()
    masking = apply_random_mask(model, ["q_proj"], density=0.2)
    train_a_little(model, masking.parameters())
    save_merged(masking, tmp_path / "merged")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert loaded.lm_head.weight is loaded.model.decoder.embed_tokens.weight
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=1e-6)


def test_what_cannot_be_merged_is_refused_by_name(tmp_path):
    masking = apply_random_mask(TwoLayers(), ["first"], density=0.1)
    with pytest.raises(TypeError, match="transformers model, got conftest.TwoLayers.*merge"):
        save_merged(masking, tmp_path / "merged")
    model = inject_adapter_in_model(LoraConfig(target_modules=["k_proj"]), small("opt"))
    with pytest.raises(TypeError, match="adapter of peft"):
        save_merged(apply_random_mask(model, ["q_proj"], density=0.1), tmp_path / "merged")
    _, masking = trained("opt")
    masking.remove()
    with pytest.raises(ValueError, match="removed"):
        save_merged(masking, tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_content_a_file_and_a_missing_parent_are_refused(tmp_path):
    _, masking = trained("opt")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/model.safetensors").write_text("precious")
    (tmp_path / "file").write_text("precious")
    for name in ("full", "file"):
        with pytest.raises(FileExistsError, match="not an empty folder"):
            save_merged(masking, tmp_path / name)
    with pytest.raises(FileNotFoundError, match="create it first"):
        save_merged(masking, tmp_path / "none/merged")
    assert {path.name for path in tmp_path.rglob("*")} == {"full", "file", "model.safetensors"}
    assert (tmp_path / "full/model.safetensors").read_text() == (tmp_path / "file").read_text() == "precious"


def test_an_empty_folder_and_a_link_to_one_are_filled(tmp_path, monkeypatch):
    _, masking = trained("opt")
    for name in ("empty", "behind", "here"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("behind")
    monkeypatch.chdir(tmp_path / "here")
    for folder in (tmp_path / "empty", str(tmp_path / "link"), Path("../relative")):
        save_merged(masking, folder)
        assert (Path(folder) / "config.json").is_file()
        assert Path(folder).stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("stage", ["weights", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), SafetensorError("io")])
def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch, stage, error):
    model, masking = trained("opt")
    config, before = model.config.to_dict(), state_bytes(model)

    def fail(*_, **__):
        raise error

    if stage == "weights":
        monkeypatch.setattr("transformers.modeling_utils.safe_save_file", fail)
    else:
        monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError if isinstance(error, SafetensorError) else type(error)):
        save_merged(masking, tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []
    assert model.config.to_dict() == config and state_bytes(model) == before
