"""Several adapters of random masks on one model, and what other tools do with a model that has them."""

import copy
import pickle
from multiprocessing.reduction import ForkingPickler
from unittest import mock

import pytest
import torch
import torch.multiprocessing  # teaches ForkingPickler to share tensors
from peft import LoraConfig, PeftModel, get_peft_model
from peft_models import TARGETS, base_bits, config, gradients, layers, logits, loss, same, shaken, tiny
from torch import nn

from rmbook import RandomMaskConfig, apply_masks, apply_random_mask, load_from_peft, save_as_peft
from rmbook.engine import borrowed
from rmbook.integrations.peft_layer import RandomMaskLinear


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def three(**changed):
    """Layers named "0", "1.0" and "2" with the same mask each, whose values are not zero."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8)), nn.Linear(8, 8))
    return shaken(get_peft_model(base, RandomMaskConfig(**{"target_modules": ["0", "2"], "density": 0.5, **changed})))


@pytest.fixture
def given(tmp_path):
    """A folder of given masks for the tiny model, and the logits."""
    drawn = apply_random_mask(tiny(), TARGETS, density=0.1, seed=77)
    masking = apply_masks(tiny(), {name: layer.mask for name, layer in drawn.layers.items()})
    for values in masking.parameters():
        values.data.fill_(0.1)
    save_as_peft(masking, tmp_path / "given", task_type="CAUSAL_LM")
    return tmp_path / "given", logits(masking.model)


# -- several adapters ----------------------------------------------------------------------------------------------


def test_a_reference_adapter_as_trl_makes_it_equals_the_trained_one():
    model = shaken(get_peft_model(tiny(), config()))
    expected = logits(model)
    model.add_adapter("ref", model.peft_config["default"])
    for name, parameter in model.named_parameters():  # as DPOTrainer, GRPOTrainer, KTOTrainer and RLOOTrainer do it
        if ".default." in name:
            model.get_parameter(name.replace(".default.", ".ref.")).data.copy_(parameter.data)
    model.set_adapter("ref")
    assert torch.equal(logits(model), expected) and not torch.equal(expected, logits(tiny()))


def test_given_masks_are_trained_further_where_this_is_asked_for(given):
    folder, expected = given
    model = PeftModel.from_pretrained(tiny(), folder, is_trainable=True)
    assert len(trainable(model)) == len(layers(model)) == 4 and torch.equal(logits(model), expected)
    loss(model).backward()
    assert gradients(model).keys() == trainable(model)
    assert not trainable(PeftModel.from_pretrained(tiny(), folder))


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("method", ["given", "drawn", "LoRA"])
def test_loading_a_further_adapter_leaves_the_active_one_trainable(tmp_path, given, method, trained):
    settings = LoraConfig(target_modules=TARGETS) if method == "LoRA" else config()
    model, folder = get_peft_model(tiny(), settings), given[0]
    if method != "given":
        model.save_pretrained(folder := tmp_path / "folder")
    before = trainable(model)
    model.load_adapter(folder, "second", is_trainable=trained)
    further = {name.replace("default", "second") for name in before}
    assert before and trainable(model) == (before | further if trained else before)


@pytest.mark.parametrize("first", [TARGETS, "all-linear"])
def test_all_linear_means_masked_layers_too(first):
    model, plain = get_peft_model(tiny(), config(target_modules=first)), tiny()
    model.add_adapter("second", config(target_modules="all-linear", seed=1))
    masked = {name for name, layer in layers(model).items() if "second" in layer.rmbook_values}
    linear = {f"base_model.model.{name}" for name, layer in plain.named_modules() if isinstance(layer, nn.Linear)}
    assert masked == linear - {"base_model.model.lm_head"}  # the output layer is none to peft
    alone = shaken(get_peft_model(plain, config(target_modules="all-linear", seed=1)))
    model.set_adapter("second")
    assert torch.equal(logits(shaken(model, adapter="second")), logits(alone))


def test_weighted_sums_are_refused_with_what_to_do():
    model = three()
    model.add_adapter("other", RandomMaskConfig(target_modules=["0"], density=0.5, seed=1))
    with pytest.raises(NotImplementedError, match="set_adapter.*AdapterBank"):
        model.add_weighted_adapter(["default", "other"], [0.5, 0.5], "sum")


# -- other tools ---------------------------------------------------------------------------------------------------


def call_functionally(model, x):
    state = {name: tensor.clone() for name, tensor in model.state_dict(keep_vars=True).items()}
    return torch.func.functional_call(model, state, (x,))


def call_a_replica(model, x):
    """Call what nn.DataParallel makes on each GPU; here without any."""

    def copies(tensors, devices, detach=False):
        return [[tensor.detach().clone() if detach else tensor.clone() for tensor in tensors] for _ in devices]

    with mock.patch("torch.nn.parallel.replicate._broadcast_coalesced_reshape", copies):
        replica = torch.nn.parallel.replicate(model, [0])[0]
    with mock.patch.object(RandomMaskLinear, "check", lambda *_: pytest.fail("compared digests in each call")):
        return replica(x)


@pytest.mark.parametrize("call", [call_functionally, call_a_replica])
def test_copies_of_the_parameters_compute_and_train_alike(call):
    model, x = three(), torch.ones(1, 8)
    expected = model(x)
    expected.square().sum().backward()
    wanted = gradients(model)
    model.zero_grad()
    output = call(model, x)
    output.square().sum().backward()
    assert torch.equal(output, expected) and same(gradients(model), wanted)


def test_one_token_in_16_bits_is_computed_as_several_are(monkeypatch):
    monkeypatch.setattr(borrowed, "cheapest_way", lambda *_: "add")
    settings = RandomMaskConfig(target_modules=["0"], density=0.5)
    model = get_peft_model(nn.Sequential(nn.Linear(64, 64)).bfloat16(), settings, autocast_adapter_dtype=False)
    x, before = torch.randn(1, 64).bfloat16(), base_bits(shaken(model))
    assert layers(model)["base_model.model.0"].rmbook_values["default"].weight.dtype == torch.bfloat16
    merged = copy.deepcopy(model).merge_and_unload()
    assert torch.equal(model(x), merged(x)) and same(base_bits(model), before)


def test_a_process_that_is_sent_the_model_has_a_base_of_its_own():
    model, x = three(), torch.ones(1, 8)
    expected, sent = model(x), bytes(ForkingPickler.dumps(model))  # as torch.multiprocessing.spawn does
    assert layers(model)["base_model.model.0"].base_layer.weight.is_shared()
    twin = pickle.loads(sent)
    shaken(twin, seed=9)
    twin.merge_adapter()
    assert not torch.equal(twin(x), expected)
    for name, layer in layers(twin).items():
        own = layers(model)[name].base_layer.weight
        assert not layer.base_layer.weight.is_shared() and not torch.equal(layer.base_layer.weight, own)
    tied = pickle.loads(bytes(ForkingPickler.dumps(get_peft_model(tiny(), config(target_modules=["lm_head"])))))
    assert tied.get_output_embeddings().weight is tied.get_input_embeddings().weight


@pytest.mark.parametrize("kind", ["peft", "rmbook"])
def test_an_error_in_moving_a_model_leaves_the_values(kind):
    model = three() if kind == "peft" else nn.Sequential(nn.Linear(8, 8))
    if kind == "rmbook":
        (values,) = apply_random_mask(model, ["0"], density=0.5).parameters()
        values.data.fill_(0.1)
    x = torch.ones(1, 8)
    expected = model(x)

    def out_of_memory(_):
        raise MemoryError

    with pytest.raises(MemoryError):
        model._apply(out_of_memory)
    assert torch.equal(model(x), expected)
    assert torch.equal(model.float()(x), expected)


# -- folders -------------------------------------------------------------------------------------------------------


def test_given_masks_are_for_the_layers_of_these_names_alone(tmp_path):
    def plain():
        return three().unload()

    drawn = apply_random_mask(plain(), ["0"], density=0.5)
    masking = apply_masks(model := plain(), {"0": drawn.layers["0"].mask})
    for values in masking.parameters():
        values.data.fill_(0.1)
    save_as_peft(masking, tmp_path / "folder")
    x = torch.ones(1, 8)
    again = PeftModel.from_pretrained(plain(), tmp_path / "folder")
    assert torch.equal(again(x), model(x)) and len(layers(again)) == 1
    load_from_peft(other := plain(), tmp_path / "folder")
    assert torch.equal(other(x), model(x))


def test_endings_of_names_come_back_where_they_mean_the_same_layers(tmp_path):
    model, few = get_peft_model(tiny(), config()), get_peft_model(tiny(), config(layers_to_transform=[1]))
    model.save_pretrained(tmp_path / "all")
    few.save_pretrained(tmp_path / "few")
    assert load_from_peft(tiny(), tmp_path / "all").recipe.targets == tuple(sorted(TARGETS))
    masking = load_from_peft(tiny(), tmp_path / "few")
    assert masking.recipe.targets == tuple(masking.layers) and len(masking.layers) == 2
    save_as_peft(masking, tmp_path / "again")
    assert len(layers(PeftModel.from_pretrained(tiny(), tmp_path / "again"))) == 2


def test_an_adapter_of_the_output_layer_that_peft_saved(tmp_path):
    changed = {"tie_word_embeddings": False}
    model = shaken(get_peft_model(tiny(**changed), config(target_modules=["lm_head"])))
    model.save_pretrained(tmp_path / "folder")  # with the output layer's own weight
    load_from_peft(other := tiny(**changed), tmp_path / "folder")
    assert torch.equal(logits(other), logits(model))


def test_a_local_folder_asks_no_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "rmbook.integrations.peft_config.hf_hub_download", lambda *_, **__: pytest.fail("asked the hub")
    )
    config().save_pretrained(tmp_path)
    assert RandomMaskConfig.from_pretrained(tmp_path).stored is None
