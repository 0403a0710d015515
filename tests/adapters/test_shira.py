"""SHiRA adapters: equal outputs in peft and rmbook, in both directions, and refusals by name of all that is wrong."""

import json
import os
import random
import re
import warnings

import numpy as np
import peft
import pytest
import safetensors.torch
import torch
from conftest import TwoLayers, state_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, ShiraConfig, get_peft_model
from safetensors import safe_open
from small_language_models import IDS, TARGETS, logits, small, train_a_little
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, OPTForCausalLM, OPTForSequenceClassification

from rmbook import (
    AdapterBaseError,
    AdapterCorruptError,
    AdapterError,
    Mask,
    MaskedLinear,
    TargetError,
    apply_random_mask,
    load_adapter,
    sample_mask,
    save_adapter,
)
from rmbook.adapters.shira import _padded, load_from_shira, save_as_shira
from rmbook.adapters.shira_folder import CONFIG, WEIGHTS, ShiraError
from rmbook.tensor_files import digest_tensors

pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # of torch, on peft's sparse matrices


def masked(kind, density=0.1, dtype=torch.float32, structure="entries"):
    model = small(kind, dtype)
    masking = apply_random_mask(model, TARGETS[kind], density=density, seed=3, structure=structure)
    train_a_little(model, masking.parameters())
    return model, masking


def peft_trained(kind, dtype=torch.float32, mask_fn=None, steps=4, **changes):
    config = ShiraConfig(**{"r": 2, "target_modules": TARGETS[kind], "random_seed": 7, **changes})
    config.mask_fn = mask_fn or config.mask_fn
    model = get_peft_model(small(kind, dtype), config)
    train_a_little(model, (parameter for parameter in model.parameters() if parameter.requires_grad), steps)
    return model.eval()


def in_peft(base, folder):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=UserWarning, module="peft")  # such as missing adapter keys
        return PeftModel.from_pretrained(base, folder).eval()


def matrices(masking):
    return {
        name: torch.zeros(layer.mask.numel, dtype=layer.values.dtype).index_put_(
            (layer.mask.positions.long(),), layer.values.detach()
        )
        for name, layer in masking.layers.items()
    }


# -- from rmbook to peft ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.0, 0.003, 0.1, 0.4])
@pytest.mark.parametrize("kind", ["opt", "llama"])
def test_peft_gives_the_same_logits(tmp_path, kind, density):
    model, masking = masked(kind, density) if density else (small(kind), None)
    masking = masking or apply_random_mask(model, TARGETS[kind], density=0.0)
    wanted = logits(model)
    assert not density or (wanted - logits(small(kind))).abs().max() > 0.001
    before = state_bytes(model)
    rank = save_as_shira(masking, tmp_path / "shira")
    torch.testing.assert_close(logits(in_peft(small(kind), tmp_path / "shira")), wanted, rtol=0, atol=1e-6)
    assert state_bytes(model) == before
    counts = [layer.mask.nnz / sum(layer.mask.shape) for layer in masking.layers.values()]
    assert rank - 1 <= max(counts) <= rank  # the smallest that holds them


def test_bfloat16_agrees_too(tmp_path):
    model, masking = masked("opt", dtype=torch.bfloat16)
    save_as_shira(masking, tmp_path / "shira")
    torch.testing.assert_close(
        logits(in_peft(small("opt", torch.bfloat16), tmp_path / "shira")), logits(model), rtol=0.02, atol=0.02
    )


def test_peft_changes_exactly_the_entries_of_the_mask(tmp_path):
    model, masking = masked("llama")
    save_as_shira(masking, tmp_path / "shira")
    loaded = in_peft(small("llama"), tmp_path / "shira").base_model.model
    for name, matrix in matrices(masking).items():
        delta = loaded.get_submodule(name).get_delta_weight("default").to_dense()
        assert torch.equal(delta.flatten(), matrix)


def test_a_layer_whose_name_ends_like_a_target_stays_out(tmp_path):
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.block = nn.Linear(24, 40), TwoLayers()
            self.blockXfirst = nn.Linear(16, 3)  # a regular expression's dot matches the X

        def forward(self, x):
            return self.block(x) + self.first(x).sum(-1, keepdim=True)

    def nested():
        torch.manual_seed(1)
        return Nested()

    model, x = nested(), torch.randn(5, 24)
    masking = apply_random_mask(model, ["block.first", "block.second"], density=0.1)
    with torch.no_grad():
        for values in masking.parameters():
            values.normal_()
    save_as_shira(masking, tmp_path / "shira")
    loaded = in_peft(nested(), tmp_path / "shira")
    assert type(loaded.base_model.model.first) is type(loaded.base_model.model.blockXfirst) is nn.Linear
    torch.testing.assert_close(loaded(x), model(x), rtol=0, atol=1e-6)
    assert list(load_from_shira(nested(), tmp_path / "shira").layers) == ["block.first", "block.second"]


def test_a_mask_that_does_not_fit_is_refused_with_what_to_do(tmp_path):
    _, masking = masked("opt", density=0.97)
    with pytest.raises(ShiraError, match=r"cannot express.*r = \d+.*save_merged"):
        save_as_shira(masking, tmp_path / "shira")
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 1))  # 8 entries; r = 1 would need 9
    with pytest.raises(ShiraError, match=r"'1' of shape \(1, 8\) is too small"):
        save_as_shira(apply_random_mask(model, ["0", "1"], density=0.2), tmp_path / "shira")
    assert list(tmp_path.iterdir()) == []


def test_what_must_not_be_saved_is_refused(tmp_path, monkeypatch):
    _, masking = masked("opt")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/precious").touch()
    with pytest.raises(FileExistsError, match="not an empty folder"):
        save_as_shira(masking, tmp_path / "full")
    with pytest.raises(FileNotFoundError, match="create it first"):
        save_as_shira(masking, tmp_path / "none/shira")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            save_as_shira(masking, tmp_path / "shira")
    with torch.no_grad():
        next(masking.parameters())[0] = torch.nan
    with pytest.raises(ShiraError, match="not finite"):
        save_as_shira(masking, tmp_path / "shira")
    masking.remove()
    with pytest.raises(ValueError, match="removed"):
        save_as_shira(masking, tmp_path / "shira")
    assert {path.name for path in tmp_path.rglob("*")} == {"full", "precious"}


@given(out=st.integers(1, 9), columns=st.integers(1, 9), density=st.floats(0, 1), data=st.data())
@settings(max_examples=300, deadline=None)
def test_padding_adds_other_positions_of_the_matrix(out, columns, density, data):
    mask = sample_mask((out, columns), density, 0, "x")
    count = data.draw(st.integers(mask.nnz, mask.numel))
    padded = _padded(mask, count)
    assert torch.equal(padded[: mask.nnz], mask.positions.long())
    assert padded.unique().numel() == padded.numel() == count
    assert count == 0 or 0 <= padded.min() <= padded.max() < mask.numel


def test_padding_is_uniform_over_the_free_positions(monkeypatch):
    mask = Mask((4, 5), torch.tensor([0, 3, 4, 11, 19], dtype=torch.int32))
    generator, counts = np.random.default_rng(5), np.zeros(20)
    monkeypatch.setattr(np.random, "default_rng", lambda _: generator)
    for _ in range(3000):
        counts[_padded(mask, 9)[5:].numpy()] += 1
    assert np.all(counts[mask.positions.numpy()] == 0)
    expected = 3000 * 4 / 15  # binomial: a standard deviation of 24
    assert np.abs(counts[counts > 0] - expected).max() < 5 * 24.3 and np.count_nonzero(counts) == 15


# -- from peft to rmbook ---------------------------------------------------------------------------------------------


def every_third(base_layer, r, **_):
    mask = torch.zeros(base_layer.weight.numel())
    mask[torch.arange(r * sum(base_layer.weight.shape)) * 3 % mask.numel()] = 1
    return mask.view(base_layer.weight.shape)


@pytest.mark.parametrize(
    "changes",
    [{}, {"r": 5, "random_seed": None}, {"mask_type": "thirds", "mask_fn": every_third}, {"init_weights": False}],
    ids=["random", "unseeded", "custom mask", "random start"],
)
@pytest.mark.parametrize("kind", ["opt", "llama"])
@pytest.mark.filterwarnings("ignore:Argument self.mask_type")
def test_rmbook_gives_the_logits_of_a_model_that_peft_trained(tmp_path, kind, changes):
    trained = peft_trained(kind, **changes)
    trained.save_pretrained(tmp_path / "shira")
    model = small(kind)
    assert (logits(trained) - logits(model)).abs().max() > 0.001
    masking = load_from_shira(model, tmp_path / "shira")
    torch.testing.assert_close(logits(model), logits(trained), rtol=0, atol=1e-6)
    for name, layer in masking.layers.items():
        theirs = trained.base_model.model.get_submodule(name)
        rows, columns = theirs.shira_indices["default"].long()
        assert torch.equal(layer.mask.positions.long(), rows * layer.mask.shape[1] + columns)
        assert layer.mask.positions.dtype == torch.int32
    assert masking.trainable == sum(p.numel() for n, p in trained.named_parameters() if "shira_" in n)
    assert masking.recipe is None
    assert list(masking.layers) == [name for name, _ in model.named_modules() if name in masking.layers]
    masking.remove()
    assert state_bytes(model) == state_bytes(small(kind))


def test_from_peft_in_bfloat16(tmp_path):
    trained = peft_trained("llama", torch.bfloat16)
    trained.save_pretrained(tmp_path / "shira")
    model = small("llama", torch.bfloat16)
    load_from_shira(model, tmp_path / "shira")
    torch.testing.assert_close(logits(model), logits(trained), rtol=0.02, atol=0.02)


def test_indices_as_peft_writes_them_on_windows(tmp_path, monkeypatch):
    trained = peft_trained("opt")
    monkeypatch.setattr("platform.system", lambda: "Windows")
    with pytest.warns(UserWarning, match="Windows"):
        trained.save_pretrained(tmp_path / "shira")
    monkeypatch.undo()
    assert safetensors.torch.load_file(tmp_path / "shira" / WEIGHTS).popitem()[1].dtype == torch.float32
    model = small("opt")
    load_from_shira(model, tmp_path / "shira")
    torch.testing.assert_close(logits(model), logits(trained), rtol=0, atol=1e-6)


def test_training_goes_on_in_rmbook(tmp_path):
    peft_trained("opt").save_pretrained(tmp_path / "shira")
    model = small("opt")
    masking = load_from_shira(model, tmp_path / "shira")
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, _ in masking.named_parameters()}
    with torch.no_grad():
        before = model(input_ids=IDS, labels=IDS).loss.item()
    assert train_a_little(model, masking.parameters(), steps=20, learning_rate=0.005) < 0.98 * before
    save_as_shira(masking, tmp_path / "again")
    torch.testing.assert_close(logits(in_peft(small("opt"), tmp_path / "again")), logits(model), rtol=0, atol=1e-6)


def test_one_seed_in_peft_means_one_mask_for_equal_shapes_but_not_here(tmp_path):
    # What a reader of an imported mask should know: these layers are not independent.
    peft_trained("opt").save_pretrained(tmp_path / "shira")
    theirs = load_from_shira(small("opt"), tmp_path / "shira")
    ours = apply_random_mask(small("opt"), ["q_proj"], density=0.125)
    digests = [{n: m.layers[n].mask.digest() for n in m.layers if n.endswith("q_proj")} for m in (theirs, ours)]
    assert [len(set(found.values())) for found in digests] == [1, 2]


# -- there and back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "structure"),
    [
        (torch.float32, "entries"),
        (torch.bfloat16, "entries"),
        (torch.float64, "entries"),
        (torch.float32, "leading_columns"),
        (torch.float32, "random_columns"),
    ],
)
def test_there_and_back_is_exact(tmp_path, dtype, structure):
    model, masking = masked("llama", 0.03, dtype, structure)
    save_as_shira(masking, tmp_path / "shira")
    fresh = small("llama", dtype)
    back = load_from_shira(fresh, tmp_path / "shira")
    assert back.recipe == masking.recipe
    assert list(back.layers) == list(masking.layers)
    for (name, layer), ours in zip(back.layers.items(), masking.layers.values(), strict=True):
        assert layer.mask.digest() == ours.mask.digest(), name
        assert torch.equal(layer.values, ours.values) and layer.values.dtype == ours.values.dtype
    assert torch.equal(logits(fresh), logits(model))
    save_adapter(back, tmp_path / "adapter.safetensors")  # the seed is still that of these positions
    again = small("llama", dtype)
    load_adapter(again, tmp_path / "adapter.safetensors")
    assert torch.equal(logits(again), logits(model))


def test_peft_may_save_what_rmbook_wrote(tmp_path):
    model, masking = masked("opt", 0.05)
    save_as_shira(masking, tmp_path / "shira")
    in_peft(small("opt"), tmp_path / "shira").save_pretrained(tmp_path / "resaved")
    fresh = small("opt")
    back = load_from_shira(fresh, tmp_path / "resaved")
    torch.testing.assert_close(logits(fresh), logits(model), rtol=0, atol=1e-6)
    assert back.recipe is None and back.trainable > masking.trainable  # peft knows nothing of padding
    assert all((layer.mask.positions.diff() > 0).all() for layer in back.layers.values())  # the file's are in no order
    assert all(torch.equal(a, b) for a, b in zip(matrices(back).values(), matrices(masking).values(), strict=True))


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One folder that peft wrote and one that rmbook wrote, both for the small OPT; not to be changed."""
    parent = tmp_path_factory.mktemp("folders")
    peft_trained("opt").save_pretrained(parent / "peft")
    save_as_shira(masked("opt")[1], parent / "rmbook")
    return {
        name: {part: (parent / name / part).read_bytes() for part in (CONFIG, WEIGHTS)} for name in ("peft", "rmbook")
    }


def put(folder, files):
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def refused(model, folder, error=AdapterError, match=None):
    before = state_bytes(model), [(m, type(m)) for m in model.modules()], [p.requires_grad for p in model.parameters()]
    with pytest.raises(error, match=match) as raised:
        load_from_shira(model, folder)
    after = state_bytes(model), [(m, type(m)) for m in model.modules()], [p.requires_grad for p in model.parameters()]
    assert before == after
    return raised.value


def edited(files, config=None, tensors=None):
    """The files of a folder after changes to the configuration and to the tensors, consistent as files."""
    content = json.loads(files[CONFIG])
    if config:
        config(content)
    weights = safetensors.torch.load(files[WEIGHTS])
    if tensors:
        tensors(weights)
    weights = {name: tensor.contiguous() for name, tensor in weights.items()}
    return {CONFIG: json.dumps(content).encode(), WEIGHTS: safetensors.torch.save(weights, {"format": "pt"})}


def test_missing_files_and_pickles_are_refused(tmp_path, folders):
    refused(small("opt"), tmp_path / "none", FileNotFoundError, "no adapter configuration")
    files = folders["peft"]
    refused(small("opt"), put(tmp_path / "a", {WEIGHTS: files[WEIGHTS]}), FileNotFoundError, "no adapter configuration")
    only_pickle = {CONFIG: files[CONFIG], "adapter_model.bin": b"\x80\x04."}
    refused(small("opt"), put(tmp_path / "b", only_pickle), FileNotFoundError, "pickle")


@pytest.mark.parametrize(
    ("field", "value", "error", "match"),
    [
        ("peft_type", "LORA", ShiraError, "'LORA'"),
        ("peft_type", None, ShiraError, "None"),
        ("fan_in_fan_out", True, ShiraError, "fan_in_fan_out"),
        ("modules_to_save", ["lm_head"], ShiraError, "modules_to_save"),
        ("layer_pattern_of_the_future", "x", ShiraError, "layer_pattern_of_the_future"),
        ("r", 3, AdapterBaseError, "r = 3"),
        ("r", 0, AdapterCorruptError, "r = 0"),
        ("r", True, AdapterCorruptError, "r = True"),
        ("r", "2", AdapterCorruptError, "r = '2'"),
        ("r", None, AdapterCorruptError, "r = None"),
        ("target_modules", None, AdapterCorruptError, "target_modules"),
        ("target_modules", "", AdapterCorruptError, "target_modules"),
        ("target_modules", [1], AdapterCorruptError, "target_modules"),
        ("target_modules", "(", ShiraError, "regular expression"),
        ("target_modules", "([a-z0-9_.]+)+X", ShiraError, "regular expression"),
        ("target_modules", ["q_proj"], AdapterBaseError, "differ at"),
        ("target_modules", ["q_proj", "v_proj", "fc1", "fc2"], AdapterBaseError, "fc2"),
        ("target_modules", [], AdapterBaseError, "mean 0 layers"),
    ],
)
def test_configurations_that_say_something_else_are_refused(tmp_path, folders, field, value, error, match):
    files = edited(folders["peft"], lambda config: config.update({field: value}))
    refused(small("opt"), put(tmp_path / "shira", files), error, match)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"3", b"null", b"\xff", b'{"peft_type": "SHIRA"', b"[" * 10**5])
def test_rubbish_for_a_configuration_is_refused(tmp_path, folders, content):
    refused(small("opt"), put(tmp_path / "shira", folders["peft"] | {CONFIG: content}), AdapterCorruptError)


def test_fields_that_a_later_peft_leaves_empty_are_no_obstacle(tmp_path, folders):
    files = edited(folders["peft"], lambda config: config.update(future=None, other_future=False, later=[]))
    load_from_shira(small("opt"), put(tmp_path / "shira", files))


ONE = "base_model.model.model.decoder.layers.0.fc1"


def _change(key, function):
    return lambda tensors: tensors.update({f"{ONE}.{key}": function(tensors[f"{ONE}.{key}"])})


def _set(key, position, value):
    def change(tensors):
        tensors[f"{ONE}.{key}"][position] = value

    return change


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (_set("shira_weight", 0, torch.nan), AdapterCorruptError),
        (_set("shira_weight", 0, torch.inf), AdapterCorruptError),
        (_set("shira_indices", (0, 5), 64), AdapterBaseError),  # fc1 is (64, 32)
        (_set("shira_indices", (1, 5), 32), AdapterBaseError),
        (_set("shira_indices", (0, 5), -1), AdapterBaseError),
        (lambda t: t[f"{ONE}.shira_indices"][:, 5].copy_(t[f"{ONE}.shira_indices"][:, 6]), AdapterCorruptError),
        (_change("shira_indices", lambda i: i.flip(0)), AdapterBaseError),
        (_change("shira_indices", lambda i: i.float() + 0.5), AdapterCorruptError),
        (_change("shira_indices", lambda i: i.float() * torch.nan), AdapterCorruptError),
        (_change("shira_indices", lambda i: i.float() + 1e30), AdapterCorruptError),
        (_change("shira_indices", lambda i: i > 0), AdapterCorruptError),
        (_change("shira_indices", lambda i: i[:, :-1]), AdapterCorruptError),
        (_change("shira_indices", lambda i: i.t()), AdapterCorruptError),
        (_change("shira_indices", lambda i: i[0]), AdapterCorruptError),
        (_change("shira_weight", lambda w: w[:-1]), AdapterCorruptError),
        (_change("shira_weight", lambda w: w[None]), AdapterCorruptError),
        (_change("shira_weight", lambda w: w.long()), AdapterCorruptError),
        (_change("shira_weight", lambda w: w.to(torch.complex64)), AdapterCorruptError),
        (_change("shira_weight", lambda w: w.to(torch.float8_e4m3fn)), AdapterCorruptError),
        (lambda t: t.pop(f"{ONE}.shira_weight"), AdapterCorruptError),
        (lambda t: t.pop(f"{ONE}.shira_indices"), AdapterCorruptError),
        (lambda t: [t.pop(f"{ONE}.{part}") for part in ("shira_weight", "shira_indices")], AdapterBaseError),
        (lambda t: t.clear(), AdapterCorruptError),
        (lambda t: t.update({f"{ONE}.lora_A.weight": torch.zeros(2, 2)}), ShiraError),
        (lambda t: t.update({"base_model.model.lm_head.weight": torch.zeros(2, 2)}), ShiraError),
        (lambda t: t.update({"shira_weight": torch.zeros(2)}), ShiraError),
        (lambda t: t.update({ONE[11:] + ".shira_weight": t.pop(f"{ONE}.shira_weight")}), ShiraError),
    ],
)
def test_tensors_that_make_no_sense_are_refused(tmp_path, folders, change, error):
    refused(small("opt"), put(tmp_path / "shira", edited(folders["peft"], tensors=change)), error)


def test_another_base_is_refused(tmp_path, folders):
    from_peft, from_rmbook = (put(tmp_path / name, files) for name, files in folders.items())
    for folder in (from_peft, from_rmbook):
        refused(small("llama"), folder, AdapterBaseError)
        refused(TwoLayers(), folder, AdapterBaseError)
        wider = small("opt")
        wider.model.decoder.layers[1].fc1 = nn.Linear(32, 65)
        refused(wider, folder, AdapterBaseError)
    other_weights = small("opt")
    with torch.no_grad():
        other_weights.lm_head.weight[0, 0] += 1e-6
    refused(other_weights, from_rmbook, AdapterBaseError, "fingerprint")
    load_from_shira(other_weights, from_peft)  # peft's files do not say which weights they belong to


def test_layers_that_cannot_be_masked_are_refused(tmp_path, folders):
    folder = put(tmp_path / "shira", folders["peft"])
    twice = small("opt")
    load_from_shira(twice, folder)
    refused(twice, folder, TargetError, "masked already")
    elsewhere = small("opt")
    apply_random_mask(elsewhere, ["out_proj"], density=0.1)
    refused(elsewhere, folder, TargetError, "masked already")
    tied = small("opt")
    tied.model.decoder.layers[0].self_attn.q_proj.weight = tied.model.decoder.layers[1].self_attn.q_proj.weight
    refused(tied, folder, TargetError, "tied")
    meta = small("opt")
    meta.model.decoder.layers[0].fc1.to("meta")
    with pytest.raises(TargetError, match="meta"):
        load_from_shira(meta, folder)
    wrapped = get_peft_model(small("opt"), LoraConfig(target_modules=["q_proj"])).base_model.model
    refused(wrapped, folder, TargetError, "plain torch.nn.Linear")


def test_conv1d_is_refused(tmp_path):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=16))
    name, (columns, rows) = "transformer.h.0.attn.c_attn", (8, 24)
    indices = torch.stack([torch.arange(rows + columns) % rows, torch.arange(rows + columns) % columns])
    tensors = {
        f"base_model.model.{name}.shira_weight": torch.ones(rows + columns),
        f"base_model.model.{name}.shira_indices": indices.int(),
    }
    config = {"peft_type": "SHIRA", "r": 1, "target_modules": ["c_attn"]}
    folder = put(tmp_path / "shira", {CONFIG: json.dumps(config).encode(), WEIGHTS: safetensors.torch.save(tensors)})
    refused(model, folder, TargetError, "Conv1D")


def test_other_adapters_of_peft_are_refused(tmp_path):
    get_peft_model(small("opt"), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "lora")
    refused(small("opt"), tmp_path / "lora", ShiraError, "'LORA'")
    torch.manual_seed(0)
    classifier = OPTForSequenceClassification(small("opt").config)
    config = ShiraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS")  # saves a trained head as well
    get_peft_model(classifier, config).save_pretrained(tmp_path / "head")
    refused(OPTForSequenceClassification(small("opt").config), tmp_path / "head", ShiraError, "modules_to_save")


# -- damage ----------------------------------------------------------------------------------------------------------


def damage(content, chooser):
    content = bytearray(content)
    kind = chooser.randrange(4)
    if kind == 0:
        return bytes(content[: chooser.randrange(len(content))])
    if kind == 1:
        return bytes(content) + chooser.randbytes(chooser.randrange(1, 9))
    start = chooser.choice([0, 8, 400, len(content)])  # header lengths, headers, anything
    for _ in range(1 if kind == 2 else 9):
        place = (
            chooser.randrange(start and min(start, len(content) - 1), len(content))
            if kind == 3
            else (chooser.randrange(len(content)))
        )
        content[place] ^= 1 << chooser.randrange(8)
    return bytes(content)


def test_every_damage_to_the_tensors_of_rmbook_is_refused(tmp_path, folders):
    chooser, model, files = random.Random(0), small("opt"), folders["rmbook"]
    for _ in range(300):
        content = damage(files[WEIGHTS], chooser)
        if content != files[WEIGHTS]:
            refused(model, put(tmp_path / "shira", files | {WEIGHTS: content}))


def test_damage_to_the_tensors_of_peft_is_refused_or_is_another_adapter(tmp_path, folders):
    # peft stores no checksum: a flipped bit of a value is just another value. But nothing may fail without a name.
    chooser, files, refusals = random.Random(1), folders["peft"], 0
    untouched = state_bytes(small("opt"))
    for _ in range(300):
        model = small("opt")
        try:
            masking = load_from_shira(
                model, put(tmp_path / "shira", files | {WEIGHTS: damage(files[WEIGHTS], chooser)})
            )
            assert all(values.isfinite().all() for values in masking.parameters())
            masking.remove()
        except AdapterError:
            refusals += 1
        assert state_bytes(model) == untouched
    assert refusals > 150


def test_damage_to_the_configuration_is_refused_or_changes_nothing(tmp_path, folders):
    chooser, files, refusals = random.Random(2), folders["rmbook"], 0
    put(tmp_path / "sound", files)
    sound = small("opt")
    load_from_shira(sound, tmp_path / "sound")
    wanted = logits(sound)
    for _ in range(300):
        model = small("opt")
        try:
            folder = put(tmp_path / "shira", files | {CONFIG: damage(files[CONFIG], chooser)})
            load_from_shira(model, folder)
            assert torch.equal(logits(model), wanted)
        except AdapterError:
            refusals += 1
            assert not any(isinstance(module, MaskedLinear) for module in model.modules())
    assert refusals > 150


@given(st.binary(max_size=300), st.sampled_from([CONFIG, WEIGHTS]), st.sampled_from(["peft", "rmbook"]))
@settings(max_examples=100, deadline=None)
def test_any_bytes_at_all_are_refused_by_name(folders, tmp_path_factory, content, part, writer):
    folder = put(tmp_path_factory.getbasetemp() / "any_bytes_at_all", folders[writer] | {part: content})
    refused(small("opt"), folder)


def test_metadata_that_nobody_writes_is_refused(tmp_path, folders):
    files = put(tmp_path / "shira", folders["rmbook"])
    with safe_open(files / WEIGHTS, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
    for change in ({"rmbook": "{}"}, {"extra": "1"}, {"rmbook_content": "0"}):
        safetensors.torch.save_file(tensors, files / WEIGHTS, metadata | change)
        refused(small("opt"), files, AdapterCorruptError, "altered")
    for missing in ("rmbook", "rmbook_content", "format"):
        kept = {name: value for name, value in metadata.items() if name != missing}
        safetensors.torch.save_file(tensors, files / WEIGHTS, kept)
        refused(small("opt"), files, AdapterCorruptError, "altered")


@pytest.mark.parametrize(
    "change",
    [
        lambda origin: origin.clear(),
        lambda origin: origin.update(base_fingerprint=3),
        lambda origin: origin.update(recipe={"targets": 3}),
        lambda origin: origin["recipe"].update(density="a lot"),
        lambda origin: origin["recipe"].update(extra=1),
        lambda origin: origin["counts"].popitem(),
        lambda origin: origin["counts"].update(dict.fromkeys(origin["counts"], -1)),
        lambda origin: origin["counts"].update(dict.fromkeys(origin["counts"], 10**6)),
        lambda origin: origin["counts"].update(dict.fromkeys(origin["counts"], "3")),
    ],
)
def test_an_origin_that_is_made_to_deceive_is_refused(tmp_path, folders, change):
    folder = put(tmp_path / "shira", folders["rmbook"])
    with safe_open(folder / WEIGHTS, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
    origin = json.loads(metadata["rmbook"])
    change(origin)
    metadata["rmbook"] = json.dumps(origin)
    metadata["rmbook_content"] = digest_tensors(tensors, metadata["rmbook"])
    safetensors.torch.save_file(tensors, folder / WEIGHTS, metadata)
    refused(small("opt"), folder, AdapterCorruptError, "origin")


def test_peft_still_has_the_fields_that_are_known_here():
    # A new field of peft's configuration must be looked at before it is read past or refused.
    from rmbook.adapters.shira_folder import IRRELEVANT

    looked_at = {"peft_type", "r", "target_modules", "fan_in_fan_out", "modules_to_save"}
    assert set(ShiraConfig().to_dict()) <= IRRELEVANT | looked_at, peft.__version__
    assert re.fullmatch(r"SHIRA", ShiraConfig().peft_type.value)


def test_transformers_own_loader_fails_rather_than_give_other_outputs(tmp_path):
    """It drops the positions; `PeftModel.from_pretrained` does not."""
    model = small("opt")
    model.save_pretrained(tmp_path / "base")
    masking = apply_random_mask(model, ["q_proj", "v_proj"], density=0.1)
    save_as_shira(masking, tmp_path / "shira")
    other = OPTForCausalLM.from_pretrained(tmp_path / "base")
    with pytest.raises(KeyError):
        other.load_adapter(str(tmp_path / "shira"))
        other(torch.arange(5)[None])
