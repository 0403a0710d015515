"""Prefix tuning: a few trained keys and values in every attention layer, in front of those of the text.

Li & Liang (2021), in the form of MeZO's `prefix.py`, which the paper's experiments extend: no reparametrisation, and
the prefix starts as the keys and values that the model itself computes for random words of its vocabulary. Every token
sees the prefix; tokens keep the positions that they have without it.

The prefix enters through transformers' attention interface, behind the cache: a cache holds the text's keys alone, so
generation, beam search, left padding and gradient checkpointing work as they do without a prefix.
"""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rmbook.engine.targets import TargetError
from rmbook.errors import ConfigError, shown
from rmbook.methods.architectures import block_layers, find_architecture
from rmbook.methods.settings import PrefixSettings

ATTENTION, NOTING = "rmbook_prefix", "rmbook_prefix_start"


def prefix_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **settings,
) -> tuple[torch.Tensor, None]:
    """Scaled dot-product attention to the prefix of `module` and to the given keys.

    Args:
        module: an attention layer with parameters prefix_keys and prefix_values (key heads, prefix, head width).
        query: (batch, heads, queries, head width).
        key, value: (batch, key heads, keys, head width), the cache's included.
        attention_mask: (batch, 1, queries, keys), boolean (True: seen) or added to the scores; None, all is seen, for
            a single query only.
        settings: scaling, dropout and the like.

    Returns:
        (batch, queries, heads, head width), and None in the place of the attention weights.
    """
    if attention_mask is None and query.shape[2] > 1:
        raise ValueError("attention to a prefix needs an explicit mask: make masks with transformers' own functions.")
    if hasattr(module, "prefix_keys"):
        shape = (key.shape[0], -1, -1, -1)
        key = torch.cat([module.prefix_keys.to(key.dtype).expand(shape), key], dim=2)
        value = torch.cat([module.prefix_values.to(value.dtype).expand(shape), value], dim=2)
        if attention_mask is not None:
            size = (*attention_mask.shape[:-1], module.prefix_keys.shape[1])
            seen = attention_mask.new_full(size, attention_mask.dtype == torch.bool)  # True, or 0 added to the score
            attention_mask = torch.cat([seen, attention_mask], dim=-1)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)


def prefix_mask(*sizes, **settings) -> torch.Tensor:
    """The mask of the text as an explicit tensor (batch, 1, queries, keys), never left out."""
    return sdpa_mask(*sizes, **{**settings, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})


def noting_attention(module, query, key, value, attention_mask, **settings) -> tuple[torch.Tensor, None]:
    """Scaled dot-product attention that notes the keys and values of a single text in `module.noted`."""
    module.noted = key[0], value[0]
    return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)


AttentionInterface.register(ATTENTION, prefix_attention)
AttentionMaskInterface.register(ATTENTION, prefix_mask)
AttentionInterface.register(NOTING, noting_attention)
AttentionMaskInterface.register(NOTING, sdpa_mask)


def add_prefix(
    model: nn.Module, *, seed: int = 0, length: int = PrefixSettings.length, words: Sequence[int] | None = None
) -> None:
    """Freeze `model` and give every attention layer trainable keys and values, in place.

    They are the parameters prefix_keys and prefix_values of the attention modules, each (key heads, length, head
    width), float32 or, for a float64 model, float64. Until the prefix is removed, attention runs as PyTorch's scaled
    dot-product attention and returns no attention weights.

    Args:
        model: a language model of transformers whose architecture is in `rmbook.methods.architectures`.
        seed: of the choice of words.
        length: number of prefix positions.
        words: token ids to start from, instead of random ones; as many as `length` says.

    Raises:
        TargetError: the architecture is unknown, or the model takes no words.
        ConfigError: length is not the number of words or more than the model has positions or words for, or a word is
            not in the vocabulary.
    """
    PrefixSettings(length, None if words is None else tuple(words))
    if getattr(model, "main_input_name", "input_ids") != "input_ids":
        raise TargetError(
            f"a prefix starts from words, which {type(model).__name__} does not take: use another method."
        )
    queries = block_layers(model, find_architecture(model).qv[:1])
    size = model.config.vocab_size
    if words is not None and max(words) >= size:
        raise ConfigError(f"words must be token ids below {size}, got {shown(list(words))}.")
    longest = min(len(random_words(model.config, size, seed)), getattr(model.config, "max_position_embeddings", size))
    if length > longest:
        raise ConfigError(f"length must be at most {longest} for this model, got {length}.")
    modules = [model.get_submodule(name.rpartition(".")[0]) for name in queries]
    weight = next(iter(queries.values())).weight
    words = random_words(model.config, length, seed) if words is None else list(words)
    start = _shapes(model.config, length, len(modules)) if weight.is_meta else _activations(model, modules, words)
    model.requires_grad_(False)
    for module, (keys, values) in zip(modules, start, strict=True):
        dtype = torch.float64 if keys.dtype == torch.float64 else torch.float32
        module.prefix_keys = nn.Parameter(keys.to(dtype, copy=True).contiguous())
        module.prefix_values = nn.Parameter(values.to(dtype, copy=True).contiguous())
    model._attention_before_prefix = model.config._attn_implementation
    model.set_attn_implementation(ATTENTION)


def random_words(config, count: int, seed: int) -> list[int]:
    """Token ids drawn from the vocabulary, special tokens left out."""
    special = set()
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        token = getattr(config, name, None)
        special.update(token if isinstance(token, (list, tuple)) else [token])
    order = torch.randperm(config.vocab_size, generator=torch.Generator().manual_seed(seed)).tolist()
    return [token for token in order if token not in special][:count]


@torch.no_grad()
def _activations(model, modules, words) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of each layer, (key heads, length, head width), for one run of the model on the words."""
    training, attention = model.training, model.config._attn_implementation
    ids = torch.tensor([words], device=next(model.parameters()).device)
    try:
        model.eval().set_attn_implementation(NOTING)  # a cache would forget what lies outside of a sliding window
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
        return [module.noted for module in modules]
    finally:
        model.train(training).set_attn_implementation(attention)
        for module in modules:
            vars(module).pop("noted", None)


def _shapes(config, length, layers) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return what `_activations` does, without numbers, for a model on the meta device."""
    heads = config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    empty = torch.empty(key_heads, length, width, device="meta")
    return [(empty, empty)] * layers


def remove_prefix(model: nn.Module) -> None:
    """Take the prefix off again and give the model back its own attention."""
    for module in model.modules():
        if hasattr(module, "prefix_keys"):
            del module.prefix_keys, module.prefix_values
    model.set_attn_implementation(model._attention_before_prefix)
    del model._attention_before_prefix
