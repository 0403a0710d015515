"""Two small language models with random weights, and a few steps of real training for them."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

IDS = torch.arange(14).view(2, 7)
TARGETS = {"opt": ["q_proj", "v_proj", "fc1"], "llama": ["q_proj", "v_proj", "down_proj"]}  # of different shapes


def small(kind, dtype=torch.float32):
    torch.manual_seed(0)
    if kind == "opt":
        config = OPTConfig(
            vocab_size=50,
            hidden_size=32,
            ffn_dim=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=32,
            word_embed_proj_dim=32,
        )
        return _cast(OPTForCausalLM(config), dtype)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    return _cast(LlamaForCausalLM(config), dtype)


def _cast(model, dtype):
    for parameter in model.parameters():  # as from_pretrained: the frequencies of rotary embeddings stay in float32
        parameter.data = parameter.data.to(dtype)
    return model.eval()


def train_a_little(model, parameters, steps=4, learning_rate=0.05):
    optimizer = torch.optim.AdamW(list(parameters), lr=learning_rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
    return loss.item()


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits
