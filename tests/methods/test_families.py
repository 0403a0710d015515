"""`rmbook train` on tiny checkpoints of six families, in the precisions and with the memory savers that there are."""

import pytest
import torch
from command_line import call
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from rmbook.models.language import load_language_model
from rmbook.runs.config import RunConfig
from rmbook.runs.evaluate import load_run
from rmbook.runs.run import start_run

SHAPE = dict(
    vocab_size=768,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    max_position_embeddings=256,
)
LLAMA_3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
FAMILIES = {
    "llama-2": (LlamaForCausalLM, LlamaConfig(**SHAPE)),
    "llama-3": (
        LlamaForCausalLM,
        LlamaConfig(
            **SHAPE,
            tie_word_embeddings=True,
            rope_parameters=LLAMA_3 | {"rope_theta": 5e5, "original_max_position_embeddings": 64},
        ),
    ),
    "mistral": (MistralForCausalLM, MistralConfig(**SHAPE, sliding_window=16)),
    "qwen-2": (Qwen2ForCausalLM, Qwen2Config(**SHAPE)),
    "qwen-3": (Qwen3ForCausalLM, Qwen3Config(**SHAPE)),
    "gpt-2": (GPT2LMHeadModel, GPT2Config(vocab_size=768, n_embd=32, n_layer=2, n_head=2, n_positions=256)),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tiny, tmp_path_factory):  # noqa: F811
    """A checkpoint's folder: weights of the family, tokens of the package's own tiny model."""
    kind, config = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp("families") / request.param
    torch.manual_seed(0)
    kind(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    return folder


def test_masks_train_in_every_family_and_come_back(family, settings, tmp_path):  # noqa: F811
    settings |= {"model": str(family), "epochs": 3, "ratio": None, "density": 0.3}
    result = start_run(RunConfig(**settings), tmp_path / "run", progress=False)
    losses = [row["train_loss"] for row in result["history"]]
    assert result["status"] == "completed" and losses[-1] < losses[0]
    held = sum(p.numel() for n, p in load_language_model(family)[0].named_parameters() if "q_proj.weight" in n)
    held += sum(p.numel() for n, p in load_language_model(family)[0].named_parameters() if "v_proj.weight" in n)
    held = held or 2 * 32 * 96  # GPT-2 holds queries, keys and values in one matrix
    assert result["trainable"] == pytest.approx(0.3 * held, rel=0.1)
    model, tokenizer, _ = load_run(tmp_path / "run")
    answer = call("generate", tmp_path / "run", "--prompt", "the film was", "--max-new-tokens", 4)
    ids = torch.tensor([[0, *tokenizer.encode("the film was", add_special_tokens=False)]])
    assert answer.exit_code == 0 and model(input_ids=ids).logits.isfinite().all()


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "bfloat16"},
        {"dtype": "float16"},
        {"mixed_precision": "bf16"},
        {"mixed_precision": "fp16"},
        {"gradient_checkpointing": True},
        {"targets": "all_linear"},
        {"targets": ("o_proj", "out_proj")},
        {"micro_batch_size": 3},
    ],
    ids=str,
)
def test_savers_of_memory_train_about_the_same(changes, settings, tmp_path):  # noqa: F811
    settings |= {"dropout": 0.0}
    if "targets" in changes:
        changes = changes | {"targets": changes["targets"] if isinstance(changes["targets"], str) else ("out_proj",)}
    plain = start_run(RunConfig(**settings), tmp_path / "plain", progress=False)
    result = start_run(RunConfig(**settings | changes), tmp_path / "run", progress=False)
    assert result["status"] == "completed"
    exact = "micro_batch_size" in changes or "gradient_checkpointing" in changes
    tolerance = 1e-5 if exact else 0.1
    if "targets" in changes:
        assert result["trainable"] == pytest.approx(plain["trainable"], rel=0.1)  # the same ratio, elsewhere
    else:
        for got, wanted in zip(result["history"], plain["history"], strict=True):
            assert got["train_loss"] == pytest.approx(wanted["train_loss"], abs=tolerance)
    adapter = load_run(tmp_path / "run")[0]
    values = [p for n, p in adapter.named_parameters() if n.endswith(".values")]
    assert values and all(value.dtype == torch.float32 for value in values)
