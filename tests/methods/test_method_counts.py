"""The number of parameters that each method trains, against the Params column of the paper (table 5)."""

import csv

import pytest
import torch
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
