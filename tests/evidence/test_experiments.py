"""Runs of the chapters of experiments: their backbones, their numbers against direct computation, their records."""

import dataclasses
import json
import math

import pandas as pd
import pytest
import torch

from rmbook.engine.masking import RandomMask
from rmbook.errors import ConfigError
from rmbook.evidence.backbones import load_backbone
from rmbook.evidence.changes import distance_from, weight_changes
from rmbook.evidence.experiment import TOLERANCE, Experiment, accuracy, epochs, look_at, prepare_model, run_experiment
from rmbook.evidence.grids import best_cells, best_runs, load_runs, read_recorded_grid, recorded_grids, to_table
from rmbook.evidence.recording import load_recorded
from rmbook.landscape.curvature import hessian_norm
from rmbook.offline.digits import BASES, PretrainingConfig, new_vit
from rmbook.offline.tiny_language import make_tiny_checkpoint
from rmbook.sweeps.grid import combinations

METHODS = [
    {"method": "full", "learning_rate": 3e-4},
    {"method": "lora", "learning_rate": 3e-3},
    {"density": 0.05, "learning_rate": 1e-2},
    {"density": 0.05, "learning_rate": 1e-3, "scale": "inverse_density"},
]


@pytest.fixture(scope="module")
def vit():
    return load_backbone("vit")


def same(one: dict, other: dict) -> bool:
    return {**one, "seconds": 0} == {**other, "seconds": 0}


def test_shuffled_weights_are_the_same_numbers_at_other_places(vit):
    plain, shuffled = (dict(vit.model(start, 1).named_parameters()) for start in ("pretrained", "shuffled"))
    moved = 0
    for name, weight in plain.items():
        other = shuffled[name]
        assert torch.equal(weight.flatten().sort().values, other.flatten().sort().values)
        if weight.dim() != 2 or "classifier" in name:
            assert torch.equal(weight, other), name
        else:
            assert (weight != other).float().mean() > 0.9
            moved += 1
    assert moved == 4 * 6
    again, other = (vit.model("shuffled", seed).state_dict() for seed in (1, 2))
    assert all(torch.equal(again[name], value) for name, value in shuffled.items())
    assert any(not torch.equal(other[name], value) for name, value in shuffled.items())


def test_new_weights_keep_the_pretrained_head_alone(vit):
    new, pretrained = vit.model("new", 4), vit.model()
    untrained = dict(new_vit(PretrainingConfig(seed=5)).named_parameters())
    for name, weight in new.named_parameters():
        source = pretrained.get_parameter(name) if "classifier" in name else untrained[name]
        assert torch.equal(weight, source), name


def test_a_backbone_hands_out_copies(vit):
    changed = vit.model()
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.zero_()
    assert all(
        parameter.abs().sum() > 0 for name, parameter in vit.model().named_parameters() if name.endswith("weight")
    )


def test_training_data_are_the_first_ones_and_no_test_image_is_among_them(vit):
    few, all_of_them = vit.train_data(30), vit.train_data(1297)
    assert all(torch.equal(few[i]["pixel_values"], all_of_them[i]["pixel_values"]) for i in range(30))
    assert len(vit.train_data()) == 400
    kept = {
        tuple(vit.data[split][i]["pixel_values"].flatten().tolist()) for split in ("dev", "test") for i in range(200)
    }
    seen = {tuple(all_of_them[i]["pixel_values"].flatten().tolist()) for i in range(1297)}
    assert len(kept & seen) <= 1  # the data set itself has few images twice, if any


def test_what_a_backbone_cannot_do_is_named(vit):
    with pytest.raises(ValueError, match="between 1 and 1297 for vit, got 1298"):
        vit.train_data(1298)
    with pytest.raises(ValueError, match="start must be one of pretrained, shuffled, new"):
        vit.model("frozen")
    with pytest.raises(ValueError, match="view must be one of upright, mirrored"):
        load_backbone("vit:sideways")
    with pytest.raises(ValueError, match="method must be one of"):
        Experiment(1e-3, "ia3")
    with pytest.raises(ValueError, match="a mask needs a density"):
        Experiment(1e-3)
    with pytest.raises(ValueError, match="a mask needs a density"):
        Experiment(1e-3, "lora", 0.1)


@pytest.mark.parametrize("settings", METHODS, ids=lambda s: f"{s.get('method', 'mask')} {s.get('scale', '')}")
def test_weight_changes_lead_from_the_start_to_the_trained_model(vit, settings):
    record, model = run_experiment(Experiment(steps=25, train_size=64, **settings), keep_model=True)
    plain = vit.model()
    changes = weight_changes(plain, model)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter += changes.get(name, 0)
        images = torch.stack([vit.data["test"][i]["pixel_values"] for i in range(20)])
        assert torch.allclose(plain(images).logits, model(images).logits, atol=2e-4)
    assert record["distance"] == pytest.approx(sum(float(c.double().norm() ** 2) for c in changes.values()) ** 0.5)
    assert record["test_accuracy"] == accuracy(model, vit.objective, vit.data["test"])
    assert record["distance"] > 0 and distance_from(vit.model(), vit.model()) == 0


def test_the_distance_of_a_mask_is_the_norm_of_s(vit):
    record, model = run_experiment(Experiment(1e-2, density=0.02, steps=10, train_size=32), keep_model=True)
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "mask")}
    assert record["distance"] == pytest.approx(RandomMask(model, layers, None, []).distance(), rel=1e-6)
    assert record["trainable"] == sum(layer.mask.nnz for layer in layers.values())


def test_runs_repeat_and_seeds_are_told_apart():
    base = {"learning_rate": 1e-2, "density": 0.02, "steps": 10, "train_size": 40}
    first, again = run_experiment(Experiment(**base)), run_experiment(Experiment(**base))
    assert same(first, again)
    other_mask = run_experiment(Experiment(**base, mask_seed=7))
    other_order = run_experiment(Experiment(**base, seed=7, mask_seed=0))
    assert other_mask["trainable"] != first["trainable"] == other_order["trainable"]
    assert not same(first, other_order | {"seed": 0})


def test_hessians_are_those_of_the_model_before_and_after(vit):
    settings = Experiment(1e-2, density=0.1, steps=10, train_size=40, hessian=True)
    record, model = run_experiment(settings, keep_model=True)
    fresh = prepare_model(vit, settings)
    for name, of in (("hessian_before", fresh), ("hessian_after", model)):
        assert record[name] == pytest.approx(hessian_norm(look_at(of, vit), tolerance=TOLERANCE).norm, rel=1e-3)


def test_steps_are_rounded_to_whole_epochs(vit):
    assert [epochs(vit, steps, 400) for steps in (None, 1, 37, 38, 3200)] == [8, 1, 1, 2, 128]


def test_a_language_model_is_a_backbone_too(tmp_path, monkeypatch):
    monkeypatch.setenv("RMBOOK_RECORDS", "generated")
    monkeypatch.setenv("RMBOOK_CACHE", str(tmp_path / "cache"))
    make_tiny_checkpoint(tmp_path / "opt", "opt", pretrain_steps=2)
    settings = Experiment(1e-2, density=0.01, backbone=str(tmp_path / "opt"), steps=2, train_size=16, hessian=True)
    record = run_experiment(settings)
    assert record["status"] == "completed" and record["steps"] == 2
    assert record["hessian_before"] > 0 and 0 < record["ratio"] < 0.01 and 0 <= record["test_accuracy"] <= 100


# ----------------------------------------------------------------------------------------------------------- tables
def runs(cells):
    """Made results: (density, learning rate, seed, dev, test) and, where it matters, the dev loss."""
    names = ("density", "learning_rate", "seed", "dev_accuracy", "test_accuracy", "dev_loss")
    rest = {"distance": 1.0, "trainable": 3, "status": "completed"}
    return [dict(zip(names, (*cell, 0.5)[:6], strict=True)) | rest for cell in cells]


def test_the_best_rate_is_chosen_by_dev_and_edges_are_marked():
    table = to_table(
        runs(
            [
                (0.1, 1e-3, 0, 70, 99),  # the best on test, and not to be chosen
                (0.1, 1e-2, 0, 90, 80),
                (0.1, 1e-2, 1, 80, 90),
                (0.1, 1e-1, 0, 60, 60),
                (0.01, 1e-2, 0, 50, 50),
                (0.01, 1e-1, 0, 60, 60),
            ]
        )
    )
    best = best_cells(table, ["method", "density"])
    row = best.loc[("mask", 0.1)]
    assert (row.learning_rate, row.dev, row.test, row.runs, row.at_edge) == (1e-2, 85, 85, 2, False)
    assert row.test_sd == pytest.approx(50**0.5)
    assert best.loc[("mask", 0.01)].at_edge


def test_a_tie_goes_to_the_lower_dev_loss_and_then_to_the_smaller_rate():
    tied = to_table(runs([(0.1, 1e-2, 0, 90, 1, 0.3), (0.1, 1e-3, 0, 90, 2, 0.4), (0.1, 1e-1, 0, 90, 3, 0.3)]))
    assert best_cells(tied, ["density"]).loc[0.1].learning_rate == 1e-2


def test_a_rate_at_which_a_seed_diverged_or_is_missing_is_not_chosen():
    cells = [(0.1, 1e-2, 0, 95, 9), (0.1, 1e-2, 1, 90, 90), (0.1, 1e-3, 0, 50, 50), (0.1, 1e-3, 1, 50, 50)]
    for late in (True, False):  # after an epoch, with a score, or at once
        made = runs([*cells, (0.1, 1e-1, 0, 99, 99)])
        made[0] |= {"status": "diverged"} | ({} if late else {"dev_accuracy": None, "dev_loss": None})
        table = to_table(made)
        assert best_cells(table, ["density"]).loc[0.1].learning_rate == 1e-3
        assert list(best_runs(table)["seed"]) == [0, 1]
        assert best_runs(table.query("learning_rate == 0.01")).empty


def test_defaults_are_filled_in_and_nothing_else():
    table = to_table(
        [*runs([(0.1, 1e-2, 0, 1, 1)]), {**runs([(None, 1, 0, 1, 1)])[0], "method": "full", "start": "new"}]
    )
    assert list(table["method"]) == ["mask", "full"] and list(table["start"]) == ["pretrained", "new"]
    assert list(table["backbone"]) == ["vit", "vit"] and pd.isna(table["density"][1])


# ---------------------------------------------------------------------------------------------------------- the grids
EXPERIMENTS = [name for name, grid in recorded_grids().items() if grid["kind"] == "experiment"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_recorded_grids_hold_exactly_the_runs_of_the_code(name):
    def key(settings):  # a result has the steps that were taken, not those that were asked for
        return json.dumps({n: settings[n] for n in sorted(settings) if settings[n] is not None and n != "steps"})

    grid = read_recorded_grid(name)
    cells = [Experiment(**settings) for settings in combinations(grid)]
    content = load_recorded(f"science/{name}")
    defaults = {field.name: field.default for field in dataclasses.fields(Experiment)}
    found = [{n: run.get(n, default) for n, default in defaults.items()} for run in content["runs"]]
    assert [key(run) for run in found] == [key(vars(cell)) for cell in cells]
    for cell, run in zip(cells, content["runs"], strict=True):
        backbone = load_backbone(cell.backbone, cell.base)
        size = cell.train_size or backbone.train_size
        planned = epochs(backbone, cell.steps, size) * math.ceil(size / backbone.batch_size)
        assert run["steps"] == planned or (run["status"] == "diverged" and run["steps"] < planned)
    assert "uncommitted" not in content["stamp"]["commit"] and content["about"] == grid["description"]
    assert load_runs(name)["test_accuracy"].between(0, 100).all()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_rates_are_half_decades(name):
    for settings in combinations(read_recorded_grid(name)):
        assert f"{settings['learning_rate']:.0e}"[0] in "13"


def test_no_best_rate_of_the_first_experiment_is_at_an_edge():
    best = best_cells(load_runs("minilm_first"), ["method", "density"])
    assert len(best) == 5 and (best["runs"] == 3).all() and not best["at_edge"].any()


def test_an_axis_is_taken_from_another_recorded_grid_at_its_best_rates():
    best = best_cells(load_runs("five_grid"), ["method", "density", "base"])["learning_rate"]
    taken = read_recorded_grid("five_hessian")["axes"]["method"]
    assert len(taken) == 4 * BASES and {cell["density"] for cell in taken} == {1.0, 0.1, 0.01, 0.001}
    for cell in taken:
        assert cell["learning_rate"] == best.loc[cell["method"], cell["density"], cell["base"]]
    assert read_recorded_grid("hessian")["axes"]["method"][0]["density"] is None  # full fine-tuning has none
    some = read_recorded_grid("vit_masks")["axes"]["method"]
    assert [cell["density"] for cell in some] == [0.01, 0.001] and not any("base" in cell for cell in some)


def test_a_list_in_an_axis_of_mappings_is_an_axis_of_its_own(tmp_path):
    text = "axes: {a: [{b: [1, 2], c: [{d: 3}, {d: [4, 5], e: 6}]}, {b: 7}], seed: [0, 1]}"
    (tmp_path / "grid.yaml").write_text(text)
    inner = [{"b": b} | rest for b in (1, 2) for rest in ({"d": 3}, {"d": 4, "e": 6}, {"d": 5, "e": 6})]
    found = list(combinations(read_recorded_grid(str(tmp_path / "grid.yaml"))))
    assert found == [cell | {"seed": s} for cell in [*inner, {"b": 7}] for s in (0, 1)]


def test_an_unknown_grid_is_named(tmp_path):
    with pytest.raises(ConfigError, match="vit_gird is neither a file nor a recorded grid: did you mean vit_grid"):
        read_recorded_grid("vit_gird")


def hardest(runs):
    """The run of a grid that most can go wrong with: a mask, on the last base, on new weights if it has them."""
    masks = [run for run in runs if run.get("method", "mask") == "mask" and run["status"] == "completed"]
    wanted = [run for run in masks if run.get("start", "new") == "new"]
    return max(wanted or masks or runs, key=lambda run: (run.get("base", 0), run["dev_accuracy"]))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_run_of_every_recorded_grid_begins_here_as_it_did_there(name):
    """The run of a mask at its best rate, made again: short ones whole, long ones for two epochs, MiniLM's for one.

    The learning rate is constant, so that a shorter run is the beginning of a longer one. Other processors round
    otherwise: README says by how much their results differ.
    """
    run = hardest(load_recorded(f"science/{name}")["runs"])
    settings = {field.name: run[field.name] for field in dataclasses.fields(Experiment) if field.name in run}
    if "curve" not in run:  # the first experiment was recorded without
        again = run_experiment(Experiment(**settings))
        assert again["trainable"] == run["trainable"] and abs(again["test_accuracy"] - run["test_accuracy"]) < 5
        return
    tiny = run.get("backbone", "vit") == "vit"
    settings["hessian"] = bool(run.get("hessian")) and tiny  # MiniLM's takes a minute
    whole = tiny and run["steps"] <= 200
    steps = run["steps"] if whole else (2 if tiny else 1) * run["steps"] // len(run["curve"])
    again = run_experiment(Experiment(**settings | {"steps": steps}))
    assert again["trainable"] == run["trainable"] and again["steps"] == steps
    assert again["curve"] == pytest.approx(run["curve"][: len(again["curve"])], abs=5)
    if whole:
        assert again["distance"] == pytest.approx(run["distance"], rel=0.05)
        assert again["test_accuracy"] == pytest.approx(run["test_accuracy"], abs=5)
    if settings["hessian"]:
        assert again["hessian_before"] == pytest.approx(run["hessian_before"], rel=0.05)
