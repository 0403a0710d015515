"""Solutions of one task: norms, lines and barriers agree with what is computed without the module."""

import pytest
import torch

from rmbook.evidence.backbones import load_backbone
from rmbook.evidence.changes import weight_changes
from rmbook.evidence.connections import END, FRACTIONS, RUNS, ConnectionCell, measure_connections, solve
from rmbook.evidence.experiment import Experiment, accuracy, look_at, run_experiment
from rmbook.evidence.grids import read_recorded_grid
from rmbook.evidence.recording import load_recorded
from rmbook.sweeps.grid import combinations

CELL = ConnectionCell(3e-2, 0.05, base=1, steps=25)


@pytest.fixture(scope="module")
def measured():
    return measure_connections(CELL)


def test_a_solution_is_that_of_the_experiment(measured):
    backbone, settings = load_backbone("vit", 1), Experiment(3e-2, density=0.05, seed=1, mask_seed=0, base=1, steps=25)
    result, model = run_experiment(settings, keep_model=True)
    solution = measured["solutions"][RUNS.index((0, 1))]
    assert (solution["mask"], solution["order"]) == (0, 1) and solution["test_accuracy"] == result["test_accuracy"]
    assert solution["l2"] == pytest.approx(result["distance"], rel=1e-6)
    assert solution["linf"] < solution["l2"] < solution["l1"] < solution["l2"] * result["trainable"] ** 0.5
    assert FRACTIONS[END] == 1 and solution["path"][END] == pytest.approx(look_at(model, backbone).loss(), rel=1e-6)
    assert solution["path"][0] == pytest.approx(look_at(backbone.model(), backbone).loss(), rel=1e-5)
    assert solve(CELL, 0, 1)[0] == solution


def test_a_barrier_is_the_loss_half_way_above_the_ends(measured):
    backbone, losses, changes = load_backbone("vit", 1), [], []
    for mask in (1, 2):
        settings = Experiment(3e-2, density=0.05, seed=0, mask_seed=mask, base=1, steps=25)
        model = run_experiment(settings, keep_model=True)[1]
        losses.append(look_at(model, backbone).loss())
        changes.append(weight_changes(backbone.model(), model))
    middle = backbone.model()
    with torch.no_grad():
        for name, weight in middle.named_parameters():
            if name in changes[0]:
                weight += (changes[0][name] + changes[1][name]) / 2
    (pair,) = [pair for pair in measured["pairs"] if pair["between"] == [(1, 0), (2, 0)]]
    assert pair["kind"] == "other mask"
    assert pair["barrier"] == pytest.approx(look_at(middle, backbone).loss() - sum(losses) / 2, abs=1e-6)
    right = accuracy(middle, backbone.objective, backbone.data["test"])
    ends = [run["test_accuracy"] for run in measured["solutions"] if run["mask"] in (1, 2)]
    assert pair["lost"] == pytest.approx(sum(ends) / 2 - right)


def test_pairs_are_of_one_mask_or_of_one_order(measured):
    kinds = [(pair["kind"], *map(tuple, pair["between"])) for pair in measured["pairs"]]
    others = [("other mask", (0, 0), (1, 0)), ("other mask", (0, 0), (2, 0)), ("other mask", (1, 0), (2, 0))]
    assert kinds == [("same mask", (0, 0), (0, 1)), *others]
    dense = measure_connections(ConnectionCell(1e-3, 1.0, steps=25))
    assert [pair["kind"] for pair in dense["pairs"]] == ["same mask"] and len(dense["solutions"]) == 2


def test_the_record_has_the_cells_of_the_grid():
    names = ("method", "density", "learning_rate", "base")
    cells = [{name: cell[name] for name in names} for cell in combinations(read_recorded_grid("five_connections"))]
    recorded = load_recorded("science/five_connections")["runs"]
    assert [{name: run[name] for name in names} for run in recorded] == cells
    assert all(run["status"] == "completed" for cell in recorded for run in cell["solutions"])
