"""Random masks in peft: the same numbers as `apply_random_mask`, and a base that is W whenever nobody computes."""

import copy
import dataclasses
import os
import pickle
import shutil
import threading
import warnings

import numpy as np
import pytest
import torch
from accelerate import cpu_offload, disk_offload
from conftest import LargestTensor
from peft import LoraConfig, get_peft_model
from peft_models import IDS, TARGETS, base_bits, config, gradients, layers, logits, loss, same, shaken, tiny
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from rmbook import AdapterBank, RandomMaskConfig, TargetError, apply_random_mask, save_adapter
from rmbook.errors import ConfigError

VALUES = "rmbook_values"


def copied_into(masking, model, adapter="default"):
    with torch.no_grad():
        for name, layer in masking.layers.items():
            layer.values.copy_(layers(model)[f"base_model.model.{name}"].rmbook_values[adapter].weight)


# -- the same as apply_random_mask ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("structure, scale", [("entries", 1.0), ("random_columns", "inverse_density")])
def test_masks_logits_gradients_and_merged_weights_are_those_of_apply_random_mask(dtype, structure, scale):
    settings = {"ratio": 0.01, "seed": 3, "structure": structure, "scale": scale}
    theirs, model = tiny(dtype), shaken(get_peft_model(tiny(dtype), config(density=None, **settings)), size=0.02)
    masking = apply_random_mask(theirs, TARGETS, **settings)
    assert model.get_nb_trainable_parameters()[0] == masking.trainable
    copied_into(masking, model)
    assert torch.equal(logits(model), logits(theirs))
    loss(model).backward(), loss(theirs).backward()
    for name, layer in masking.layers.items():
        own = layers(model)[f"base_model.model.{name}"]
        assert own.rmbook_drawn["default"].mask.digest() == layer.mask.digest()
        assert torch.equal(own.rmbook_values["default"].weight.grad, layer.values.grad)
    assert same(base_bits(model.merge_and_unload()), base_bits(masking.merge()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_too(dtype):
    theirs, model = tiny(dtype), shaken(get_peft_model(tiny(dtype), config()))
    copied_into(masking := apply_random_mask(theirs, TARGETS, density=0.05), model)
    with torch.autocast("cpu", torch.bfloat16):
        mine, other = loss(model), loss(theirs)
    assert torch.equal(mine, other)
    mine.backward(), other.backward()
    for name, layer in masking.layers.items():
        gradient = layers(model)[f"base_model.model.{name}"].rmbook_values["default"].weight.grad
        torch.testing.assert_close(gradient, layer.values.grad)


@pytest.mark.parametrize("conv", [False, True])
def test_conv1d_and_a_base_that_is_trained_too_equal_the_dense_layer(conv):
    torch.manual_seed(1)
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 4, "vocab_size": 64, "n_positions": 64, "bos_token_id": 1}
    base = GPT2LMHeadModel(GPT2Config(**sizes, eos_token_id=2)).eval() if conv else tiny()
    dense = copy.deepcopy(base)
    model = shaken(get_peft_model(base, config(target_modules=None, density=0.05)))
    for name, layer in layers(model.base_model.model).items():
        layer.base_layer.requires_grad_(True)
        with torch.no_grad():
            dense.get_submodule(name).weight += layer.get_delta_weight("default")
    torch.testing.assert_close(logits(model), logits(dense), atol=1e-5, rtol=1e-5)
    loss(model).backward(), loss(dense).backward()
    for name, layer in layers(model.base_model.model).items():
        mask, target = layer.rmbook_drawn["default"].mask, dense.get_submodule(name)
        expected = (target.weight.grad.t() if conv else target.weight.grad)[mask.rows.long(), mask.columns.long()]
        close = {"atol": 1e-6, "rtol": 1e-4}
        torch.testing.assert_close(layer.rmbook_values["default"].weight.grad, expected, **close)
        torch.testing.assert_close(layer.base_layer.weight.grad, target.weight.grad, **close)
        torch.testing.assert_close(layer.base_layer.bias.grad, target.bias.grad, **close)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged), logits(dense), atol=1e-5, rtol=1e-5)


def test_no_dense_copy_and_no_dense_gradient():
    model = get_peft_model(nn.Sequential(nn.Linear(512, 512)), RandomMaskConfig(target_modules=["0"], density=1e-3))
    x = torch.randn(3, 512, requires_grad=True)
    with LargestTensor() as seen:
        model(x).square().sum().backward()
    assert seen.largest < 512 * 512 / 4


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant):
    plain, model = (shaken(get_peft_model(tiny(), config())).train() for _ in range(2))
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    loss(plain).backward(), loss(model).backward()
    assert same(gradients(model), gradients(plain)) and gradients(model)


COMPILER = pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="inductor needs a C++ compiler")


@pytest.mark.parametrize(
    ("autocast", "backend"),
    [(False, "aot_eager"), (True, "aot_eager"), pytest.param(False, "inductor", marks=COMPILER)],
)
def test_a_compiled_model_trains_alike(autocast, backend):
    def masked():
        torch.manual_seed(0)
        base = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4))
        return shaken(get_peft_model(base, RandomMaskConfig(target_modules=["0", "2"], density=0.1)))

    torch._dynamo.reset()
    eager, model, x = masked(), masked(), torch.randn(5, 16)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    close = {"atol": 2e-2, "rtol": 5e-2} if autocast else {"atol": 1e-5, "rtol": 1e-5}
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            losses = [each(x).square().sum() for each in (eager, compiled)]
        torch.testing.assert_close(*losses, **close)
        for each in losses:
            each.backward()
        with torch.no_grad():
            [p.sub_(0.01 * p.grad) for m in (eager, model) for p in m.parameters() if p.requires_grad]
    torch.testing.assert_close(gradients(model), gradients(eager), **close)
    assert len(gradients(model)) == 2 and same(base_bits(model), base_bits(masked()))


# -- W between calls -----------------------------------------------------------------------------------------------


def test_weights_are_w_between_calls_and_come_back_bit_for_bit():
    before, model = base_bits(tiny()), shaken(get_peft_model(tiny(), config()))
    step = loss(model)
    assert same(base_bits(model), before)
    with model.disable_adapter():  # as the reference model of DPO and GRPO, between a forward and a backward pass
        assert torch.equal(logits(model), logits(tiny()))
    step.backward()
    assert same(base_bits(model), before)
    model.merge_adapter()
    assert not same(base_bits(model), before)
    merged = logits(model)
    model.unmerge_adapter()
    assert same(base_bits(model), before) and torch.equal(logits(model), merged)
    assert same(base_bits(model.unload()), before)


def test_an_error_inside_the_product_restores_w():
    model = shaken(get_peft_model(nn.Sequential(nn.Linear(8, 8)), RandomMaskConfig(target_modules=["0"], density=0.5)))
    before = base_bits(model)
    with pytest.raises(RuntimeError):
        model(torch.randn(2, 7))
    assert same(base_bits(model), before)


def test_the_output_may_be_changed_in_place():
    base = nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True))
    model = shaken(get_peft_model(base, RandomMaskConfig(target_modules=["0"], density=0.5)))
    model(torch.randn(2, 3, 8)).sum().backward()
    assert gradients(model)


def test_threads_may_share_the_model():
    model = shaken(get_peft_model(tiny(), config()))
    before, expected, wrong = base_bits(model), logits(model), []

    def work():
        wrong.extend(1 for _ in range(8) if not torch.equal(logits(model), expected))

    threads = [threading.Thread(target=work) for _ in range(4)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert not wrong and same(base_bits(model), before)


def test_tied_weights_are_trained_apart_and_untied_by_merging():
    base = tiny()
    assert base.lm_head.weight is base.model.decoder.embed_tokens.weight
    model = shaken(get_peft_model(base, config(target_modules=["lm_head"])))
    loss(model).backward()
    expected = logits(model)
    assert same(base_bits(model), base_bits(tiny()))
    with pytest.raises(TargetError, match="tied"), pytest.warns(UserWarning, match="tie"):
        model.merge_adapter()
    assert same(base_bits(model), base_bits(tiny()))
    with pytest.warns(UserWarning, match="tied"):
        merged = model.merge_and_unload()
    assert torch.equal(logits(merged), expected) and not merged.config.tie_word_embeddings
    assert torch.equal(merged.model.decoder.embed_tokens.weight, tiny().model.decoder.embed_tokens.weight)


def test_inference_mode_then_training():
    model = shaken(get_peft_model(tiny(), config()))
    with torch.inference_mode():
        first = model(input_ids=IDS).logits
        model.add_adapter("other", config(seed=1))
        model.set_adapter("other")
        model.set_adapter("default")
    assert torch.equal(first.clone(), logits(model))
    loss(model).backward()


def test_differentiating_twice_is_refused():
    model = shaken(get_peft_model(tiny(), config()))
    with pytest.raises(RuntimeError, match="differentiated twice"):
        torch.autograd.grad(loss(model), [p for p in model.parameters() if p.requires_grad], create_graph=True)


# -- copies, casts, switches ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_independent(duplicate):
    model = shaken(get_peft_model(tiny(), config()))
    expected, twin = logits(model), duplicate(model)
    assert torch.equal(logits(twin), expected)
    shaken(twin, seed=9)
    twin.merge_adapter()
    assert torch.equal(logits(model), expected) and not torch.equal(logits(twin), expected)


def test_a_cast_casts_w_and_keeps_the_values():
    model = shaken(get_peft_model(tiny(), config()))
    values = {n: p for n, p in model.named_parameters() if p.requires_grad}
    before = {n: p.detach().clone() for n, p in values.items()}
    model.to(torch.bfloat16)
    assert same(base_bits(model), base_bits(tiny(torch.bfloat16)))
    assert all(p is values[n] for n, p in model.named_parameters() if n in values) and same(values, before)
    model.merge_adapter()
    model.to(torch.float32)
    model.unmerge_adapter()
    assert same(base_bits(model), base_bits(tiny(torch.bfloat16).float()))
    with pytest.raises(RuntimeError, match="share"):
        model.share_memory()


def test_switching_and_summing_adapters_equal_the_adapter_bank(tmp_path):
    bank, model = AdapterBank(tiny()), get_peft_model(tiny(), config(), adapter_name="a")
    model.add_adapter("b", config(seed=1, density=0.2, scale="inverse_density"))
    model.add_adapter("c", config(seed=2, target_modules=["v_proj", "fc1"]))
    for place, name in enumerate("abc"):
        shaken(model, seed=place, adapter=name)
        own = model.peft_config[name]
        masking = apply_random_mask(
            tiny(), sorted(own.target_modules), density=own.density, seed=own.seed, scale=own.scale
        )
        copied_into(masking, model, name)
        save_adapter(masking, tmp_path / name)
        bank.add(name, tmp_path / name)
    for active in ("a", "b", "c", "ab", "cba", "bc"):
        model.base_model.set_adapter(list(active))
        bank.activate(*active)
        assert torch.equal(logits(model), logits(bank.model)), active
        model.merge_adapter()
        assert same(base_bits(model), base_bits(bank.model)), active
        model.unmerge_adapter()
        assert same(base_bits(model), base_bits(tiny()))
    for layer in layers(model).values():
        layer.set_scale("b", 0.3)
    model.base_model.set_adapter(["a", "b"])
    bank.activate("a", "b", strengths={"b": 0.3})
    assert torch.equal(logits(model), logits(bank.model))
    model.delete_adapter("a")
    assert all("a" not in layer.rmbook_drawn for layer in layers(model).values())
    model.set_adapter("c")
    bank.activate("c")
    assert torch.equal(logits(model), logits(bank.model))


# -- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ratio": 0.1, "density": 0.1}, "either ratio .* or density"),
        ({"density": 1.5}, r"lie in \[0, 1\]"),
        ({"density": float("nan")}, r"lie in \[0, 1\]"),
        ({"density": "much"}, "density must be a number"),
        ({"ratio": -1e-3}, "ratio must be"),
        ({"ratio": True}, "ratio must be"),
        ({"structure": "rows"}, "structure must be"),
        ({"structure": ["entries"]}, "structure must be"),
        ({"scale": 0}, "scale must be"),
        ({"scale": float("inf")}, "scale must be"),
        ({"seed": 1.5}, "seed must be an integer"),
        ({"seed": 2**300}, "seed must be"),
        ({"backend": "cuda"}, "backend must be"),
        ({"store_positions": "yes"}, "store_positions must be"),
        ({"target_modules": [1]}, "target_modules must be"),
        ({"modules_to_save": "lm_head"}, "modules_to_save must be"),
        ({"layers_to_transform": ["0"]}, "layers_to_transform must be"),
        ({"target_modules": "all-linear", "layers_to_transform": 0}, "layers_to_transform must be left out"),
        ({"target_modules": ".*_proj", "layers_pattern": ["h"]}, "layers_pattern must be left out"),
        ({"target_modules": ["q_proj"], "layers_pattern": ["h"]}, "layers_to_transform stand: give both"),
    ],
)
def test_wrong_settings(changed, message):
    with pytest.raises(ConfigError, match=message):
        RandomMaskConfig(**changed)


def test_numbers_of_numpy_and_any_list_of_layers_are_taken(tmp_path):
    lists = (range(2), (0, 1), [np.int64(0), 1], np.arange(2))
    configs = [RandomMaskConfig(ratio=np.float64(1e-3), layers_to_transform=each) for each in lists]
    assert all(each.layers_to_transform == [0, 1] and each.ratio == 1e-3 for each in configs)
    RandomMaskConfig(density=np.float32(0.25), scale=np.float32(2), seed=np.int64(3)).save_pretrained(tmp_path)
    assert RandomMaskConfig.from_pretrained(tmp_path).scale == 2
    with pytest.raises(ConfigError, match="layers_to_transform"):
        RandomMaskConfig(layers_to_transform=["0", True])


def test_names_become_sets_as_in_peft(tmp_path):
    RandomMaskConfig(target_modules=["b", "a"], exclude_modules=("c",), modules_to_save=["d"]).save_pretrained(tmp_path)
    again = RandomMaskConfig.from_pretrained(tmp_path)
    assert (again.target_modules, again.exclude_modules, again.modules_to_save) == ({"a", "b"}, {"c"}, ["d"])


def test_a_ratio_is_one_of_each_model_that_uses_the_configuration(tmp_path):
    config, saved = RandomMaskConfig(target_modules=["0"], ratio=0.01), []
    models = [get_peft_model(nn.Sequential(*(nn.Linear(64, 64) for _ in range(n))), config) for n in (2, 20, 2)]
    for place, model in enumerate(models):
        model.save_pretrained(tmp_path / str(place))
        saved.append(RandomMaskConfig.from_pretrained(tmp_path / str(place)))
    counts = [model.get_nb_trainable_parameters()[0] for model in models]
    assert counts[0] == counts[2] and 8 < counts[1] / counts[0] < 12
    assert saved[0].density == saved[2].density and saved[1].density == pytest.approx(10 * saved[0].density)
    with pytest.raises(ValueError, match="Target modules .* not found"):
        get_peft_model(nn.ModuleDict({"other": nn.Linear(4, 4)}), config)
    other = dataclasses.replace(config, seed=1)
    assert (other.ratio, other.density) == (0.01, None)
    model = models[1]
    model.add_adapter("other", dataclasses.replace(model.peft_config["default"], seed=1))
    assert model.peft_config["other"].density == model.peft_config["default"].density == saved[1].density


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"target_modules": ["q_proj", "embed_tokens"]}, TargetError, "embed_tokens.*Embedding"),
        ({"target_modules": ["nothing"]}, ValueError, "not found"),
        ({"density": None, "ratio": 0.9}, ValueError, "largest possible ratio"),
        ({"backend": "triton"}, ValueError, "triton"),
    ],
)
def test_wrong_targets_leave_the_model_as_it_was(changed, error, message):
    model = tiny()
    with pytest.raises(error, match=message):
        get_peft_model(model, config(**changed))
    assert not layers(model) and same(base_bits(model), base_bits(tiny()))


def test_a_layer_of_another_method_is_refused():
    with pytest.raises((TargetError, TypeError)):
        get_peft_model(tiny(), LoraConfig(target_modules=TARGETS)).base_model.add_adapter("mask", config())


@pytest.mark.parametrize("masked_by", ["peft", "rmbook"])
def test_zero_3_is_refused_by_name_before_and_after_masking(masked_by):
    def mask(model):
        if masked_by == "peft":
            return get_peft_model(model, RandomMaskConfig(target_modules=["0"], density=0.5))
        return apply_random_mask(model, ["0"], density=0.5).model

    base, other = nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4))
    base[0].weight.data, base[0].weight.ds_id = torch.empty(0), 3  # DeepSpeed's name for a parameter that it partitions
    with pytest.raises(TargetError, match="ZeRO-3 partitions its weight.*FSDP2"):
        mask(base)
    weight, model = other[0].weight, mask(other)
    model(torch.ones(1, 4)).sum().backward()
    weight.ds_id = 3
    with pytest.raises(RuntimeError, match="ZeRO-3 partitions its weight.*FSDP2"):
        model(torch.ones(1, 4))


@pytest.mark.parametrize("targets", [["k_proj"], TARGETS])
@pytest.mark.parametrize("trained", [False, True])
def test_lora_on_a_masked_model_says_once_that_it_has_stopped_the_mask(targets, trained):
    base = tiny()
    masking = apply_random_mask(base, TARGETS, density=0.05)
    if trained:
        loss(base).backward()
    model = get_peft_model(base, LoraConfig(target_modules=targets, task_type="CAUSAL_LM"))
    logits(model)  # a model that does not train has nothing to be told
    with pytest.warns(UserWarning, match="values of this model's random mask do not train.*peft"):
        loss(model.train())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the values of this")
        loss(model)
        for values in masking.parameters():
            values.requires_grad_(True)
        loss(model).backward()
    assert all(values.grad is not None for values in masking.parameters())


def test_another_adapter_for_each_row_is_refused():
    model = get_peft_model(tiny(), config(), adapter_name="a")
    model.add_adapter("b", config(seed=1))
    for call in (model, lambda **inputs: model.generate(max_new_tokens=2, **inputs)):
        with pytest.raises(ValueError, match="set_adapter"):
            call(input_ids=IDS, adapter_names=["a", "b"])


def test_a_module_with_two_names_is_merged_under_one():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = self.second = nn.Linear(8, 8)

        def forward(self, x):
            return self.second(torch.tanh(self.first(x)))

    model = shaken(get_peft_model(Shared(), RandomMaskConfig(target_modules=["first"], density=0.3)))
    x, plain = torch.ones(2, 8), model.base_model.model.second.weight.detach().clone()
    expected, merged = model(x), model.merge_and_unload()
    assert torch.equal(merged(x), expected) and torch.equal(merged.second.weight, plain)


@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
@pytest.mark.parametrize("disk", [False, True])
def test_an_offloaded_layer_is_refused_by_name(tmp_path, kind, disk):
    model = nn.Sequential(kind(4, 4))
    disk_offload(model, tmp_path, execution_device="cpu") if disk else cpu_offload(model, execution_device="cpu")
    with pytest.raises(TargetError, match="offloads its weight"):
        get_peft_model(model, RandomMaskConfig(target_modules=["0"]))


def test_a_mask_that_is_offloaded_later_says_so():
    model = cpu_offload(shaken(get_peft_model(tiny(), config())), execution_device="cpu")
    with pytest.raises(RuntimeError, match="accelerate offloads"):
        logits(model)
