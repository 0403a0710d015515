"""Every method on small models of every family: what it trains, what it leaves, and the way back."""

import copy
import math
import warnings

import pytest
import safetensors.torch
import torch
from conftest import TwoLayers, state_bytes
from more_language_models import tiny
from peft import AdaLoraConfig
from peft.tuners.adalora import AdaLoraModel
from small_language_models import IDS, logits, small, train_a_little

from rmbook import TargetError
from rmbook.methods.applied_method import MethodError
from rmbook.methods.apply import METHODS, apply_method
from rmbook.methods.architectures import conv1d_to_linear, find_architecture, resolve_targets


def masks(method):
    return {"density": 0.2} if "masking" in method else {}


KINDS = ("opt", "llama", "gpt2", "mistral", "qwen2")
CASES = [
    (kind, method)
    for kind in KINDS
    for method in METHODS
    if not (kind == "gpt2" and "masking" in method) and not (kind in ("llama", "mistral") and method == "bitfit")
]
INTENDED = {  # what the names of trained parameters contain
    "random_masking": ("_proj.values",),
    "structured_masking": ("_proj.values",),
    "lora": ("lora_A", "lora_B"),
    "adalora": ("lora_A", "lora_B", "lora_E"),
    "adapter": ("houlsby", "norm", ".ln_"),
    "prefix": ("prefix_keys", "prefix_values"),
    "bitfit": ("bias",),
    "full": ("",),
}


@pytest.mark.parametrize("kind, method", CASES)
def test_a_method_trains_what_it_should_and_can_be_undone(kind, method):
    model = tiny(kind)
    frozen_before = next(model.parameters())
    frozen_before.requires_grad_(False)
    before, start = state_bytes(model), logits(model)
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    kept_attention = model.config._attn_implementation
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        applied = apply_method(model, method, **masks(method))
    assert applied.total == sum(len(b) for b in before.values()) // 4
    difference = (logits(model) - start).abs().max()
    assert difference > 1e-3 if method == "prefix" else difference == 0
    trained = dict(applied.named_parameters())
    assert trained and all(any(part in name for part in INTENDED[method]) for name in trained)
    assert applied.trainable == sum(p.numel() for p in applied.parameters())
    assert applied.ratio == applied.trainable / applied.total
    untouched = {n: b for n, b in state_bytes(model).items() if n not in trained}
    first = model(input_ids=IDS, labels=IDS).loss.item()
    last = train_a_little(model, applied.parameters(), learning_rate=0.01)
    assert last < first
    assert all((p.grad is not None) == (n in trained) for n, p in model.named_parameters())
    now = state_bytes(model)
    if "masking" not in method:  # there the frozen weight holds W + S
        assert all(now[n] == b for n, b in untouched.items()) and applied.distance is None
    else:
        moved = math.sqrt(sum(float(p.detach().double().square().sum()) for p in applied.parameters()))
        assert 0 < applied.distance == pytest.approx(moved)
    if method == "full":
        with pytest.raises(MethodError, match="reload"):
            applied.remove()
        return
    assert (logits(model) - start).abs().max() > 1e-4
    assert applied.remove() is model
    assert state_bytes(model) == before and torch.equal(logits(model), start)
    assert flags == {n: p.requires_grad for n, p in model.named_parameters()}
    assert model.config._attn_implementation == kept_attention
    with pytest.raises(MethodError, match="removed already"):
        applied.remove()
    apply_method(model, "prefix")  # and the next can come


@pytest.mark.parametrize("kind, method", [case for case in CASES if case[0] in ("opt", "gpt2")])
def test_state_goes_round_and_copies_are_independent(kind, method):
    model = tiny(kind)
    applied = apply_method(model, method, **masks(method))
    train_a_little(model, applied.parameters(), learning_rate=0.01)
    state, trained = applied.state(), logits(model)
    twin = copy.deepcopy(applied)
    train_a_little(model, applied.parameters(), learning_rate=0.01)
    assert not torch.equal(logits(model), trained) and torch.equal(logits(twin.model), trained)
    applied.load_state(state)
    assert torch.equal(logits(model), trained)
    fresh = apply_method(tiny(kind), method, **masks(method))
    fresh.load_state(safetensors.torch.load(safetensors.torch.save(state)))
    assert torch.equal(logits(fresh.model), trained)
    if method != "full":
        twin.remove()
        assert torch.equal(logits(twin.model), logits(tiny(kind))) and torch.equal(logits(model), trained)


@pytest.mark.parametrize("method", [method for method in METHODS if method not in ("full", "bitfit")])
def test_the_seed_decides_and_the_global_random_state_stays(method):
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    model = small("opt")
    torch.random.set_rng_state(state)
    first = apply_method(model, method, seed=3, **masks(method)).state()
    assert torch.equal(state, torch.random.get_rng_state())
    same = apply_method(small("opt"), method, seed=3, **masks(method)).state()
    other = apply_method(small("opt"), method, seed=4, **masks(method))
    assert all(torch.equal(first[name], same[name]) for name in first)
    if other.mask:
        digests = [layer.mask.digest() for layer in other.mask.layers.values()]
        again = apply_method(small("opt"), method, seed=3, **masks(method)).mask
        assert ([x.mask.digest() for x in again.layers.values()] == digests) == (method == "structured_masking")
    else:
        assert any(not torch.equal(value, first[name]) for name, value in other.state().items())


@pytest.mark.parametrize("method", METHODS)
def test_added_parameters_are_float32_in_a_bfloat16_model(method):
    model = tiny("opt", torch.bfloat16)
    own = {id(p) for p in model.parameters()}
    applied = apply_method(model, method, **masks(method))
    assert all(p.dtype == torch.float32 for p in applied.parameters() if id(p) not in own)
    assert applied.settings.get("rank", 8) == 8
    loss = model(input_ids=IDS, labels=IDS).loss + applied.penalty()
    loss.backward()
    assert torch.isfinite(loss) and all(torch.isfinite(p.grad).all() for p in applied.parameters())


@pytest.mark.parametrize("method, scale", [("lora", 2.0), ("adalora", 16 / 8.00001)])
def test_low_rank_updates_equal_dense_ones(method, scale):
    model, dense = tiny("opt", torch.float64), tiny("opt", torch.float64)
    applied = apply_method(model, method)
    with torch.no_grad():
        for parameter in applied.parameters():
            parameter.normal_(std=0.2)
    own = dict(applied.named_parameters())
    for name, layer in dense.named_modules():
        if name.endswith(("q_proj", "v_proj")):
            end = ".default.weight" if method == "lora" else ".default"
            a, b = own[f"{name}.lora_A{end}"], own[f"{name}.lora_B{end}"]
            middle = own[f"{name}.lora_E{end}"] if method == "adalora" else torch.ones(8, 1)
            layer.weight.data += scale * b.double() @ (middle.double() * a.double())
    torch.testing.assert_close(logits(model), logits(dense), rtol=0, atol=1e-6)


def test_bitfit_equals_an_optimiser_that_is_given_the_biases_alone():
    model, dense = tiny("qwen2", torch.float64), tiny("qwen2", torch.float64)
    applied = apply_method(model, "bitfit")
    biases = [p for n, p in dense.named_parameters() if n.endswith("_proj.bias")]
    assert applied.trainable == sum(bias.numel() for bias in biases) == 2 * (32 + 16 + 16)
    assert train_a_little(model, applied.parameters()) == pytest.approx(train_a_little(dense, biases), abs=1e-12)
    torch.testing.assert_close(logits(model), logits(dense), rtol=0, atol=1e-12)


# --------------------------------------------------------------------------------------------------------- AdaLoRA


def test_the_penalty_is_the_one_that_peft_adds_to_the_loss():
    applied = apply_method(small("opt"), "adalora")
    with torch.no_grad():
        for parameter in applied.parameters():
            parameter.normal_()
    plain = applied.model(input_ids=IDS, labels=IDS).loss
    with_penalty = applied.budget.tuner(input_ids=IDS, labels=IDS).loss
    torch.testing.assert_close(with_penalty - plain, applied.penalty(), rtol=1e-5, atol=1e-6)
    assert apply_method(small("opt"), "lora").penalty() == 0


def _steps(applied, first, last):
    optimizer = torch.optim.SGD(applied.parameters(), lr=0.1)  # no state of its own: going on is exact
    for step in range(first, last + 1):
        optimizer.zero_grad()
        (applied.model(input_ids=IDS, labels=IDS).loss + applied.penalty()).backward()
        optimizer.step()
        applied.after_step(step)


def _directions(applied):
    return sum(int((p != 0).sum()) for n, p in applied.named_parameters() if "lora_E" in n)


SCHEDULE = dict(rank=2, initial_rank=4, total_steps=20, warmup_steps=3, final_steps=5, interval=4)


def test_directions_are_dropped_down_to_the_budget():
    applied = apply_method(small("opt"), "adalora", **SCHEDULE)
    _steps(applied, 1, 3)
    assert _directions(applied) == 4 * 4
    _steps(applied, 4, 8)
    assert _directions(applied) == int(4 * 2 + 4 * 2 * (1 - 5 / 12) ** 3)  # step 8: 5 of the 12 steps for dropping
    _steps(applied, 9, 20)
    assert _directions(applied) == 4 * 2
    even = apply_method(small("opt"), "adalora")
    _steps(even, 1, 3)
    assert _directions(even) == 4 * 8


@pytest.mark.parametrize("stop", [6, 17])  # while directions are chosen, and after
def test_adalora_goes_on_from_its_state_as_if_it_had_not_stopped(stop):
    whole, part, rest = (apply_method(small("opt"), "adalora", **SCHEDULE) for _ in range(3))
    _steps(whole, 1, 20)
    _steps(part, 1, stop)
    rest.load_state(part.state())
    _steps(rest, stop + 1, 20)
    wanted, got = whole.state(), rest.state()
    assert wanted.keys() == got.keys() and all(torch.equal(wanted[name], got[name]) for name in wanted)


def test_the_schedule_needs_steps():
    for settings, words in [
        ({"initial_rank": 12}, "total_steps"),
        ({"initial_rank": 12, "total_steps": 10, "warmup_steps": 6, "final_steps": 4}, "less than total_steps 10"),
        ({"initial_rank": 4}, "at most initial_rank"),
        ({"rank": 0}, "rank must be an integer from 1 to"),
    ]:
        model = small("opt")
        before = state_bytes(model)
        with pytest.raises(ValueError, match=words):
            apply_method(model, "adalora", **settings)
        assert state_bytes(model) == before and all(p.requires_grad for p in model.parameters())


def test_peft_still_refuses_an_empty_step_of_the_schedule():
    """The reason why `after_step` does nothing when no direction is to be dropped; if this fails, that can go."""
    config = AdaLoraConfig(target_r=2, init_r=2, total_step=5, target_modules=["q_proj"])
    tuner = AdaLoraModel(small("opt"), config, "default")
    tuner(input_ids=IDS, labels=IDS).loss.backward()
    with pytest.raises(RuntimeError, match="k out of range"):
        tuner.update_and_allocate(1)


# --------------------------------------------------------------------------------------------------------- targets


def test_presets_name_the_right_layers():
    wanted = {
        "opt": {"qv": 2, "attention": 4, "o_proj": 1, "mlp": 2, "all_linear": 6},
        "llama": {"qv": 2, "attention": 4, "o_proj": 1, "mlp": 3, "all_linear": 7},
        "gpt2": {"qv": 1, "attention": 2, "o_proj": 1, "mlp": 2, "all_linear": 4},
    }
    for kind, counts in wanted.items():
        model = conv1d_to_linear(tiny(kind))
        assert resolve_targets(model, None) == find_architecture(model).qv
        for preset, count in counts.items():
            applied = apply_method(model, "random_masking", targets=preset, density=0.5)
            assert len(applied.mask.layers) == 2 * count and not any("lm_head" in n for n in applied.mask.layers)
            applied.remove()
    applied = apply_method(small("opt"), "lora", targets=["fc1", "0.fc2"])
    assert {n.split(".lora")[0] for n, _ in applied.named_parameters()} == {
        f"model.decoder.layers.{end}" for end in ("0.fc1", "0.fc2", "1.fc1")
    }
    assert apply_method(tiny("gpt2"), "lora", targets="attention").trainable == 2 * 8 * (32 + 96 + 32 + 32)


def test_ratio_and_structure_reach_the_masks():
    applied = apply_method(small("opt"), "random_masking", ratio=0.02, targets="mlp", seed=2)
    assert applied.mask.recipe.structure == "entries" and applied.mask.targets == ("fc1", "fc2")
    assert applied.mask.density == pytest.approx(0.02 * applied.total / (4 * 32 * 64))
    assert applied.settings["ratio"] == 0.02 and applied.settings["seed"] == 2
    structured = apply_method(small("opt"), "structured_masking", ratio=0.02)
    assert structured.mask.recipe.structure == "leading_columns"
    assert 0 <= 0.02 * structured.total - structured.trainable < 4


def test_conv1d_is_refused_by_name_and_can_be_converted():
    model = tiny("gpt2", torch.float64)
    before = logits(model)
    with pytest.raises(TargetError, match="c_attn.*Conv1D.*conv1d_to_linear"):
        apply_method(model, "random_masking", density=0.1)
    conv1d_to_linear(model)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-12)
    applied = apply_method(model, "random_masking", density=0.1)
    assert {layer.mask.shape for layer in applied.mask.layers.values()} == {(96, 32)}
    start = model(input_ids=IDS, labels=IDS).loss.item()
    assert train_a_little(model, applied.parameters()) < start
    applied.remove()
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-12)


def test_other_models_take_names_but_no_presets():
    model = TwoLayers()
    for method in ("random_masking", "lora", "adalora"):
        applied = apply_method(model, method, targets=["first"], **masks(method))
        assert applied.trainable > 0
        applied.remove()
    for method in ("random_masking", "lora", "adapter", "prefix"):
        with pytest.raises(TargetError, match="TwoLayers are named like none of opt, llama, gpt2"):
            apply_method(model, method, **masks(method))
    assert all(p.requires_grad for p in model.parameters())


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "name, settings, words",
    [
        ("lorra", {}, "unknown method 'lorra': did you mean lora"),
        ("zzz", {}, "known are full, random_masking"),
        (None, {}, "known are full"),
        ("lora", {"ratio": 0.1}, "lora does not take 'ratio'; it takes targets, seed, rank, alpha"),
        ("prefix", {"targets": "qv"}, "prefix does not take 'targets'"),
        ("full", {"rank": 3}, "full does not take 'rank'; it takes no settings"),
        ("random_masking", {"density": 0.1, "rank": 3}, "does not take 'rank'"),
        ("random_masking", {}, "either ratio"),
        ("random_masking", {"ratio": 0.9}, "largest possible ratio"),
        ("lora", {"seed": 0.5}, "seed"),
        ("lora", {"targets": "q_prj"}, "'q_prj'.*q_proj.*Presets are qv"),
        ("lora", {"targets": "all_linaer"}, "Presets are qv, attention"),
        ("adapter", {"width": 0}, "width must be an integer from 1 to .* got 0"),
        ("prefix", {"length": 2.0}, "length must be an integer .*, got 2.0"),
        ("prefix", {"words": [3, 4]}, "5 positions, but 2 words"),
        ("prefix", {"words": [3, 4, 5, 6, 50]}, "token ids below 50"),
    ],
)
def test_bad_input_is_named_and_the_model_is_untouched(name, settings, words):
    model = small("opt")
    before = state_bytes(model)
    with pytest.raises(ValueError, match=words):
        apply_method(model, name, **settings)
    assert state_bytes(model) == before and all(p.requires_grad for p in model.parameters())
    apply_method(model, "lora")


def test_bitfit_without_biases_and_a_second_method_are_refused():
    model = small("llama")
    with pytest.raises(MethodError, match="LlamaForCausalLM have none"):
        apply_method(model, "bitfit")
    assert all(p.requires_grad for p in model.parameters())
    applied = apply_method(model, "adapter")
    for name in METHODS:
        with pytest.raises(MethodError, match="has a method already"):
            apply_method(model, name)
    applied.remove()
    apply_method(model, "lora")


def test_a_state_of_another_method_is_refused_and_changes_nothing():
    applied = apply_method(small("opt"), "lora")
    before = applied.state()
    for other in (apply_method(small("opt"), "lora", rank=4), apply_method(small("opt"), "adapter")):
        with pytest.raises(MethodError, match="does not belong to lora"):
            applied.load_state(other.state())
    assert all(torch.equal(before[name], value) for name, value in applied.state().items())
