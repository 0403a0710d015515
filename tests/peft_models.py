"""Tiny models with random masks in peft, for the tests of `rmbook.integrations`."""

import torch
from transformers import OPTConfig, OPTForCausalLM

from rmbook import RandomMaskConfig
from rmbook.integrations.peft_layer import RandomMaskLinear

TARGETS = ["q_proj", "v_proj"]
IDS = torch.randint(0, 64, (2, 12), generator=torch.Generator().manual_seed(5))


def tiny(dtype=torch.float32, **changed):
    torch.manual_seed(11)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "ffn_dim": 64, "num_attention_heads": 4, "vocab_size": 64}
    config = OPTConfig(**{**sizes, "max_position_embeddings": 64, "word_embed_proj_dim": 32, "dropout": 0.0, **changed})
    return OPTForCausalLM(config).to(dtype).eval()


def config(**changed):
    return RandomMaskConfig(**{"target_modules": TARGETS, "density": 0.05, "task_type": "CAUSAL_LM", **changed})


def layers(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, RandomMaskLinear)}


@torch.no_grad()
def shaken(model, seed=0, size=0.1, adapter="default"):
    """The model with values that are not zero."""
    generator = torch.Generator().manual_seed(seed)
    for layer in layers(model).values():
        if adapter in layer.rmbook_values:
            values = layer.rmbook_values[adapter].weight
            values.copy_(size * torch.randn(values.shape, generator=generator))
    return model


def base_bits(model):
    """Every base weight by its name in the plain model, read past the layers."""
    named = {n.replace(".base_layer", ""): p for n, p in model.named_parameters() if "rmbook_" not in n}
    return {n.removeprefix("base_model.model."): p.detach().clone() for n, p in named.items()}


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits


def loss(model):
    return model(input_ids=IDS, labels=IDS).loss
