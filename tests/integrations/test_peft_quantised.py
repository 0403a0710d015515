"""Random masks in peft on bases that bitsandbytes or torchao has quantised: Trainer takes them in no other way."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from conftest import state_bytes
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model, prepare_model_for_kbit_training
from peft_models import config, gradients, layers, logits, loss, shaken, tiny
from quantised_layers import every_kind, near, needs, quantise
from test_peft_files import trained
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from rmbook import RandomMaskConfig, TargetError, apply_random_mask
from rmbook.adapters.errors import AdapterBaseError
from rmbook.engine.dequantise import dequantise
from rmbook.integrations.peft_folder import load_from_peft, save_as_peft

some_kinds = pytest.mark.parametrize("kind", list(map(needs, ["nf4", "int8", "torchao int8"])))
nf4 = pytest.mark.parametrize("kind", [needs("nf4")])


def one_layer(kind):
    torch.manual_seed(0)
    return nn.Sequential(quantise(nn.Linear(96, 64), kind))


def masked(base, adapter="default", **changed):
    settings = {"target_modules": ["0"], "density": 0.1, **changed}
    return shaken(get_peft_model(base, RandomMaskConfig(**settings), adapter_name=adapter), adapter=adapter)


def settings_of(kind):
    if kind == "torchao int8":
        from torchao.quantization import Int8WeightOnlyConfig
        from transformers import TorchAoConfig

        return TorchAoConfig(Int8WeightOnlyConfig())
    bits = {"load_in_8bit": True} if kind == "int8" else {"load_in_4bit": True, "bnb_4bit_quant_type": kind}
    return BitsAndBytesConfig(**bits)


def wide(dtype=torch.float32):
    """A model of which blocks of 64 numbers fit into the rows, as bitsandbytes' kernels for CPUs want it."""
    return tiny(dtype, hidden_size=64, word_embed_proj_dim=64)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    wide().save_pretrained(folder)
    return folder


def quantised(base, kind):
    return AutoModelForCausalLM.from_pretrained(base, quantization_config=settings_of(kind)).eval()


# -- one layer -----------------------------------------------------------------------------------------------------


@every_kind
def test_a_layer_equals_the_dense_reference_and_apply_random_mask(kind):
    model, theirs = masked(one_layer(kind)), one_layer(kind)
    (layer,) = layers(model).values()
    masking = apply_random_mask(theirs, ["0"], density=0.1)
    masking.layers["0"].values.data.copy_(layer.rmbook_values["default"].weight)
    layer.base_layer.bias.requires_grad_(True)
    weight = (dequantise(layer.base_layer, torch.float32) + layer.get_delta_weight("default")).detach().requires_grad_()
    x = torch.randn(3, 5, 96, requires_grad=True)
    other, third = (x.detach().clone().requires_grad_() for _ in range(2))
    wanted, output, gradient = F.linear(other, weight, layer.base_layer.bias), model(x), torch.randn(3, 5, 64)
    assert torch.equal(output, theirs(third)) and near(output, wanted, 1e-6)
    (bias,) = torch.autograd.grad(wanted, layer.base_layer.bias, gradient, retain_graph=True)
    for each in (output, theirs(third), wanted):
        each.backward(gradient, inputs=None if each is output else [third if each is not wanted else other])
    mask, grad = layer.rmbook_drawn["default"].mask, layer.rmbook_values["default"].weight.grad
    assert near(x.grad, other.grad, 1e-6) and near(layer.base_layer.bias.grad, bias, 1e-6)
    assert near(grad, (gradient.flatten(0, 1).t() @ x.detach().flatten(0, 1)).view(-1)[mask.positions.long()], 1e-6)
    with torch.no_grad():  # the way without gradients may be another one
        assert near(model(x), wanted, 1e-6) and torch.equal(model(x), theirs(x))


@every_kind
def test_the_base_stays_as_it_is(kind):
    plain, x = one_layer(kind), torch.randn(4, 96)
    before, kept, part = plain(x), dequantise(plain[0], torch.float32), plain[0]
    bits = state_bytes(plain) if "torchao" not in kind else None
    model = masked(plain)
    assert not torch.equal(model(x), before) and model.get_nb_trainable_parameters()[1] >= 64 * 96
    with model.disable_adapter():
        assert torch.equal(model(x), before)
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    expected = model(x)
    for merge in (model.merge_adapter, model.merge_and_unload, layers(model)["base_model.model.0"].merge):
        with pytest.raises(RuntimeError, match="quantised weight.*unload"):
            merge()
    assert torch.equal(model(x), expected)
    again = model.unload()
    assert again[0] is part and torch.equal(again(x), before)
    assert torch.equal(dequantise(part, torch.float32), kept) and (bits is None or state_bytes(again) == bits)


@some_kinds
def test_several_adapters_are_summed(kind):
    model, x = masked(one_layer(kind), "a"), torch.randn(4, 96)
    model.add_adapter("b", RandomMaskConfig(target_modules=["0"], ratio=0.2, seed=1))
    shaken(model, 1, adapter="b").base_model.set_adapter(["a", "b"])
    (layer,) = layers(model).values()
    assert abs(layer.rmbook_drawn["b"].mask.nnz / (0.2 * (64 * 96 + 64)) - 1) < 0.1  # of all numbers, not of bytes
    weight = dequantise(layer.base_layer, torch.float32) + layer.get_delta_weight("a") + layer.get_delta_weight("b")
    wanted = F.linear(x, weight, layer.base_layer.bias)
    assert near(model(x), wanted, 1e-6)
    model(x).sum().backward()
    dense = (torch.ones(64, 4) @ x).view(-1)
    for name in "ab":
        mask, grad = layer.rmbook_drawn[name].mask, layer.rmbook_values[name].weight.grad
        assert near(grad, dense[mask.positions.long()], 1e-6)


@nf4
def test_a_layer_without_numbers_and_a_replaced_weight_are_refused_by_name(kind):
    import bitsandbytes

    empty = nn.Sequential(bitsandbytes.nn.Linear4bit(8, 8))
    with pytest.raises(TargetError, match="cannot mask target module '0'.*holds its numbers"):
        masked(empty)
    model = masked(one_layer(kind))
    (layer,) = layers(model).values()
    layer.base_layer.quant_state = layer.base_layer.weight.quant_state
    layer.base_layer.weight = nn.Parameter(layer.base_layer.weight.data, requires_grad=False)  # as FSDP does
    with pytest.raises(TypeError, match="FSDP"):
        model(torch.randn(2, 96))


@every_kind
def test_adapters_travel_between_peft_and_apply_random_mask(kind, tmp_path):
    model, x = masked(one_layer(kind)), torch.randn(4, 96)
    model.save_pretrained(tmp_path / "a")
    theirs = one_layer(kind)
    save_as_peft(load_from_peft(theirs, tmp_path / "a"), tmp_path / "b")
    assert torch.equal(theirs(x), model(x))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "adapter .* was trained on a base")
        assert torch.equal(PeftModel.from_pretrained(one_layer(kind), tmp_path / "b")(x), model(x))
    other = nn.Sequential(nn.Linear(96, 64))
    with pytest.raises(AdapterBaseError, match="other weights"):
        load_from_peft(other, tmp_path / "b")
    assert type(other[0]) is nn.Linear


# -- whole models --------------------------------------------------------------------------------------------------


@some_kinds
def test_trainer_trains_it_and_the_adapter_loads(kind, base, tmp_path):
    model = get_peft_model(prepare_model_for_kbit_training(quantised(base, kind)), config())
    trainer = trained(model, tmp_path / "run")
    assert all(layer.rmbook_values["default"].weight.any() for layer in layers(model).values())
    trainer.save_model(tmp_path / "adapter")
    model.eval()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "adapter .* was trained on a base")
        loaded = PeftModel.from_pretrained(quantised(base, kind), tmp_path / "adapter")
    assert torch.equal(logits(loaded), logits(model))
    again = get_peft_model(prepare_model_for_kbit_training(quantised(base, kind)), config())
    trained(again, tmp_path / "again", str(tmp_path / "run" / "checkpoint-2"))
    assert torch.equal(logits(again.eval()), logits(model))
    for name, layer in layers(model.base_model.model).items():
        fresh = dequantise(quantised(base, kind).get_submodule(name), torch.float32)
        assert torch.equal(dequantise(layer.base_layer, torch.float32), fresh)


@nf4
def test_sft_trainer_leaves_the_values_in_float32(kind, base, tmp_path):  # it casts LoRA's to bfloat16
    trl = pytest.importorskip("trl")
    from test_trl import SETTINGS, letters, rows

    settings = trl.SFTConfig(str(tmp_path), **SETTINGS, max_steps=2, per_device_train_batch_size=2, max_length=16)
    given = {"train_dataset": rows(text=["random masks", "are enough"]), "processing_class": letters()}
    trainer = trl.SFTTrainer(quantised(base, kind), settings, peft_config=config(), **given)
    trainer.train()
    for layer in layers(trainer.model).values():
        values = layer.rmbook_values["default"].weight
        assert values.dtype == torch.float32 and values.any() and not torch.equal(values, values.bfloat16().float())


@some_kinds
def test_gradients_equal_those_of_the_dense_model(kind, base):
    model = shaken(get_peft_model(quantised(base, kind), config(target_modules="all-linear")))
    dense = wide()
    for name, layer in layers(model.base_model.model).items():
        dense.get_submodule(name).weight.data = dequantise(layer.base_layer, torch.float32)
    dense = shaken(get_peft_model(dense, config(target_modules="all-linear")))
    loss(model).backward(), loss(dense).backward()
    mine, other = gradients(model), gradients(dense)
    assert len(mine) == 12 and mine.keys() == other.keys()
    assert all(near(mine[name], other[name], 2e-6) for name in mine)


@nf4
def test_a_mask_of_the_16_bit_model_works_on_its_4_bit_form_and_says_that_this_is_another(kind, base, tmp_path):
    shaken(get_peft_model(wide(torch.bfloat16), config())).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="trained on a base model with other weights"):
        model = PeftModel.from_pretrained(quantised(base, kind), tmp_path)
    expected = logits(shaken(get_peft_model(quantised(base, kind), config())))
    assert torch.equal(logits(model), expected)
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="trained on a base model with other weights"):
        served = AutoPeftModelForCausalLM.from_pretrained(tmp_path, quantization_config=settings_of(kind))
    assert torch.equal(logits(served.eval()), expected)
