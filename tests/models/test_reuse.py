"""A base model that is kept between runs: the bits of a fresh one, or no model at all."""

import json
import logging

import pytest
import torch
from tiny_sweep import SERVER

from rmbook.engine.targets import TargetError
from rmbook.methods.apply import apply_method
from rmbook.models.reuse import BaseModels, checksum
from rmbook.offline.sentences import write_generated_examples
from rmbook.offline.tiny_language import make_tiny_checkpoint
from rmbook.runs.config import make_config
from rmbook.runs.prepare import prepare_run
from rmbook.runs.run import start_run
from rmbook.sweeps.grid import plan
from rmbook.sweeps.local import run_sweep
from rmbook.tasks.catalog import find_task

TIMED = ("seconds", "tokens_per_second", "peak_memory", "stamp")
RUNS = (  # each leaves something behind for the next: a gradient, dropout, checkpointing, modules, all weights
    {"method": "bitfit", "learning_rate": 1e30},
    {"method": "bitfit"},
    {"method": "random_masking", "density": 0.5, "dropout": 0.3, "gradient_checkpointing": True},
    {"method": "full", "learning_rate": 1e-3},
    {"method": "adalora", "settings": {"initial_rank": 12}, "mixed_precision": "bf16"},
    {"method": "prefix", "seed": 1},
    {"method": "random_masking", "ratio": 1e-3, "seed": 2},
)

LOAD = find_task("SST-2").load_model


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("places")
    write_generated_examples(folder / "data", train=200, test=100)
    make_tiny_checkpoint(folder / "tiny", pretrain_steps=0)
    settings = {"model": str(folder / "tiny"), "task": "SST-2", "data_dir": str(folder / "data"), "epochs": 2}
    return settings | {"train_size": 32, "dev_size": 8, "test_size": 16, "learning_rate": 1e-2}


def outcome(folder) -> tuple[dict, bytes]:
    result = json.loads((folder / "result.json").read_text())
    adapter = folder / "adapter.safetensors"
    untimed = {name: value for name, value in result.items() if name not in TIMED}
    return untimed, adapter.read_bytes() if adapter.exists() else b""


def test_runs_on_one_loaded_model_are_those_of_fresh_processes_bit_for_bit(settings, tmp_path):
    bases = BaseModels()
    for number, changes in enumerate(RUNS):  # seven; benchmarks/sweep.py reuse makes fifty
        config = make_config(settings | changes)
        process = SERVER.Process(target=start_run, args=(config, tmp_path / f"fresh{number}", False))
        process.start()
        start_run(config, tmp_path / f"kept{number}", progress=False, bases=bases)
        process.join()
        assert outcome(tmp_path / f"kept{number}") == outcome(tmp_path / f"fresh{number}"), changes
    assert bases.loads == 2  # at the beginning, and after full fine-tuning


def parts(model) -> list:
    """All of a model that is no number in a tensor, for a comparison."""
    about = [repr(model), model.config.to_dict(), [(n, p.requires_grad, p.grad) for n, p in model.named_parameters()]]
    for module in model.modules():
        plain = {n: v for n, v in vars(module).items() if isinstance(v, bool | int | float | str | None)}
        hooks = {n: len(v) for n, v in vars(module).items() if n.endswith("_hooks")}
        about.append((type(module), plain, sorted(vars(module)), hooks))
    return about


OTHERS = ({"method": "structured_masking", "ratio": 1e-2}, {"method": "adapter", "dropout": 0.0}, {"method": "lora"})


@pytest.mark.parametrize("changes", RUNS[1:3] + RUNS[4:6] + OTHERS, ids=lambda changes: changes["method"])
def test_whatever_a_run_did_to_the_model_is_undone(changes, settings):
    bases, fresh = BaseModels(), LOAD(settings["model"])[0]
    prepared = prepare_run(make_config(settings | changes), bases)
    model = prepared.model.train()
    model.lm_head.register_forward_hook(lambda *arguments: None)
    model.config.use_cache = False
    for parameter in prepared.method.parameters():
        parameter.grad = torch.ones_like(parameter)
        parameter.data.add_(0.1)
    model(torch.tensor([[5, 6, 7]]))  # masks write their values into the weights here
    assert checksum(model) != checksum(fresh)
    bases.put_back(prepared.method)
    again, _ = bases.take(LOAD, settings["model"])
    assert again is model and bases.loads == 1
    assert parts(again) == parts(fresh) and checksum(again) == checksum(fresh)


@pytest.mark.parametrize("what", ["weight", "buffer", "missing"])
def test_a_model_that_was_tampered_with_is_loaded_anew(what, settings, caplog):
    bases = BaseModels()
    model, _ = bases.take(LOAD, settings["model"])
    model.register_buffer("table", torch.zeros(3), persistent=False)
    bases._given.__init__(("load", "key"), model, None)  # as if it had been loaded with that buffer
    method = apply_method(model, "random_masking", ratio=1e-3)
    with torch.no_grad():
        if what == "weight":
            weight = model.get_input_embeddings().weight
            weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(1.0))  # in the last bit
        elif what == "buffer":
            model.table += 1
        else:
            del model._rmbook_method  # then the method cannot be removed
    with caplog.at_level(logging.WARNING, logger="rmbook.models.reuse"):
        bases.put_back(method)
    assert "loads it anew" in caplog.text
    assert bases.take(LOAD, settings["model"])[0] is not model and bases.loads == 2


def test_another_model_dtype_or_a_failed_run_takes_a_new_one(settings, tmp_path):
    bases, good = BaseModels(), settings | {"method": "lora", "epochs": 1}
    start_run(make_config(good), tmp_path / "a", False, bases)
    with pytest.raises(TargetError):
        start_run(make_config(good | {"targets": "nowhere"}), tmp_path / "b", False, bases)
    start_run(make_config(good), tmp_path / "c", False, bases)
    assert bases.loads == 2
    start_run(make_config(good | {"dtype": "float64"}), tmp_path / "d", False, bases)
    model, _ = bases.take(LOAD, good["model"], dtype=torch.float64)
    assert bases.loads == 3 and {parameter.dtype for parameter in model.parameters()} == {torch.float64}


def test_a_sweep_in_one_process_loads_its_model_once(settings, tmp_path):
    bases = BaseModels()
    runs = plan([make_config(settings | {"method": "bitfit", "epochs": 1, "seed": seed}) for seed in range(3)])
    assert run_sweep(runs, tmp_path / "sweep", bases=bases)["done"] == 3 and bases.loads == 1


def test_tasks_of_language_share_a_model_and_those_of_images_do_not(settings):
    loads = [find_task(name).load_model for name in ("SST-2", "rte", "squad", "MNIST", "SVHN")]
    assert loads[0] == loads[1] == loads[2] and len(set(loads)) == 3 and find_task("mnist").load_model == loads[3]
    bases = BaseModels()
    model, _ = bases.take(loads[0], settings["model"])
    method = apply_method(model, "bitfit")
    bases.put_back(method)
    assert bases.take(loads[2], settings["model"])[0] is model and bases.loads == 1
