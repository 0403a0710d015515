"""Loading language models: the same numbers as saved, and one line for everything that can be wrong with the files."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from more_language_models import tiny
from saved_models import saved_fixture, tokenizers_fixture  # noqa: F401
from small_language_models import IDS, logits
from task_files import one_line
from transformers import BartConfig, BartForCausalLM, BertConfig, BloomConfig, BloomForCausalLM, CLIPConfig, T5Config
from transformers.pytorch_utils import Conv1D

from rmbook.methods.apply import apply_method
from rmbook.models.files import KNOWN_MODELS, ModelError
from rmbook.models.language import convert_checkpoint, load_language_model, max_positions, read_configuration

FAMILIES = ("opt", "llama", "gpt2", "mistral", "qwen2")


def edit_json(path, **changes):
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


# ------------------------------------------------------------------------------------------------------ what is loaded


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_loaded_model_computes_what_the_saved_one_did(kind, saved):
    model = tiny(kind)
    expected = logits(model)
    loaded, tokenizer = load_language_model(str(saved(model)))
    # GPT-2's layers are turned into linear ones, which add in another order
    torch.testing.assert_close(logits(loaded), expected, **({"atol": 1e-5, "rtol": 0} if kind == "gpt2" else {}))
    assert not loaded.training and not any(isinstance(module, Conv1D) for module in loaded.modules())
    assert tokenizer.decode(tokenizer.encode("It was great.", add_special_tokens=False)) == "It was great."
    assert apply_method(loaded, "random_masking", density=0.5).trainable > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_have_the_dtype_asked_for_and_are_cast_once(dtype, saved):
    model = tiny("llama", torch.float16)
    loaded, _ = load_language_model(saved(model), dtype=dtype)
    for (name, parameter), original in zip(loaded.named_parameters(), model.parameters(), strict=True):
        assert parameter.dtype == dtype and torch.equal(parameter, original.to(dtype)), name


def test_parts_give_the_same_model_as_one_file(saved):
    model = tiny("opt")
    whole, parts = saved(model, "whole"), saved(model, "parts", max_shard_size=20_000)
    assert len(list(parts.glob("model-*.safetensors"))) > 2
    one, other = load_language_model(whole)[0], load_language_model(parts)[0]
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_the_longest_prompt_is_the_longest_that_runs():
    for kind in ("opt", "gpt2"):
        model = tiny(kind)
        limit = max_positions(model)
        model(input_ids=torch.zeros(1, limit, dtype=torch.long))
        with pytest.raises(IndexError):
            model(input_ids=torch.zeros(1, limit + 1, dtype=torch.long))
    assert max_positions(tiny("mistral")) == 64
    assert max_positions(BloomForCausalLM(BloomConfig(vocab_size=50, hidden_size=32, n_layer=1, n_head=2))) is None


def test_the_papers_models_are_known():
    sizes = ("125m", "350m", "1.3b", "2.7b", "6.7b", "13b")
    paper = {f"facebook/opt-{size}" for size in sizes} | {f"meta-llama/Llama-2-{size}-hf" for size in ("7b", "13b")}
    assert paper <= set(KNOWN_MODELS) and len(set(KNOWN_MODELS)) == len(KNOWN_MODELS)


# ------------------------------------------------------------------------------------------------- what may be missing


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "there is no config.json.*give the folder"),
        ("model.safetensors", "there are no weights: expected model.safetensors"),
        ("tokenizer.json", "there is no tokenizer.*add its files"),
    ],
)
def test_a_missing_file_is_named(missing, message, saved):
    folder = saved(tiny("opt"))
    (folder / missing).unlink()
    with pytest.raises(ModelError, match=message) as error:
        load_language_model(folder)
    assert one_line(error).startswith(str(folder))


def test_a_missing_part_of_the_weights_is_named(saved):
    folder = saved(tiny("opt"), max_shard_size=20_000)
    part = sorted(folder.glob("model-*.safetensors"))[1]
    part.unlink()
    with pytest.raises(ModelError, match=f"{part.name} is missing"):
        load_language_model(folder)
    (folder / "model.safetensors.index.json").write_text("{")
    with pytest.raises(ModelError, match="index.json is damaged"):
        load_language_model(folder)


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, -1])
def test_a_file_cut_short_anywhere_is_refused(kept, saved):
    folder = saved(tiny("llama"))
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(ModelError, match="model.safetensors is cut short or damaged.*get it again"):
        load_language_model(folder)


def change_weights(folder, change):
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    change(tensors)
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_weights_that_would_be_random_are_refused(saved, capfd):
    """transformers makes them up and only warns."""
    name = "model.layers.1.self_attn.q_proj.weight"
    folder = saved(tiny("llama"))
    capfd.readouterr()
    change_weights(folder, lambda tensors: tensors.pop(name))
    with pytest.raises(ModelError, match=f"the weights lack {name}: this is no complete LlamaForCausalLM"):
        load_language_model(folder)
    change_weights(folder, lambda tensors: tensors.update({name: torch.zeros(16, 16)}))
    with pytest.raises(ModelError, match=rf"{name} has shape \(16, 16\) in the weights, but \(32, 32\) by config.json"):
        load_language_model(folder)
    assert capfd.readouterr() == ("", "")


def test_weights_of_layers_that_the_configuration_leaves_out_are_refused(saved):
    folder = saved(tiny("llama"))
    edit_json(folder / "config.json", num_hidden_layers=1)
    with pytest.raises(ModelError, match="the weights have, though config.json has no place for it, model.layers.1"):
        load_language_model(folder)


def test_a_tied_output_layer_and_old_buffers_are_fine(saved):
    """GPT-2's first checkpoints hold causal masks; Llama's hold frequencies; neither holds a tied output layer."""
    for kind, extra in (
        ("gpt2", "transformer.h.0.attn.bias"),
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq"),
    ):
        model = tiny(kind)
        if kind == "llama":
            model.config.tie_word_embeddings = True
            model.tie_weights()
        folder = saved(model, kind)
        change_weights(folder, lambda tensors, extra=extra: tensors.update({extra: torch.zeros(1, 1, 4, 4)}))
        assert "lm_head.weight" not in safetensors.torch.load_file(folder / "model.safetensors")
        loaded, _ = load_language_model(folder)
        assert torch.equal(loaded.get_output_embeddings().weight, model.get_input_embeddings().weight)


def test_a_configuration_needs_no_weights(saved):
    folder = saved(tiny("opt"))
    for path in folder.iterdir():
        if path.name != "config.json":
            path.unlink()
    assert read_configuration(folder).num_hidden_layers == 2
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match="there is no config.json"):
        read_configuration(folder)


# --------------------------------------------------------------------------------------- what may be of another kind


@pytest.mark.parametrize("config", [BertConfig(), CLIPConfig(), T5Config()])
def test_other_kinds_of_models_are_refused(config, saved):
    folder = saved(tiny("llama"))
    config.save_pretrained(folder)
    with pytest.raises(ModelError, match=f"is of type '{config.model_type}', no causal language model"):
        load_language_model(folder)


REMOTE = {"model_type": "elsewhere", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (REMOTE, "asks for code of its own .auto_map., which is never run"),
        ({"model_type": "elsewhere"}, "config.json cannot be used .*elsewhere"),
        ({"model_type": None, "architectures": None}, "config.json cannot be used"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "is quantized"),
    ],
)
def test_configurations_that_cannot_be_used(changes, message, saved):
    folder = saved(tiny("llama"))
    (folder / "code.py").write_text("raise SystemExit('foreign code ran')\n")
    edit_json(folder / "config.json", **changes)
    with pytest.raises(ModelError, match=message) as error:
        load_language_model(folder)
    assert one_line(error)


def test_code_of_its_own_is_not_run_where_transformers_knows_the_model(saved):
    folder = saved(tiny("llama"))
    (folder / "code.py").write_text("raise SystemExit('foreign code ran')\n")
    edit_json(folder / "config.json", auto_map=REMOTE["auto_map"])
    edit_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["code.Slow", "code.Fast"]})
    assert type(load_language_model(folder)[0]).__module__.startswith("transformers.")


def test_files_that_are_no_json(saved):
    for name, message in (
        ("config.json", "config.json cannot be used"),
        ("tokenizer.json", "tokenizer cannot be read"),
    ):
        folder = saved(tiny("llama"), name)
        (folder / name).write_text('{"half": ')
        with pytest.raises(ModelError, match=message) as error:
            load_language_model(folder)
        assert one_line(error)


def test_old_weights_are_converted_by_the_command_in_the_message(saved, tmp_path, monkeypatch):
    model = tiny("opt", torch.float16)
    folder = saved(model, "old")
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="only in pytorch_model.bin") as error:
        load_language_model("old")
    command = shlex.split(one_line(error).partition("Convert them once: ")[2].partition(" and load ")[0])
    done = subprocess.run([sys.executable, *command[1:]], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    loaded, _ = load_language_model("old-safetensors", dtype=torch.float16)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    assert {path.stat().st_mode & 0o777 for path in Path("old-safetensors").iterdir()} == {0o644}


def test_a_conversion_that_fails_leaves_nothing(saved, tmp_path):
    model = tiny("opt")
    folder = saved(model, "old")
    (folder / "model.safetensors").unlink()
    state = model.state_dict()
    del state["model.decoder.layers.0.fc1.weight"]
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="the weights lack model.decoder.layers.0.fc1.weight"):
        convert_checkpoint(folder, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "does not exist"),
        ("./nowhere", "does not exist"),
        ("a/b/c", "does not exist"),
        (__file__, "is a file"),
        ("no name!", "neither a folder nor a name that the hub allows"),
    ],
)
def test_names_that_are_none(name, message):
    with pytest.raises(ModelError, match=message):
        load_language_model(name)


def test_settings_that_do_not_fit_are_named(saved):
    folder = saved(tiny("opt"))
    with pytest.raises(ModelError, match="has no revision 'main'"):
        load_language_model(folder, revision="main")
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="device cuda was asked for.*no CUDA device"):
            load_language_model(folder, device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_a_gpu_gets_the_weights(saved):
    model = tiny("llama")
    loaded, _ = load_language_model(saved(model), device="cuda")
    assert {parameter.device.type for parameter in loaded.parameters()} == {"cuda"}
    assert all(torch.equal(a.cpu(), b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    assert torch.isfinite(loaded(input_ids=IDS.cuda()).logits).all()


# ------------------------------------------------------------------------------------------ models from strangers


@pytest.mark.parametrize("kind", ["mamba", "rwkv", "openai-gpt"])
def test_a_model_without_a_cache_is_refused_by_its_configuration(kind, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(ModelError, match=f"of type '{kind}', without the attention mask and the cache") as error:
        read_configuration(tmp_path)
    one_line(error)


def test_a_folder_with_another_adapter_is_refused(tokenizers, tmp_path):  # noqa: F811
    folder = shutil.copytree(tokenizers["opt"], tmp_path / "opt")
    (folder / "adapter_config.json").write_text("{}")
    for read in (load_language_model, read_configuration):
        with pytest.raises(ModelError, match="adapter_config.json.*folder of the base model alone") as error:
            read(folder)
        one_line(error)


@pytest.mark.parametrize("changes", [{"attn_implementation": "a/b"}, {"_attn_implementation": "kernels-community/x"}])
def test_an_attention_from_the_hub_is_refused(changes, tokenizers, tmp_path):  # noqa: F811
    folder = shutil.copytree(tokenizers["llama"], tmp_path / "llama")
    edit_json(folder / "config.json", **changes)
    with pytest.raises(ModelError, match="asks for the attention") as error:
        load_language_model(folder)
    one_line(error)


def test_a_pipe_in_place_of_weights_is_not_waited_for(tokenizers, tmp_path):  # noqa: F811
    folder = shutil.copytree(tokenizers["opt"], tmp_path / "opt")
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    with pytest.raises(ModelError, match="there are no weights"):
        load_language_model(folder)


WRONG = {  # what a config.json may say, and what the message holds
    "layers": ({"num_hidden_layers": 10**5}, "'num_hidden_layers' is 100000"),
    "labels": ({"num_labels": 10**8}, "'num_labels' is 100000000"),
    "width": ({"hidden_size": 10**9}, "'hidden_size' is 1000000000"),
    "positions": ({"max_position_embeddings": 10**12}, "parameters, but the weights have"),
    "negative": ({"max_position_embeddings": -5}, "no model that can be made"),
    "negative labels": ({"num_labels": -1}, "'num_labels' is -1"),
    "negative size": ({"hidden_size": -64}, "'hidden_size' is -64"),
    "no turns": ({"rope_theta": 0}, "'rope_theta' is 0"),
    "no turns, nested": ({"rope_parameters": {"rope_theta": 0.0}}, "'rope_theta' is 0.0"),
    "dropout": ({"dropout": float("nan")}, "'dropout' is nan"),
    "dropout of two": ({"attention_dropout": 2.0}, "'attention_dropout' is 2.0"),
    "activation": ({"activation_function": "nonesuch"}, "no model that can be made"),
    "padding": ({"pad_token_id": 10**9}, "no model that can be made"),
    "experts": ({"experts_implementation": "a/b"}, "code of the hub, which is never run"),
    "nested attention": ({"_attn_implementation": {"": "paged|a/b"}}, "code of the hub, which is never run"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_configuration_is_checked_before_anything_is_made_of_it(case, tokenizers, tmp_path):  # noqa: F811
    changes, part = WRONG[case]
    folder = shutil.copytree(tokenizers["opt"], tmp_path / "opt")
    edit_json(folder / "config.json", **changes)
    with pytest.raises(ModelError, match=part) as error:
        load_language_model(folder)
    one_line(error)


def test_an_attention_that_is_not_installed_plays_no_part(tokenizers, tmp_path):  # noqa: F811
    folder = shutil.copytree(tokenizers["llama"], tmp_path / "llama")
    edit_json(folder / "config.json", attn_implementation="flash_attention_2")
    assert load_language_model(folder)[0].config._attn_implementation == "sdpa"


NESTED = "[" * 10**5 + "]" * 10**5
FILES_OF_STRANGERS = {
    "config.json": (["[]", NESTED, '{"a": "%s"}' % ("x" * 10**7)], "config.json cannot be used"),
    "model.safetensors.index.json": (
        ["[]", NESTED, '{"weight_map": {}}', '{"weight_map": {"a": 5}}', '{"weight_map": {"a": [1]}}'],
        "is damaged: expected the index",
    ),
    "tokenizer.json": (["[]", NESTED], "its tokenizer cannot be read"),
    "tokenizer_config.json": (["[]", NESTED], "its tokenizer cannot be read"),
    "generation_config.json": (["[]", NESTED], "cannot be loaded"),
}


@pytest.mark.parametrize("name", FILES_OF_STRANGERS)
def test_a_damaged_file_of_a_model_is_one_line(name, tokenizers, tmp_path):  # noqa: F811
    contents, part = FILES_OF_STRANGERS[name]
    folder = shutil.copytree(tokenizers["opt"], tmp_path / "opt")
    if "index" in name:
        (folder / "model.safetensors").unlink()
    for content in contents:
        (folder / name).write_text(content)
        with pytest.raises(ModelError, match=part) as error:
            load_language_model(folder)
        one_line(error)


@pytest.mark.parametrize("pattern", ["(a|a|[a-z ]+)+$X", "(a+){3}", r"(?:a*)*", r"\\\\(a)+"])
def test_a_tokenizer_that_repeats_a_group_is_refused(pattern, tokenizers, tmp_path):  # noqa: F811
    folder = shutil.copytree(tokenizers["opt"], tmp_path / "opt")
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    edit_json(folder / "tokenizer.json", pre_tokenizer=split)
    with pytest.raises(ModelError, match="whose repeated group can take forever") as error:
        load_language_model(folder)
    one_line(error)


def test_the_patterns_of_known_models_are_read(tokenizers, tmp_path):  # noqa: F811
    """Of Llama 3, GPT-4o, DeepSeek (which has )*+ within a set) and Bloom."""
    known = [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)|\s+",
        r"[\p{Lu}\p{Lt}]*[\p{Ll}\p{Lm}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*",
        r" ?[^(\s|[.,!?])]+",
    ]
    folder = shutil.copytree(tokenizers["opt"], tmp_path / "opt")
    for pattern in known:
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        edit_json(folder / "tokenizer.json", pre_tokenizer=split)
        load_language_model(folder)


def test_a_tokenizer_of_sentencepiece_alone_is_refused_with_advice(tokenizers, tmp_path):  # noqa: F811
    folder = shutil.copytree(tokenizers["llama"], tmp_path / "llama")
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    with pytest.raises(ModelError, match="only in tokenizer.model.*add tokenizer.json") as error:
        load_language_model(folder)
    one_line(error)


def test_a_model_that_ignores_positions_is_refused(tokenizers, tmp_path):  # noqa: F811
    """BART's decoder alone counts places by the length of the cache, whatever position_ids say."""
    config = BartConfig(
        vocab_size=768, d_model=16, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=16, is_decoder=True,
        is_encoder_decoder=False, encoder_layers=1, encoder_ffn_dim=16, encoder_attention_heads=2,
    )  # fmt: skip
    folder = shutil.copytree(tokenizers["opt"], tmp_path / "bart")
    BartForCausalLM(config).save_pretrained(folder)
    with pytest.raises(ModelError, match="padding") as error:
        load_language_model(folder)
    one_line(error)
