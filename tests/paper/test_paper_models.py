"""The paper's models without weights: parameters as published, trained counts as drawn, memory as measured."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rmbook.engine.masking import apply_random_mask
from rmbook.methods.apply import METHODS, MethodError, apply_method
from rmbook.paper.models import CONFIGS, count_parameters, count_trained, model_without_numbers, training_bytes
from rmbook.paper.tables import load_paper_table

SMALL = LlamaConfig(
    vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0
)


def test_parameters_are_those_of_the_published_models():
    totals = {"OPT-125m": 125_239_296, "OPT-1.3b": 1_315_758_080, "OPT-13b": 12_853_473_280}
    for name, total in (totals | {"Llama-2-7b": 6_738_415_616}).items():
        assert count_parameters(name)[0] == total
    assert set(CONFIGS) == set(load_paper_table(5)["model"]) | set(load_paper_table(4)["model"])


@pytest.mark.parametrize("name", CONFIGS)
def test_nothing_is_in_memory(name):
    assert {parameter.device.type for parameter in model_without_numbers(name).parameters()} == {"meta"}


def test_targets_add_up():
    for name in CONFIGS:
        held = {preset: count_parameters(name, preset)[1] for preset in ("qv", "attention", "mlp", "all_linear")}
        assert held["attention"] + held["mlp"] == held["all_linear"] and held["attention"] == 2 * held["qv"]


def test_trained_counts_are_the_papers_ratios():
    table = load_paper_table(5).drop_duplicates(["model", "method"]).set_index(["model", "method"])["ratio"]
    for (name, method), ratio in table.items():
        if method in METHODS and method not in ("full", "random_masking"):
            found = count_trained(name, method) / count_parameters(name)[0]
            assert abs(found - ratio) < 1.1e-5  # printed to a thousandth of a percent
    assert count_trained("OPT-13b", "random_masking", 1e-5) == 128_535
    with pytest.raises(ValueError, match="largest possible ratio"):
        count_trained("OPT-125m", "random_masking", 0.2)
    with pytest.raises(MethodError, match="bitfit trains biases"):
        count_trained("Llama-2-7b", "bitfit")


@pytest.mark.parametrize("method", ["full", "lora", "random_masking"])
def test_the_bytes_are_those_of_a_real_step(method):
    dtype = torch.float32 if method == "full" else torch.bfloat16
    torch.manual_seed(0)
    model = LlamaForCausalLM(SMALL).to(dtype)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    ratio = 0.02 if method == "random_masking" else None
    if ratio:
        applied = apply_random_mask(model, ["q_proj", "v_proj"], ratio=ratio)
    else:
        applied = apply_method(model, method)
    trained = list(applied.parameters())
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    ids = torch.arange(12).view(1, 12)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()

    def size(tensors):
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    own = [] if method == "full" else list(trained)
    if ratio:
        for layer in applied.layers.values():
            own += [layer.merged, layer.original, layer.mask.positions, layer.columns]
    adam = [value for state in optimizer.state.values() for key, value in state.items() if key != "step"]
    found = {"weights": weights, "trained": size(own), "gradients": size(p.grad for p in trained), "adam": size(adam)}
    expected = training_bytes(SMALL, method, ratio)
    assert expected["weights"] == found["weights"]
    scale = sum(p.numel() for p in trained) / count_trained(SMALL, method, ratio)  # a draw is not its expectation
    for part in ("trained", "gradients", "adam"):
        assert found[part] == pytest.approx(expected[part] * scale, rel=1e-9)
    assert 0.9 < scale < 1.1
