"""Solutions of one task on one network: how far they are from the start, and what lies on the way and between them.

These are the cells of a grid of kind "connections". Masks and orders of the examples differ, the task does not.
"""

import time
from dataclasses import asdict, dataclass
from itertools import combinations

import numpy as np
import torch

from rmbook.evidence.backbones import Backbone, load_backbone
from rmbook.evidence.changes import Changes, combine, weight_changes
from rmbook.evidence.experiment import Experiment, accuracy, look_at, run_experiment
from rmbook.landscape.slices import loss_along_path

RUNS = ((0, 0), (0, 1), (1, 0), (2, 0))  # mask, order of the examples
FRACTIONS = np.linspace(0, 1.5, 31)  # of the way from the start through the end of training, which is FRACTIONS[20]
END = 20


@dataclass(frozen=True)
class ConnectionCell:
    """Settings of a cell; see `rmbook.evidence.experiment.Experiment`."""

    learning_rate: float
    density: float
    method: str = "mask"
    base: int = 0
    steps: int = 200


def solve(cell: ConnectionCell, mask: int, order: int) -> tuple[dict, Changes]:
    """Train one mask with one order of the examples.

    Returns:
        mask, order, test_accuracy in percent; l1, l2 and linf, norms of the change; path, the loss over 128 training
        examples at `FRACTIONS` of the way. And the change itself.
    """
    backbone = load_backbone("vit", cell.base)
    settings = Experiment(**asdict(cell), seed=order, mask_seed=mask)
    result, model = run_experiment(settings, keep_model=True)
    landscape, change = look_at(model, backbone), weight_changes(backbone.model(), model)
    flat = torch.cat([part.flatten() for part in change.values()]).abs().double()
    path = loss_along_path(landscape, torch.zeros_like(landscape.point()), fractions=FRACTIONS)
    found = {"mask": mask, "order": order, "status": result["status"], "test_accuracy": result["test_accuracy"]}
    found |= {"l1": float(flat.sum()), "l2": result["distance"], "linf": float(flat.max()), "path": path.tolist()}
    return found, change


def barrier(backbone: Backbone, first: tuple[dict, Changes], second: tuple[dict, Changes]) -> dict[str, float]:
    """Measure the point half way between two solutions, each as `solve` returns it.

    Returns:
        barrier, its loss minus the mean of the two ends' (Frankle et al., 2020); lost, the mean of the two ends' test
        accuracies minus its own, in points.
    """
    middle = combine(backbone.model(), (first[1], 0.5), (second[1], 0.5))
    ends = [solution["path"][END] for solution, _ in (first, second)]
    right = [solution["test_accuracy"] for solution, _ in (first, second)]
    return {
        "barrier": look_at(middle, backbone).loss() - sum(ends) / 2,
        "lost": sum(right) / 2 - accuracy(middle, backbone.objective, backbone.data["test"]),
    }


def measure_connections(cell: ConnectionCell) -> dict:
    """Return the settings; solutions, see `solve`; pairs, see `barrier`, of the same or of other masks; seconds.

    A mask of density 1 has all entries, so there is only the pair of two orders.
    """
    begun, backbone = time.perf_counter(), load_backbone("vit", cell.base)
    solved = {run: solve(cell, *run) for run in (RUNS if cell.density < 1 else RUNS[:2])}
    pairs = []
    for kind, fixed in (("same mask", 0), ("other mask", 1)):  # which of mask and order is 0 in all of them
        for one, other in combinations([run for run in solved if run[fixed] == 0], 2):
            pairs.append({"kind": kind, "between": [one, other]} | barrier(backbone, solved[one], solved[other]))
    solutions = [solution for solution, _ in solved.values()]
    return asdict(cell) | {
        "solutions": solutions,
        "pairs": pairs,
        "seconds": round(time.perf_counter() - begun, 2),
    }
