"""Recorded grids of language models: whole, resumable, chosen by dev loss, and silent about this machine."""

import json

import pandas as pd
import pytest

from rmbook.evidence import language_grids
from rmbook.evidence.language_grids import (
    SEEDS,
    TINY_RATES,
    Grid,
    describe_files,
    find_recorded,
    make_grid,
    record,
    recording_command,
    result_name,
    run_record,
    summary,
)
from rmbook.methods.apply import METHODS
from rmbook.offline.made import tiny_checkpoint
from rmbook.offline.sentences import write_generated_examples
from rmbook.runs.run import MemoryShortage, start_run

SIZES = {"train_size": 8, "dev_size": 8, "test_size": 8, "epochs": 1}


def test_names_and_commands():
    assert result_name("tiny-opt") == "fine_tuning_opt" and result_name("tiny-llama", "rte") == "fine_tuning_llama_rte"
    assert result_name("facebook/opt-125m") == "fine_tuning_opt-125m"
    assert recording_command("tiny-opt") == "python -m rmbook.language_record --data-dir DIR"
    command = recording_command("facebook/opt-1.3b", "rte")
    assert command == "python -m rmbook.language_record --model facebook/opt-1.3b --task rte"
    assert find_recorded("facebook/opt-66b") is None


@pytest.mark.parametrize(
    ("model", "memory", "full"),
    [("tiny-opt", None, True), ("facebook/opt-1.3b", 24, True), ("facebook/opt-13b", 80, False)],
)
def test_every_cell_of_a_grid_is_a_valid_run(model, memory, full):
    cells = make_grid(model, "sst2", memory).configs("somewhere", None)
    assert ("full" in {key["method"] for key, _ in cells}) == full
    for key, config in cells:
        assert config.method in METHODS and (config.learning_rate, config.seed) == (key["learning_rate"], key["seed"])
        share = key["method"].partition(" ")[2]
        assert {config.ratio, config.density} == {None, float(share)} if share else config.ratio is config.density
    assert len({config.digest() for _, config in cells}) == len(cells)


def test_a_large_model_on_a_small_gpu_saves_memory():
    settings = make_grid("meta-llama/Llama-2-7b-hf", "rte", 24).settings
    assert settings["gradient_checkpointing"] and settings["micro_batch_size"] < 8 and settings["dtype"] == "bfloat16"


def row(method, rate, seed, loss, test):
    return {"method": method, "learning_rate": rate, "seed": seed, "trainable": 1} | {
        "dev_loss": loss,
        "dev_accuracy": 50.0,
        "test_score": test,
    }


def test_the_learning_rate_is_chosen_by_dev_loss_and_never_by_test():
    runs = [row("a", rate, s, loss, test) for rate, loss, test in ((1, 0.9, 99), (2, 0.1, 50)) for s in SEEDS]
    best = summary(runs + [row("b", 1, s, 0.5, 60 + s) for s in SEEDS]).loc
    assert (
        best["a", "learning_rate"] == 2 and best["a", "test"] == 50 and best["a", "runs"] == 2 and best["a", "at_edge"]
    )
    assert (best["b", "test"], best["b", "test_low"], best["b", "test_high"]) == (60.5, 60, 61)


def test_a_rate_at_which_a_seed_broke_is_out_and_a_method_without_scores_is_left_out():
    broken = run_record(
        {"method": "a", "learning_rate": 3, "seed": 0}, {"status": "out of memory", "best_epoch": 0, "test": None}
    )
    assert broken["dev_loss"] is broken["test_score"] is None
    runs = [row("a", 1, 0, 0.5, 60), row("a", 2, 0, 0.1, 90), row("a", 2, 1, None, None), broken]
    best = summary(runs + [broken | {"method": "c"}])
    assert list(best.index) == ["a"] and best["learning_rate"]["a"] == 1


def test_files_are_described_without_their_place(tmp_path):
    write_generated_examples(tmp_path, 6, 4)
    found = describe_files("SST-2", str(tmp_path))
    assert str(tmp_path) not in json.dumps(found)
    assert {name: file["lines"] for name, file in found["files"].items()} == {"train.tsv": 7, "dev.tsv": 5}
    assert describe_files("SST-2", None)["repository"] == "nyu-mll/glue"


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(language_grids, "recorded_path", lambda name: tmp_path / f"{name}.json")
    model = tiny_checkpoint("opt", pretrain_steps=0)
    monkeypatch.setattr(language_grids, "tiny_checkpoint", lambda kind: model)
    return tmp_path


def test_recording_goes_on_after_an_interruption(place, monkeypatch):
    """Stopped in the middle: what was finished is not run again, and nothing is missing."""
    data = str(write_generated_examples(place / "data", 16, 8))
    grid = Grid("tiny-opt", "SST-2", {"full": (1e-4,), "density 0.5": (1e-2, 1e-1)}, SIZES)
    started = []

    def run(config, folder, progress):
        if len(started) == 3:
            started.append("interrupted")
            raise KeyboardInterrupt
        started.append(config.digest())
        return start_run(config, folder, progress=progress)

    monkeypatch.setattr(language_grids, "start_run", run)
    with pytest.raises(KeyboardInterrupt):
        record(grid, data, place / "work")
    assert not (place / "fine_tuning_opt.json").exists()
    content = record(grid, data, place / "work")
    assert len(set(started)) == len(started) == 7  # six runs and one interruption
    written = json.loads((place / "fine_tuning_opt.json").read_text())
    assert written["runs"] == content["runs"] and len(written["runs"]) == 6
    assert str(place) not in (place / "fine_tuning_opt.json").read_text()
    assert not list((place / "work").rglob("adapter.safetensors"))
    assert all(run["test_score"] in [12.5 * n for n in range(9)] and run["steps"] == 1 for run in written["runs"])


def test_a_run_that_needs_too_much_memory_does_not_take_the_grid_along(place, monkeypatch):
    def run(config, folder, progress):
        if config.method == "full":
            raise MemoryShortage("too little")
        return start_run(config, folder, progress=progress)

    monkeypatch.setattr(language_grids, "start_run", run)
    data = str(write_generated_examples(place / "data", 16, 8))
    content = record(Grid("tiny-opt", "SST-2", {"full": (1e-4,), "lora": (1e-3,)}, SIZES), data, place / "work")
    assert [run["status"] for run in content["runs"]] == ["out of memory"] * 2 + ["completed"] * 2
    assert list(summary(content["runs"]).index) == ["lora"]


def test_the_shipped_record_is_the_whole_grid_on_the_genuine_validation_split():
    recorded = find_recorded("tiny-opt")
    runs = pd.DataFrame(recorded["runs"])
    assert len(runs) == len(SEEDS) * sum(map(len, TINY_RATES.values())) and (runs["status"] == "completed").all()
    for method, cells in runs.groupby("method"):
        assert sorted(cells["learning_rate"].unique()) == sorted(TINY_RATES[method])
    assert recorded["records"]["files"]["dev.tsv"]["sha256"].startswith("54a9c12c")  # GLUE's, all 872 records
    assert recorded["records"]["tested"] == 872 and (runs["cut_prompts"] == 0).all()
    assert not summary(recorded["runs"])["at_edge"].any()
    assert abs(recorded["zero_shot"] - 100 * 444 / 872) < 1.7  # no better than a constant answer, to a standard error
    assert "/work" not in json.dumps(recorded)
