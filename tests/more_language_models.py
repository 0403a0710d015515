"""Small language models of six families, with biases that are not zero, as those of trained models."""

import torch
from small_language_models import small
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

SHAPE = dict(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=64,
)


def tiny(kind, dtype=torch.float32):
    torch.manual_seed(0)
    if kind == "gpt2":
        config = GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=1)
        config.eos_token_id = config.bos_token_id
        model = GPT2LMHeadModel(config).eval().to(dtype)
    elif kind == "bert":  # an encoder
        shape = SHAPE | {"max_position_embeddings": 64}
        del shape["num_key_value_heads"]
        model = BertModel(BertConfig(**shape), add_pooling_layer=False).eval().to(dtype)
    elif kind == "mistral":
        model = MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=4)).eval().to(dtype)
    elif kind == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**SHAPE)).eval().to(dtype)
    else:
        model = small(kind, dtype)
    for name, parameter in model.named_parameters():  # real models have biases; new ones have zeros
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model
