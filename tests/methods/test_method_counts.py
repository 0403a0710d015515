"""The number of parameters that each method trains, against the Params column of the paper (table 5)."""

import csv
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from quantised_layers import every_kind, quantise
from torch import nn
from transformers import OPTConfig, OPTForCausalLM

from rmbook import ratio_to_density, sample_mask
from rmbook.engine.targets import find_targets
from rmbook.masks.structured import leading_columns
from rmbook.methods.apply import METHODS, apply_method
from rmbook.methods.architectures import resolve_targets

SIZES = {"OPT-125m": (768, 12, 12), "OPT-1.3b": (2048, 24, 32), "OPT-13b": (5120, 40, 40)}  # width, blocks, heads
TOTALS = {"OPT-125m": 125_239_296, "OPT-1.3b": 1_315_758_080, "OPT-13b": 12_853_473_280}
PARAMS = {  # in percent, as printed
    "full": ("100.000", "100.000", "100.000"),
    "adapter": ("0.265", "0.134", "0.057"),
    "lora": ("0.235", "0.120", "0.051"),
    "adalora": ("0.235", "0.120", "0.051"),
    "prefix": ("0.074", "0.037", "0.016"),
    "bitfit": ("0.066", "0.034", "0.014"),
}
COUNTS = {  # of width d and number of blocks L
    "adapter": lambda d, blocks: (2 * 2 * 8 * d + 2 * 2 * d) * blocks,  # two bottlenecks and two layer norms
    "lora": lambda d, blocks: 2 * 2 * 8 * d * blocks,
    "adalora": lambda d, blocks: 2 * (2 * 8 * d + 8) * blocks,
    "prefix": lambda d, blocks: 5 * 2 * d * blocks,
    "bitfit": lambda d, blocks: (4 * d + 4 * d + d) * blocks,  # attention, fc1, fc2
}


def opt_without_numbers(size):
    width, blocks, heads = SIZES[size]
    config = OPTConfig(
        hidden_size=width,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        ffn_dim=4 * width,
        word_embed_proj_dim=width,
    )
    with torch.device("meta"):
        return OPTForCausalLM(config)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", PARAMS)
def test_counts_equal_the_papers(method, size):
    applied = apply_method(opt_without_numbers(size), method)
    assert applied.total == TOTALS[size]
    wanted = COUNTS[method](*SIZES[size][:2]) if method in COUNTS else TOTALS[size]
    assert applied.trainable == wanted
    printed = PARAMS[method][list(SIZES).index(size)]
    if (method, size) == ("adalora", "OPT-125m"):  # 0.2356 with the eight singular values of each matrix
        assert f"{100 * applied.ratio:.3f}" == "0.236"
        singular = sum(p.numel() for n, p in applied.named_parameters() if "lora_E" in n)
        assert f"{100 * (applied.trainable - singular) / applied.total:.3f}" == printed
    else:
        assert f"{100 * applied.ratio:.3f}" == printed


@pytest.mark.parametrize(
    "method, settings",
    [
        ("adapter", {"bias": True}),
        ("adapter", {"train_norms": False}),
        ("adapter", {"bias": True, "train_norms": False}),
        ("bitfit", {"norms": True}),
        ("adalora", {"initial_rank": 12, "total_steps": 100}),
    ],
)
def test_other_readings_of_the_methods_do_not_give_the_papers_counts(method, settings):
    applied = apply_method(opt_without_numbers("OPT-1.3b"), method, **settings)
    assert f"{100 * applied.ratio:.3f}" != PARAMS[method][1]


def test_the_printed_column_is_the_papers(shared):
    with open(shared / "paper" / "tables" / "table5.csv") as file:
        rows = {(row["model"], row["method"]): float(row["ratio"]) for row in csv.DictReader(file)}
    for method, printed in PARAMS.items():
        for size, percent in zip(SIZES, printed, strict=True):
            assert rows[size, method] == pytest.approx(float(percent) / 100)
    assert {method for _, method in rows} <= set(METHODS)


def three_layers(kind=None):
    """Two targets, quantised in some way, and a plain layer."""
    torch.manual_seed(0)
    targets = {"first": nn.Linear(64, 48), "second": nn.Linear(48, 32)}
    targets = {name: quantise(layer, kind) if kind else layer for name, layer in targets.items()}
    return nn.Sequential(OrderedDict(targets | {"last": nn.Linear(32, 3)}))


METHODS_ON_LAYERS = {"random_masking": {"ratio": 0.01}, "lora": {"rank": 2}, "bitfit": {}}


@every_kind
@pytest.mark.parametrize("method", METHODS_ON_LAYERS)
def test_counts_on_a_quantised_base_are_those_of_the_dense_one(kind, method):
    settings = METHODS_ON_LAYERS[method]
    settings = settings if method == "bitfit" else settings | {"targets": ["first", "second"]}
    packed, dense = (apply_method(three_layers(how), method, **settings) for how in (kind, None))
    assert (packed.total, packed.trainable, packed.ratio) == (dense.total, dense.trainable, dense.ratio)
    assert packed.mask is None or packed.ratio == packed.mask.ratio


def test_entries_that_share_a_byte_count_one_by_one():
    """Where bitsandbytes is not installed: a layer as it makes them, two numbers in each byte."""
    named = {"__module__": "bitsandbytes.nn.modules"}
    layer = type("Linear4bit", (nn.Linear,), named)(8, 6)
    layer.weight = nn.Parameter(torch.zeros(24, 1, dtype=torch.uint8), requires_grad=False)
    layer.quant_state = SimpleNamespace(nested=False, quant_type="nf4", blocksize=64)
    applied = apply_method(nn.Sequential(layer, nn.Linear(6, 2)), "bitfit")
    assert applied.total == 8 * 6 + 6 + 6 * 2 + 2 and applied.ratio == (6 + 2) / applied.total


@pytest.mark.parametrize("size", SIZES)
def test_a_ratio_of_the_masks_is_the_papers_ratio(size):
    """Without weights: the masks of all target matrices hold ratio * N entries, exactly or on average."""
    model = opt_without_numbers(size)
    layers = find_targets(model, resolve_targets(model, None))
    held = sum(layer.weight.numel() for layer in layers.values())
    shape, ratio = tuple(next(iter(layers.values())).weight.shape), 1e-4
    density = ratio_to_density(ratio, TOTALS[size], held)
    assert len(layers) == 2 * SIZES[size][1] and {tuple(layer.weight.shape) for layer in layers.values()} == {shape}
    structured = leading_columns(shape, density).nnz * len(layers)
    assert 0 <= ratio * TOTALS[size] - structured < len(layers)
    drawn = sum(sample_mask(shape, density, 0, name).nnz for name in list(layers)[:10])
    expected = ratio * TOTALS[size] * 10 / len(layers)
    assert abs(drawn - expected) < 5 * expected**0.5


@pytest.mark.parametrize("method", ["random_masking", "structured_masking"])
def test_masks_on_a_model_of_the_size_of_opt_125m(method):
    model = opt_without_numbers("OPT-125m").to_empty(device="cpu")
    model.tie_weights()
    applied = apply_method(model, method, ratio=0.001)
    assert applied.total == TOTALS["OPT-125m"] and len(applied.mask.layers) == 24
    spread = 24 if method == "structured_masking" else 5 * (0.001 * applied.total) ** 0.5
    assert abs(applied.trainable - 0.001 * applied.total) <= spread
    assert f"{100 * applied.ratio:.2f}" == "0.10"
