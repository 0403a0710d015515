"""Adapters of random masks as files: peft's folders, transformers' and rmbook's, a stranger's, and checkpoints."""

import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path

import pytest
import safetensors.torch
import torch
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model
from peft import get_peft_model_state_dict as saved_state
from peft import set_peft_model_state_dict as load_state
from peft_models import IDS, TARGETS, base_bits, config, layers, logits, loss, same, shaken, tiny
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from rmbook import (
    AdapterError,
    RandomMaskConfig,
    apply_masks,
    apply_random_mask,
    load_adapter,
    load_from_peft,
    save_adapter,
    save_as_peft,
)
from rmbook.adapters.errors import AdapterBaseError, AdapterCorruptError
from rmbook.integrations.peft_checks import MaskMismatchError
from rmbook.methods.architectures import conv1d_to_linear


@pytest.fixture
def folder(tmp_path):
    """A saved adapter of the tiny model."""
    shaken(get_peft_model(tiny(), config())).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def base(tmp_path):
    """The tiny model's folder."""
    tiny().save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def rewrite(folder, **changed):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def rewrite_tensors(folder, change):
    path = folder / "adapter_model.safetensors"
    safetensors.torch.save_file(change(safetensors.torch.load_file(path)), path)


# -- peft ----------------------------------------------------------------------------------------------------------


def test_the_folder_has_values_and_digests_and_a_density(tmp_path):
    model = shaken(get_peft_model(tiny(), config(density=None, ratio=0.01)))
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["ratio"] is None and saved["density"] == model.peft_config["default"].density
    tensors = safetensors.torch.load_file(tmp_path / "adapter_model.safetensors")
    assert {key.partition("_proj.")[2] for key in tensors} == {"rmbook_values.weight", "rmbook_digest"}
    assert torch.equal(logits(PeftModel.from_pretrained(tiny(), tmp_path)), logits(model))


@pytest.mark.parametrize("low", [False, True])
def test_values_keep_their_precision_on_a_base_in_bfloat16(tmp_path, low):
    model = shaken(get_peft_model(tiny(torch.bfloat16), config()))
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny(torch.bfloat16), tmp_path, low_cpu_mem_usage=low)
    assert same(saved_state(model), saved_state(again)) and torch.equal(logits(again), logits(model))


def test_modules_to_save(tmp_path):
    model = get_peft_model(tiny(), config(modules_to_save=["lm_head"]))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    loss(model).backward(), optimizer.step()
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny(), tmp_path)
    assert torch.equal(logits(again), logits(model)) and not torch.equal(logits(model), logits(tiny()))
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(tiny()))
    with pytest.raises(AdapterError, match="more than masks"):
        load_from_peft(tiny(), tmp_path)


# -- what must be noticed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changed", [{"seed": 1}, {"density": 0.051}, {"structure": "random_columns"}])
@pytest.mark.parametrize("load", [PeftModel.from_pretrained, load_from_peft])
def test_other_positions_are_noticed(folder, changed, load):
    rewrite(folder, **changed)
    with pytest.raises((MaskMismatchError, AdapterCorruptError), match="other positions|not what density"):
        load(tiny(), folder)


def test_other_positions_of_the_same_count_are_noticed():  # as in Trainer's resume, which reads no configuration
    changed = {"structure": "random_columns", "density": 0.25}
    state = saved_state(shaken(get_peft_model(tiny(), config(**changed))))
    with pytest.raises(MaskMismatchError, match="other positions"):
        load_state(get_peft_model(tiny(), config(**changed, seed=1)), state)


def renamed(tensors, old="q_proj", new="query"):
    return {key.replace(old, new): tensor for key, tensor in tensors.items()}


def test_renamed_modules_are_noticed_and_stored_positions_find_their_way(tmp_path, folder):
    rewrite_tensors(folder, renamed)  # a file of a version whose modules had another name
    with pytest.raises(MaskMismatchError, match="no values for .*q_proj"):
        PeftModel.from_pretrained(tiny(), folder)
    with pytest.raises(AdapterBaseError, match="query"):
        load_from_peft(tiny(), folder)
    mapping = {"query": "q_proj"}
    with pytest.raises(MaskMismatchError):
        PeftModel.from_pretrained(tiny(), folder, key_mapping=mapping)
    state = saved_state(shaken(get_peft_model(tiny(), config())))
    swapped = renamed(renamed(renamed(state, "q_proj", "x"), "v_proj", "q_proj"), "x", "v_proj")
    with pytest.raises((MaskMismatchError, RuntimeError), match="other positions|size mismatch"):
        load_state(get_peft_model(tiny(), config()), swapped)

    model = shaken(get_peft_model(tiny(), config(store_positions=True)))
    model.save_pretrained(tmp_path / "stored")
    rewrite_tensors(tmp_path / "stored", renamed)
    again = PeftModel.from_pretrained(tiny(), tmp_path / "stored", key_mapping=mapping)
    assert torch.equal(logits(again), logits(model))


def test_another_base_is_noticed_and_a_cast_one_is_not(folder):
    other = tiny()
    with torch.no_grad():
        other.model.decoder.layers[1].self_attn.q_proj.weight.mul_(1.1)
    with pytest.raises(AdapterBaseError, match="other weights"):
        load_from_peft(other, folder)
    with pytest.warns(UserWarning, match="other weights"):
        PeftModel.from_pretrained(other, folder)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*other weights.*")
        PeftModel.from_pretrained(tiny(), folder)
        PeftModel.from_pretrained(tiny(torch.bfloat16), folder)


def part_of(key):
    return key.split(".rmbook_")[1].removesuffix(".weight")


def forged(**parts):
    """Every tensor of these kinds changed."""
    return lambda tensors: {key: parts.get(part_of(key), lambda t: t)(t) for key, t in tensors.items()}


@pytest.mark.parametrize("load", [PeftModel.from_pretrained, load_from_peft])
@pytest.mark.parametrize(
    "change",
    [
        forged(values=lambda t: torch.full_like(t, torch.nan)),
        forged(values=lambda t: t[:-40].clone()),
        forged(values=lambda t: t[None]),
        forged(digest=lambda t: t.flip(0)),
        lambda tensors: dict(list(tensors.items())[2:]),
    ],
)
def test_forged_tensors_are_refused(folder, change, load):
    rewrite_tensors(folder, change)
    with pytest.raises((AdapterError, RuntimeError), match="(?s)^(?!.*Traceback)"):
        load(tiny(), folder)


def test_nothing_is_drawn_for_a_forged_density(folder):
    rewrite(folder, density=1.0)
    with pytest.raises(AdapterCorruptError, match="not what density 1 draws"):
        PeftModel.from_pretrained(tiny(), folder)
    rewrite(folder, density="0.05")
    with pytest.raises(ValueError, match="density must be a number"):
        PeftModel.from_pretrained(tiny(), folder)


def test_nor_of_one_on_the_hub(tmp_path, folder):
    snapshot = tmp_path / "hub" / "models--someone--adapter" / "snapshots" / ("a" * 40)  # as the hub's cache has it
    snapshot.parent.parent.joinpath("refs").mkdir(parents=True)
    snapshot.parent.parent.joinpath("refs", "main").write_text("a" * 40)
    shutil.copytree(folder, snapshot / "inner")
    place = {"cache_dir": tmp_path / "hub", "local_files_only": True, "subfolder": "inner"}
    stored = RandomMaskConfig.from_pretrained("someone/adapter", **place).stored
    assert stored == RandomMaskConfig.from_pretrained(folder).stored and len(stored) == 4
    rewrite(snapshot / "inner", density=1.0)
    with pytest.raises(AdapterCorruptError, match="not what density 1 draws"):
        PeftModel.from_pretrained(tiny(), "someone/adapter", **place)


# -- rmbook's own files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("positions", [False, True])
def test_from_peft_to_rmbooks_file_and_back(tmp_path, dtype, positions):
    changed = {"scale": "inverse_density", "structure": "random_columns", "store_positions": positions}
    model = shaken(get_peft_model(tiny(dtype), config(**changed)), size=1e-3)
    model.save_pretrained(tmp_path / "peft")
    masked = tiny(dtype)
    save_adapter(load_from_peft(masked, tmp_path / "peft"), tmp_path / "file")
    assert torch.equal(logits(masked), logits(model))
    masked = tiny(dtype)
    masking = load_adapter(masked, tmp_path / "file")
    save_as_peft(masking, tmp_path / "again", task_type="CAUSAL_LM", store_positions=positions)
    again = PeftModel.from_pretrained(tiny(dtype), tmp_path / "again")
    assert torch.equal(logits(again), logits(model)) and same(saved_state(again), saved_state(model))


def test_a_model_of_gpt2s_kind_takes_its_adapter_back(tmp_path):
    def model():
        torch.manual_seed(0)
        sizes = {"n_layer": 1, "n_embd": 16, "n_head": 2, "vocab_size": 64, "n_positions": 64}
        return conv1d_to_linear(GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=1)).eval())

    masking = apply_random_mask(masked := model(), ["c_attn"], density=0.1)  # (48, 16): rows are more than columns
    for values in masking.parameters():
        values.data.normal_()
    save_as_peft(masking, tmp_path / "folder")
    load_from_peft(other := model(), tmp_path / "folder")
    assert torch.equal(logits(other), logits(masked))


def test_given_masks_travel_with_their_positions(tmp_path):
    drawn = apply_random_mask(tiny(), TARGETS, density=0.1, seed=77)
    masked = tiny()
    masking = apply_masks(masked, {name: layer.mask for name, layer in drawn.layers.items()})
    for values in masking.parameters():
        values.data.fill_(0.1)
    save_as_peft(masking, tmp_path / "folder", task_type="CAUSAL_LM")
    model = PeftModel.from_pretrained(tiny(), tmp_path / "folder")
    model.load_adapter(tmp_path / "folder", "second")
    assert torch.equal(logits(model), logits(masked))
    model.set_adapter("second")
    assert torch.equal(logits(model), logits(masked))
    other = tiny()
    load_from_peft(other, tmp_path / "folder")
    assert torch.equal(logits(other), logits(masked))
    with pytest.raises(FileExistsError):
        save_as_peft(masking, tmp_path / "folder")
    masking.remove()
    with pytest.raises(ValueError, match="removed"):
        save_as_peft(masking, tmp_path / "other")
    assert not (tmp_path / "other").exists()


# -- transformers --------------------------------------------------------------------------------------------------


def test_transformers_own_adapters(tmp_path, base):
    model = AutoModelForCausalLM.from_pretrained(base)
    model.add_adapter(config(), "one")
    model.add_adapter(config(seed=1), "two")
    shaken(model, adapter="one"), shaken(model, seed=1, adapter="two")
    model.set_adapter("one")
    one = logits(model)
    model.save_pretrained(tmp_path / "one")
    model.set_adapter("two")
    assert not torch.equal(logits(model), one)
    model.disable_adapters()
    assert torch.equal(logits(model), logits(tiny()))
    model.enable_adapters()
    model.delete_adapter("two")
    model.set_adapter("one")
    assert torch.equal(logits(model), one)

    again = AutoModelForCausalLM.from_pretrained(base)
    info = again.load_adapter(str(tmp_path / "one"))
    assert not info.missing_keys and not info.unexpected_keys and torch.equal(logits(again), one)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "one")), one)
    assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "one")), one)
    with_peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "one")
    with_peft.save_pretrained(tmp_path / "of_peft")
    third = AutoModelForCausalLM.from_pretrained(base)
    third.load_adapter(str(tmp_path / "of_peft"))
    assert torch.equal(logits(third), one)


def test_transformers_loading_notices_other_positions_when_they_are_used(tmp_path, base):
    model = AutoModelForCausalLM.from_pretrained(base)
    model.add_adapter(config(structure="random_columns", density=0.25))
    shaken(model).save_pretrained(tmp_path / "one")
    rewrite(tmp_path / "one", seed=1)
    again = AutoModelForCausalLM.from_pretrained(base)
    again.load_adapter(str(tmp_path / "one"))  # sets tensors past the layers
    again.to(torch.float64)
    with pytest.raises(MaskMismatchError):
        logits(again)


def test_a_compiled_layer_notices_them_too(tmp_path, base):
    torch._dynamo.reset()
    model, x = AutoModelForCausalLM.from_pretrained(base), torch.ones(3, 32)
    model.add_adapter(config(structure="random_columns", density=0.25))
    shaken(model).save_pretrained(tmp_path / "one")
    expected = next(iter(layers(model).values()))(x)
    for seed in (0, 1):
        rewrite(tmp_path / "one", seed=seed)
        again = AutoModelForCausalLM.from_pretrained(base)
        again.load_adapter(str(tmp_path / "one"))
        compiled = torch.compile(next(iter(layers(again).values())), backend="eager")
        if seed:
            with pytest.raises(MaskMismatchError):
                compiled(x)
        else:
            torch.testing.assert_close(compiled(x), expected)


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, place):
        row = torch.randint(0, 64, (10,), generator=torch.Generator().manual_seed(place))
        return {"input_ids": row, "labels": row}


def trained(model, folder, resume=None, **changed):
    settings = {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-2}
    settings |= {"report_to": [], "use_cpu": True, "disable_tqdm": True, **changed}
    trainer = Trainer(model, TrainingArguments(str(folder), **settings), train_dataset=Rows(), eval_dataset=Rows())
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_trainer_resumes_bit_for_bit_and_loads_the_best_model(tmp_path):
    changed = {"gradient_checkpointing": True, "gradient_accumulation_steps": 2}
    changed |= {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
    whole, again = (get_peft_model(tiny(), config()) for _ in range(2))
    trained(whole, tmp_path / "a", **changed).save_model(tmp_path / "final")
    halfway = tmp_path / "a" / "checkpoint-2"
    trained(again, tmp_path / "b", str(halfway), **changed)
    assert same(saved_state(whole), saved_state(again))
    assert any(value.any() for name, value in saved_state(whole).items() if "values" in name)
    assert torch.equal(logits(PeftModel.from_pretrained(tiny(), tmp_path / "final")), logits(whole.eval()))
    with pytest.raises((MaskMismatchError, RuntimeError)):
        trained(get_peft_model(tiny(), config(seed=4)), tmp_path / "c", str(halfway))


# -- new processes -------------------------------------------------------------------------------------------------

OTHER = """
import sys, torch
from peft import AutoPeftModelForCausalLM
from rmbook import RandomMaskConfig
sys.path.insert(0, sys.argv[1])
import test_peft_files
test_peft_files.train_in_group(1, sys.argv[2], AutoPeftModelForCausalLM.from_pretrained(sys.argv[3], is_trainable=True))
"""


WAIT = timedelta(minutes=4)  # for the other process: it may have died


def train_in_group(rank, store, model):
    """Two steps on every second row, in a group of two processes."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=WAIT)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        for _ in range(2):
            wrapped(input_ids=IDS[rank::2], labels=IDS[rank::2]).loss.backward()
            optimizer.step(), optimizer.zero_grad()
        time.sleep(0.5)  # torch joins gloo's thread with Python's lock, for which it may still wait
    finally:
        torch.distributed.destroy_process_group()


def test_a_new_process_loads_the_adapter_and_trains_with_this_one(tmp_path, base):
    alone, model = (shaken(get_peft_model(AutoModelForCausalLM.from_pretrained(base), config())) for _ in range(2))
    model.save_pretrained(tmp_path / "adapter")
    arguments = [str(Path(__file__).parent), str(tmp_path / "store"), str(tmp_path / "adapter")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", OTHER, *arguments], env=environment) as other:
        train_in_group(0, tmp_path / "store", model)
    assert other.returncode == 0
    optimizer = torch.optim.SGD([p for p in alone.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        loss(alone).backward(), optimizer.step(), optimizer.zero_grad()
    for mine, theirs in zip(layers(alone).values(), layers(model).values(), strict=True):
        torch.testing.assert_close(mine.rmbook_values["default"].weight, theirs.rmbook_values["default"].weight)
    assert same(base_bits(model), base_bits(tiny()))
