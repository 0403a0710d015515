"""Recorded grids of language models: whole, chosen by the one rule, and silent about this machine."""

import json
import math

import pandas as pd
import pytest

from rmbook.evidence.grids import read_recorded_grid
from rmbook.evidence.language_grids import (
    describe_files,
    find_recorded,
    fit_to_memory,
    perform_language,
    plan_language,
    recorded_run,
    recording_command,
    result_name,
    summary,
)
from rmbook.offline.sentences import write_generated_examples
from rmbook.runs.config import RunConfig
from rmbook.sweeps.grid import combinations, expand

SEEDS = (0, 1)
SIZES = {"train_size", "dev_size", "test_size", "epochs"}


def test_names_and_commands():
    assert result_name("tiny-opt") == "fine_tuning_opt" and result_name("tiny-llama", "rte") == "fine_tuning_llama_rte"
    assert result_name("facebook/opt-125m") == "fine_tuning_opt-125m"
    assert recording_command("tiny-opt") == "rmbook record fine_tuning_tiny --data-dir DIR"
    assert recording_command("tiny-llama") == "rmbook record fine_tuning_tiny --model tiny-llama --data-dir DIR"
    command = recording_command("facebook/opt-1.3b", "rte")
    assert command == "rmbook record fine_tuning_hub --model facebook/opt-1.3b --task rte"
    assert find_recorded("facebook/opt-66b") is None


def hub_grid(model, memory):
    grid = read_recorded_grid("fine_tuning_hub")
    return fit_to_memory(grid | {"fixed": grid["fixed"] | {"model": model}}, memory)


@pytest.mark.parametrize(
    ("model", "memory", "full"),
    [("facebook/opt-1.3b", 24, True), ("facebook/opt-13b", 80, False), ("meta-llama/Llama-2-7b-hf", None, False)],
)
def test_every_cell_of_a_grid_is_a_valid_run(model, memory, full):
    grid = hub_grid(model, memory)
    configs = expand({name: grid[name] for name in ("fixed", "axes", "except") if name in grid})
    assert ("full" in {config.method for config in configs}) == full
    assert len(configs) == 2 * 3 * (5 if full else 4)
    assert (configs[0].dtype, configs[0].mixed_precision) == (("float32", "bf16") if full else ("bfloat16", "no"))
    assert not any(config.gradient_checkpointing for config in configs)


def test_a_large_model_on_a_small_gpu_saves_memory():
    settings = hub_grid("meta-llama/Llama-2-7b-hf", 24)["fixed"]
    assert settings["gradient_checkpointing"] and settings["micro_batch_size"] < 8 and settings["dtype"] == "bfloat16"


def row(method, rate, seed, right, loss, test):
    return {"method": method, "learning_rate": rate, "seed": seed, "trainable": 1, "status": "completed"} | {
        "dev_loss": loss,
        "dev_accuracy": right,
        "test_score": test,
    }


def test_the_learning_rate_is_chosen_by_dev_and_never_by_test():
    cells = ((1, 60, 0.9, 99), (2, 70, 0.5, 50), (3, 70, 0.6, 98))
    runs = [row("a", rate, s, right, loss, test) for rate, right, loss, test in cells for s in SEEDS]
    best = summary(runs + [row("b", 1, s, 50, 0.5, 60 + s) for s in SEEDS]).loc
    assert best["a", "learning_rate"] == 2 and best["a", "test"] == 50 and best["a", "runs"] == 2
    assert not best["a", "at_edge"] and best["b", "at_edge"]
    assert (best["b", "test"], best["b", "test_low"], best["b", "test_high"]) == (60.5, 60, 61)


def test_a_rate_at_which_a_seed_broke_is_out_and_a_method_without_scores_is_left_out():
    config = {"method": "lora", "density": None, "ratio": None, "learning_rate": 3, "seed": 0}
    broken = recorded_run(config, {"status": "out of memory", "best_epoch": 0, "test": None})
    assert broken["dev_loss"] is broken["test_score"] is None
    runs = [row("lora", 1, 0, 50, 0.5, 60), row("lora", 2, 0, 60, 0.1, 90), row("lora", 2, 1, None, None, None), broken]
    best = summary([*runs, row("lora", 1, 1, 50, 0.5, 60), broken | {"method": "full"}])
    assert list(best.index) == ["lora"] and best["learning_rate"]["lora"] == 1


def test_files_are_described_without_their_place(tmp_path):
    write_generated_examples(tmp_path, 6, 4)
    found = describe_files("SST-2", str(tmp_path))
    assert str(tmp_path) not in json.dumps(found)
    assert {name: file["lines"] for name, file in found["files"].items()} == {"train.tsv": 7, "dev.tsv": 5}
    assert describe_files("SST-2", None)["repository"] == "nyu-mll/glue"


def test_the_shipped_record_is_the_whole_grid_on_the_genuine_validation_split():
    recorded, grid = find_recorded("tiny-opt"), read_recorded_grid("fine_tuning_tiny")
    runs = pd.DataFrame(recorded["runs"])
    assert (runs["status"] == "completed").all()
    settings = [RunConfig(**cell).to_dict() for cell in combinations(grid)]
    names = ("method", "learning_rate", "seed")
    expected = [recorded_run(cell, {"best_epoch": 0, "test": None}) for cell in settings]
    assert [{n: run[n] for n in names} for run in recorded["runs"]] == [{n: run[n] for n in names} for run in expected]
    assert recorded["settings"] == {name: grid["fixed"][name] for name in grid["fixed"] if name in SIZES}
    assert recorded["records"]["files"]["dev.tsv"]["sha256"].startswith("54a9c12c")  # GLUE's, all 872 records
    assert recorded["records"]["tested"] == 872 and (runs["cut_prompts"] == 0).all()
    best = summary(recorded["runs"])
    assert best["dev_loss"]["density 0.01"] > math.log(2)  # it has learned nothing: which rate is its best is chance
    assert not best["at_edge"].drop("density 0.01").any()
    assert abs(recorded["zero_shot"] - 100 * 444 / 872) < 1.7  # no better than a constant answer, to a standard error
    assert "/work" not in json.dumps(recorded)


def test_a_run_of_the_recorded_grid_ends_here_as_it_did_there(shared, tmp_path):
    """Other processors round otherwise, which moves single examples."""
    recorded, grid = find_recorded("tiny-opt")["runs"], read_recorded_grid("fine_tuning_tiny")
    place = max(range(len(recorded)), key=lambda place: recorded[place]["dev_accuracy"])
    runs = plan_language(grid | {"fixed": grid["fixed"] | {"data_dir": str(shared / "data" / "sst2")}})
    perform_language(runs[place].config, tmp_path)
    again = recorded_run(runs[place].config, json.loads((tmp_path / "result.json").read_text()))
    same = ("method", "learning_rate", "seed", "trainable", "total", "steps", "cut_prompts")
    assert [again[name] for name in same] == [recorded[place][name] for name in same]
    assert again["dev_loss"] == pytest.approx(recorded[place]["dev_loss"], rel=0.1)
    for score in ("dev_accuracy", "test_score"):
        assert again[score] == pytest.approx(recorded[place][score], abs=3)
