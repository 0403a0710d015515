"""stories260K, genuine weights trained by Andrej Karpathy for llama2.c, as a model and a tokenizer of transformers.

The file's layout is that of llama2.c, version 0: 7 numbers, then all matrices in float32. Its rotary embedding turns
neighbouring pairs of coordinates; that of transformers turns the two halves of a head, so the rows of the projections
to queries and keys are put in another order.
"""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SHARED
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

STORIES = SHARED / "data" / "stories260K"


def stories_file(name: str) -> Path:
    """A file of the folder; the test that asks for it skips where it is absent."""
    path = STORIES / name
    if not path.is_file():
        pytest.skip(f"{path} is not on this machine: genuine trained weights")
    return path


def stories_model() -> LlamaForCausalLM:
    content = stories_file("stories260K.bin").read_bytes()
    dim, hidden, layers, heads, kv_heads, vocabulary, positions = struct.unpack("7i", content[:28])
    numbers = torch.from_numpy(np.frombuffer(content, dtype="<f4", offset=28).copy())
    taken = 0

    def take(*shape):
        nonlocal taken
        count = int(np.prod(shape))
        taken += count
        return numbers[taken - count : taken].view(*shape)

    width, kv = dim // heads, kv_heads * (dim // heads)
    tokens = take(vocabulary, dim)
    stacked = {"input_layernorm": take(layers, dim)}
    stacked["self_attn.q_proj"] = halves(take(layers, dim, dim), width)
    stacked["self_attn.k_proj"] = halves(take(layers, kv, dim), width)
    stacked["self_attn.v_proj"] = take(layers, kv, dim)
    stacked["self_attn.o_proj"] = take(layers, dim, dim)
    stacked["post_attention_layernorm"] = take(layers, dim)
    stacked["mlp.gate_proj"] = take(layers, hidden, dim)  # w1
    stacked["mlp.down_proj"] = take(layers, dim, hidden)  # w2
    stacked["mlp.up_proj"] = take(layers, hidden, dim)  # w3
    state = {"model.embed_tokens.weight": tokens, "lm_head.weight": tokens, "model.norm.weight": take(dim)}
    take(2, positions, width // 2)  # cosines and sines of the rotary embedding
    assert taken == len(numbers) and vocabulary > 0  # a positive size means that the output layer is tied
    for name, matrices in stacked.items():
        state |= {f"model.layers.{layer}.{name}.weight": matrix for layer, matrix in enumerate(matrices)}
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=dim,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=positions,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(state)
    return model


def halves(matrices: torch.Tensor, width: int) -> torch.Tensor:
    """In each head of `width` rows, (0, 1, 2, 3, ...) become (0, 2, ..., 1, 3, ...)."""
    layers, rows, columns = matrices.shape
    pairs = matrices.view(layers, rows // width, width // 2, 2, columns)
    return pairs.transpose(2, 3).reshape(layers, rows, columns)


def stories_pieces() -> list[tuple[float, bytes]]:
    """Score and bytes of each token, in order."""
    content = stories_file("tok512.bin").read_bytes()
    pieces, at = [], 4  # the first number is the length of the longest token
    while at < len(content):
        score, length = struct.unpack_from("fi", content, at)
        pieces.append((score, content[at + 8 : at + 8 + length]))
        at += 8 + length
    return pieces


def stories_tokenizer() -> PreTrainedTokenizerFast:
    """SentencePiece's BPE: of all neighbouring pairs whose join is a token, the join of the best score comes first."""
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces = stories_pieces()
    texts = special + [piece.decode().replace(" ", "▁") for _, piece in pieces[len(special) :]]
    numbers = {text: number for number, text in enumerate(texts)}
    assert len(numbers) == len(pieces)
    best_first = sorted(range(len(special), len(texts)), key=lambda number: -pieces[number][0])
    merges = [
        (text[:cut], text[cut:])
        for text in (texts[number] for number in best_first)
        for cut in range(1, len(text))
        if text[:cut] in numbers and text[cut:] in numbers
    ]
    tokenizer = Tokenizer(models.BPE(numbers, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def sample_text() -> str:
    """What the weights' own page shows for greedy decoding."""
    page = stories_file("stories260K.md").read_text(encoding="utf-8")
    return page.partition("-t 0.0\n")[2].partition("\n```")[0]
