"""SmolLM2 from its package: a GGUF file of a tiny Llama read back exactly, and what is said without the package."""

import importlib.util

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rmbook.models.files import ModelError
from rmbook.models.language import load_language_model
from rmbook.offline.smollm2 import FILE, INSTALL, PACKAGE, find_gguf, smollm2_folder, write_checkpoint
from rmbook.runs.config import RunConfig
from rmbook.runs.describe import describe_method
from rmbook.runs.evaluate import continue_text

WORDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abcdefgh0123456789", "Ġ", "ab", "abc", "ĠĠ"]
MERGES = ["a b", "ab c", "Ġ Ġ"]
NAMES = {  # of a layer's matrices, in transformers and in GGUF
    **{f"self_attn.{part}_proj": f"attn_{part}" for part in "kqv"},
    "self_attn.o_proj": "attn_output",
    **{f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")},
}


def write_gguf(gguf, path, model):
    """Write a Llama in 4 bits, as llama.cpp does, and return the numbers in float32 that the file stands for."""
    config, quant = model.config, gguf.GGMLQuantizationType.Q4_1
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(64)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(WORDS)
    writer.add_token_types([3] * 3 + [1] * (len(WORDS) - 3))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    expected = {}
    for name, tensor in model.state_dict().items():
        part, values = name.removeprefix("model.").removesuffix(".weight"), tensor.numpy()
        if name == "lm_head.weight":  # tied to the embedding
            continue
        fixed = {"embed_tokens": "token_embd", "norm": "output_norm"}
        if part.startswith("layers."):
            _, number, layer = part.split(".", 2)
            own = NAMES | {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
            fixed[part] = f"blk.{number}.{own[layer]}"
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(part[-6:])
        if values.ndim == 1:
            writer.add_tensor(fixed[part] + ".weight", values)
            expected[name] = values
            continue
        order = np.arange(len(values))
        if heads:  # GGUF has the two halves of a head's rotation interleaved
            order = order.reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)
        packed = gguf.quants.quantize(np.ascontiguousarray(values[order]), quant)
        writer.add_tensor(fixed[part] + ".weight", packed, raw_dtype=quant)
        expected[name] = gguf.quants.dequantize(packed, quant)[np.argsort(order)]
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    return expected


def test_a_gguf_file_becomes_a_checkpoint_with_just_the_numbers_that_it_stands_for(tmp_path):
    gguf = pytest.importorskip("gguf")
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), tie_word_embeddings=True, **sizes, **heads))
    expected = write_gguf(gguf, tmp_path / "tiny.gguf", model)
    (folder := tmp_path / "checkpoint").mkdir()
    write_checkpoint(tmp_path / "tiny.gguf", folder)
    read, tokenizer = load_language_model(folder)
    assert dict(read.named_parameters()).keys() == expected.keys()
    for name, parameter in read.named_parameters():
        np.testing.assert_array_equal(parameter.detach().numpy(), expected[name], err_msg=name)
    model.load_state_dict({name: torch.from_numpy(values) for name, values in expected.items()}, strict=False)
    ids = torch.tensor([[3, 4, 5, 21, 22]])
    torch.testing.assert_close(read(ids).logits, model.eval()(ids).logits)
    assert tokenizer.tokenize("abc  01a") == ["abc", "ĠĠ", "0", "1", "a"]  # digits one by one, before all else
    assert tokenizer.decode(tokenizer.encode("abc  01a")) == "abc  01a"
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes((tmp_path / "tiny.gguf").read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be read as a GGUF model"):
        write_checkpoint(damaged, folder)


def test_without_the_package_one_line_says_which_command_installs_it(tmp_path, monkeypatch):
    with pytest.raises(ModelError) as told:
        find_gguf("no_such_package")
    assert INSTALL in str(told.value) and "\n" not in str(told.value)
    pytest.importorskip("gguf")
    (tmp_path / "other_package").mkdir()
    (tmp_path / "other_package" / FILE).write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelError, match="SHA-256 .* genuine"):
        find_gguf("other_package")


def test_models_that_are_made_here_have_names_everywhere():
    assert "OPTForCausalLM" in describe_method("made:opt", method="random_masking", density=0.5)
    assert continue_text(None, "made:opt", "it was", 1, None) is not None
    folder = RunConfig(model="made:smollm2", task="RTE", learning_rate=1.0, density=0.1).default_folder()
    assert folder.name.startswith("smollm2-RTE-random_masking-")


@pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason="SmolLM2's package is not installed")
def test_smollm2_is_the_genuine_model():
    model, _ = load_language_model(smollm2_folder())
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert continue_text(None, "made:smollm2", "The capital of France is", 2, None) == "Paris."
