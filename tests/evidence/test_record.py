"""`rmbook record`: one run of every kind through the real path, and what a kill leaves."""

import dataclasses
import functools
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from rmbook import apply_random_mask
from rmbook.errors import ConfigError
from rmbook.evidence.backbones import load_backbone
from rmbook.evidence.curvature_cells import CurvatureCell, measure_cell
from rmbook.evidence.experiment import Experiment, run_experiment
from rmbook.evidence.grids import read_recorded_grid
from rmbook.evidence.record import KINDS, perform_settings, record_grid
from rmbook.evidence.recording import load_recorded
from rmbook.landscape.curvature import hessian_norm
from rmbook.landscape.landscape import Landscape
from rmbook.offline.sentences import write_generated_examples
from rmbook.offline.smollm2 import PACKAGE
from rmbook.runs.memory import MemoryShortage
from rmbook.runs.result import RunError
from rmbook.stamps import stamp

SMALL = {"steps": 8, "train_size": 32}
EXPERIMENT = """
description: Two masks.
kind: experiment
fixed: {steps: 8, train_size: 32}
axes:
  density: [0.1, 0.01]
  learning_rate: [1e-2, 3e-2]
  seed: [0, 1]
"""
LANGUAGE = """
description: Two methods on a tiny model.
kind: fine_tuning
fixed: {model: tiny-opt, task: SST-2, train_size: 8, dev_size: 8, test_size: 8, epochs: 1}
axes:
  method: [{method: full}, {method: random_masking, density: 0.5}]
  learning_rate: [1e-3]
  seed: [0]
"""


@pytest.fixture
def grid(tmp_path):
    def write(text):
        (tmp_path / "mine.yaml").write_text(text)
        return str(tmp_path / "mine.yaml")

    return write


def without_time(runs):
    return [{**run, "seconds": 0} for run in runs]


def test_a_grid_of_experiments_is_recorded_as_its_runs_are(grid, tmp_path):
    path = record_grid(grid(EXPERIMENT), tmp_path / "sweep")
    assert path == tmp_path / "sweep" / "mine.json"
    content = json.loads(path.read_text())
    cells = [Experiment(r, density=d, seed=s, **SMALL) for d in (0.1, 0.01) for r in (1e-2, 3e-2) for s in (0, 1)]
    assert without_time(content["runs"]) == without_time(json.loads(json.dumps([run_experiment(c) for c in cells])))
    assert content["about"] == "Two masks." and content["stamp"]["command"].startswith("rmbook record ")
    assert content["stamp"].keys() == stamp("").keys()
    before = content["runs"]
    record_grid(grid(EXPERIMENT), tmp_path / "sweep")
    assert json.loads(path.read_text())["runs"] == before  # nothing was run again: the seconds are the same


def test_grids_that_share_runs_count_them_once(grid, tmp_path, monkeypatch):
    monkeypatch.setenv("RMBOOK_CACHE", str(tmp_path / "cache"))
    performed = []

    def measure(settings):
        performed.append((settings.density, settings.learning_rate, settings.seed))
        return {"best_epoch": 1, "dev_accuracy": 50.0}

    perform = functools.partial(perform_settings, Experiment, measure)
    first = record_grid(grid(EXPERIMENT), perform=perform)
    assert first == tmp_path / "cache" / "recording" / "experiment" / "mine.json" and len(performed) == 8
    wider = EXPERIMENT.replace("[0.1, 0.01]", "[0.01, 0.001]").replace("[1e-2, 3e-2]", "[3e-2, 1e-1]")
    runs = json.loads(record_grid(grid(wider), perform=perform).read_text())["runs"]
    assert len(runs) == 8 and len(set(performed)) == len(performed) == 14  # two runs are in both grids


def test_a_kill_costs_the_run_under_way_and_no_other(grid, tmp_path):
    command = [sys.executable, "-m", "rmbook", "record", grid(EXPERIMENT), "--output", str(tmp_path / "sweep")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    done = tmp_path / "sweep" / "runs"
    while process.poll() is None and len([*done.glob("*/result.json")]) < 2:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = {path: path.read_bytes() for path in done.glob("*/result.json")}
    assert 2 <= len(kept) < 8 and not (tmp_path / "sweep" / "mine.json").exists()
    subprocess.run(command, check=True, capture_output=True)
    assert {path: path.read_bytes() for path in kept} == kept and len([*done.iterdir()]) == 8
    runs = json.loads((tmp_path / "sweep" / "mine.json").read_text())["runs"]
    cells = [(run["density"], run["learning_rate"], run["seed"]) for run in runs]
    assert cells == [(d, r, s) for d in (0.1, 0.01) for r in (1e-2, 3e-2) for s in (0, 1)]


def test_a_cell_of_merged_tasks_has_the_form_of_the_recorded_ones(grid, tmp_path):
    one = "kind: interference\nfixed: {method: full, density: null, learning_rate: 3e-4, seeds: [0]}\n"
    content = json.loads(record_grid(grid(one), tmp_path / "sweep").read_text())
    recorded = load_recorded("science/interference")
    assert list(content) == list(recorded) and content["strengths"] == recorded["strengths"]
    (cell,) = content["cells"]
    for part, count in (("tasks", 4), ("pairs", 6)):
        old = recorded["cells"][0][part][:count]
        assert [list(run) for run in cell[part]] == [list(run) for run in old] and len(cell[part]) == count
    for run, old in zip(cell["tasks"], recorded["cells"][0]["tasks"], strict=False):  # the first seed's
        assert (run["view"], run["trainable"]) == (old["view"], old["trainable"])
        assert abs(run["views"][run["view"]] - old["views"][run["view"]]) < 8


def test_a_grid_of_curvatures_has_the_norms_of_the_landscape(grid, tmp_path):
    text = "kind: curvature\nfixed: {examples: 16}\naxes: {mask: [{density: 0.01, seed: [0, 1]}]}\n"
    content = json.loads(record_grid(grid(text), tmp_path / "sweep").read_text())
    backbone = load_backbone("vit")
    for run, seed in zip(content["runs"], (0, 1), strict=True):
        model = backbone.model()
        apply_random_mask(model, backbone.targets, density=0.01, seed=seed)
        landscape = Landscape(model, backbone.train_data(16), backbone.objective)
        assert run["norm"] == pytest.approx(hessian_norm(landscape).norm, rel=0.02) and run["converged"]
        assert (run["trainable"], run["seed"]) == (landscape.size, seed) and abs(run["eigenvalue"]) == run["norm"]


def test_a_grid_of_a_language_model_is_recorded_without_paths_and_adapters(grid, tmp_path):
    data = str(write_generated_examples(tmp_path / "data", 16, 8))
    path = record_grid(grid(LANGUAGE), tmp_path / "sweep", {"data_dir": data})
    content, recorded = json.loads(path.read_text()), load_recorded("fine_tuning_opt")
    assert list(content) == list(recorded) and list(content["runs"][0]) == list(recorded["runs"][0])
    assert [run["method"] for run in content["runs"]] == ["full", "density 0.5"]
    assert content["stamp"]["command"] == "rmbook record fine_tuning_tiny --data-dir DIR"
    assert str(tmp_path) not in path.read_text() and not list((tmp_path / "sweep").rglob("adapter.safetensors"))
    assert all(run["test_score"] in [12.5 * n for n in range(9)] and run["steps"] == 1 for run in content["runs"])


def test_too_little_memory_takes_no_other_run_along_and_other_errors_are_told(grid, tmp_path):
    kind = KINDS["fine_tuning"]

    def fails(error):
        def perform(config, work, bases=None, stop=None):
            if config["method"] == "full":
                raise error
            kind.perform(config, work, bases, stop)

        return perform

    changes = {"data_dir": str(write_generated_examples(tmp_path / "data", 16, 8))}
    path = record_grid(grid(LANGUAGE), tmp_path / "a", changes, perform=fails(MemoryShortage("too little")))
    assert [run["status"] for run in json.loads(path.read_text())["runs"]] == ["out of memory", "completed"]
    with pytest.raises(RunError, match="1 runs failed, such as: ValueError: broken"):
        record_grid(grid(LANGUAGE), tmp_path / "b", changes, perform=fails(ValueError("broken")))
    assert not (tmp_path / "b" / "mine.json").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "kind: experiments",
            "kind of the grid .* must be one of experiment, curvature, connections, interference, fine_tuning, got",
        ),
        ("kind: experiment\nfixed: {learning_rate: 1e-2, densty: 0.1}", "unexpected keyword argument 'densty'"),
        ("kind: experiment\nfixed: {learning_rate: 1e-2}", "a mask needs a density"),
        ("kind: experiment\naxes: {method: {best_in: vit_grids}}", "there is no recorded result 'science/vit_grids'"),
    ],
)
def test_a_grid_that_cannot_be_is_named(grid, tmp_path, text, message):
    with pytest.raises((ConfigError, FileNotFoundError), match=message):
        record_grid(grid(text), tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


def test_changes_are_for_grids_of_language_models(tmp_path):
    with pytest.raises(ConfigError, match="vit_grid is no grid of language models: leave out model"):
        record_grid("vit_grid", tmp_path / "sweep", {"model": "tiny-opt"})


@pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason="SmolLM2's package is not installed")
def test_a_recorded_norm_of_smollm2_is_found_again(shared, monkeypatch):
    monkeypatch.setenv("RMBOOK_DATA_DIR", str(shared / "data" / "sst2"))
    old = load_recorded("science/hessian_smollm2")["runs"][-1]
    settings = {field.name: old[field.name] for field in dataclasses.fields(CurvatureCell)}
    new = measure_cell(CurvatureCell(**settings))
    assert new["trainable"] == old["trainable"] and new["norm"] == pytest.approx(old["norm"], rel=0.05)


@pytest.mark.skipif(not os.environ.get("RMBOOK_EVERY_RUN"), reason="takes minutes: RMBOOK_EVERY_RUN=1 asks for it")
@pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason="SmolLM2's package is not installed")
@pytest.mark.parametrize(
    ("name", "result", "task"),
    [
        ("smollm2_short", "fine_tuning_smollm2", "SST-2"),
        ("smollm2_short", "fine_tuning_smollm2_copa", "COPA"),
        ("smollm2_distance", "science/smollm2_distance", "SST-2"),
    ],
)
def test_a_recorded_run_of_smollm2_is_found_again(grid, shared, tmp_path, name, result, task):
    fixed, recorded = read_recorded_grid(name)["fixed"], load_recorded(result)["runs"]
    same = [run for run in recorded if run["method"] == "density 0.01" and run["seed"] == 0]
    old = same[min(1, len(same) - 1)]  # of several rates the second
    axes = f"{{method: [random_masking], density: [0.01], learning_rate: [{old['learning_rate']}], seed: [0]}}"
    text = f"kind: fine_tuning\nfixed: {json.dumps(fixed)}\naxes: {axes}\n"
    data = str(shared / "data" / task.lower().replace("-", ""))
    changes = {"task": task, "data_dir": data}
    (new,) = json.loads(record_grid(grid(text), tmp_path / "sweep", changes).read_text())["runs"]
    assert (new["trainable"], new["steps"], new["best_epoch"]) == (old["trainable"], old["steps"], old["best_epoch"])
    assert new["dev_loss"] == pytest.approx(old["dev_loss"], rel=0.02)  # other processors round otherwise
    assert abs(new["test_score"] - old["test_score"]) <= 300 / fixed["test_size"]  # three examples
    assert "distance" not in old or new["distance"] == pytest.approx(old["distance"], rel=0.01)
