"""Adapters as vectors: what becomes of two tasks when the changes that each of them learned are added.

The tasks are views of the digits (`rmbook.offline.digits.VIEWS`), the model is one pretrained vision transformer. Record the
grid with `python -m rmbook.interference`; it can be interrupted and goes on where it stopped.
"""

import copy
import sys
from collections.abc import Sequence
from functools import cache
from itertools import combinations

import pandas as pd
import torch
from torch import nn

from rmbook.evidence.backbones import load_backbone
from rmbook.evidence.experiment import Experiment, run_experiment, weight_changes
from rmbook.evidence.grids import SEEDS
from rmbook.evidence.recording import load_recorded, record_runs
from rmbook.offline.digits import VIEWS, Digits

TASKS = ("mirrored", "upside_down", "turned", "negative")
# Of each method: the best for mirrored digits, by dev accuracy, when this was recorded. The grid "vit_grid" was made
# again since, and some of its best rates are a half decade larger.
RATES = {("full", None): 3e-4, ("lora", None): 3e-3, ("mask", 0.3): 3e-3, ("mask", 0.1): 1e-2, ("mask", 0.03): 1e-2}
RATES |= {("mask", 0.01): 3e-2, ("mask", 0.003): 1e-1, ("mask", 0.001): 1.0}
STRENGTHS = (0.5, 0.7, 1.0)

Changes = dict[str, torch.Tensor]  # of parameters, by name, in their shapes; as `rmbook.evidence.experiment.weight_changes`


def learn_task(
    view: str, method: str, density: float | None, learning_rate: float, seed: int, mask_seed: int | None = None
) -> tuple[Changes, dict]:
    """Fine-tune the pretrained transformer on one view.

    Args:
        view: one of `TASKS`.
        method, density, learning_rate: as for `rmbook.evidence.experiment.Experiment`.
        seed: the order of the examples (and LoRA's start) follows it and the view, so no two tasks share it.
        mask_seed: of the mask, for all views alike; the seed if None.

    Returns:
        What changed, and the record of `rmbook.evidence.experiment.run_experiment`.
    """
    order, mask_seed = 10 * TASKS.index(view) + seed, seed if mask_seed is None else mask_seed
    chosen = {"seed": order, "mask_seed": mask_seed, "backbone": f"vit:{view}"}
    record, model = run_experiment(Experiment(learning_rate, method, density, **chosen), keep_model=True)
    return weight_changes(load_backbone("vit").model(), model), record


@torch.no_grad()
def combine(base: nn.Module, *parts: tuple[Changes, float]) -> nn.Module:
    """A copy of a model with W + sum over parts, each (changes, strength), of strength * changes for each weight W.

    What `rmbook.adapters.bank.AdapterBank` does in place and for trained entries alone; this one takes any method's changes.
    """
    model = copy.deepcopy(base)
    parameters = dict(model.named_parameters())
    for name in dict.fromkeys(name for changes, _ in parts for name in changes):
        parameters[name].add_(sum(changes[name] * strength for changes, strength in parts if name in changes))
    return model


def shared_entries(first: Changes, second: Changes) -> int:
    """Number of entries that both have changed."""
    return sum(int(((first[name] != 0) & (second[name] != 0)).sum()) for name in first.keys() & second.keys())


def norm(changes: Changes) -> float:
    """l2 norm over all entries."""
    return sum(float(change.double().square().sum()) for change in changes.values()) ** 0.5


def cosine(first: Changes, second: Changes) -> float:
    """Of the angle between two changes, each taken as one long vector; not a number if one of them is zero."""
    product = sum(float((first[name].double() * second[name].double()).sum()) for name in first if name in second)
    return product / lengths if (lengths := norm(first) * norm(second)) else float("nan")


def flip_signs(changes: Changes, seed: int) -> Changes:
    """The same entries and sizes with random signs: a change as large that has learned nothing."""
    generator = torch.Generator().manual_seed(seed)
    return {n: c * (2 * torch.randint(0, 2, c.shape, generator=generator) - 1).to(c) for n, c in changes.items()}


@torch.no_grad()
def view_accuracy(model: nn.Module, *views: str, split: str = "test") -> float:
    """Right answers in percent on digits seen through views, the first one applied first; none means upright."""
    images = (data := _digits(split)).images
    for view in views:
        images = VIEWS[view](images)
    answers = model.eval()(pixel_values=images).logits.argmax(1)
    return 100 * float((answers == data.labels).double().mean())


_digits = cache(lambda split: Digits(split, "upright"))


def measure_pair(base: nn.Module, views: Sequence[str], changes: Sequence[Changes], seed: int) -> dict:
    """Two tasks' changes added.

    Returns:
        shared and cosine (see the functions); by strength, one of `STRENGTHS` for both: dev and test, accuracies on the
        two views, and both, test accuracy on digits seen through both views, the first one first; and noise, test
        accuracies on each view of its own change plus the other's with random signs (from `seed`), at strength 1.
    """
    noise = [flip_signs(change, seed) for change in changes]
    merged = [combine(base, *((change, strength) for change in changes)) for strength in STRENGTHS]
    return {
        "views": list(views),
        "shared": shared_entries(*changes),
        "cosine": cosine(*changes),
        "dev": [[view_accuracy(model, view, split="dev") for view in views] for model in merged],
        "test": [[view_accuracy(model, view) for view in views] for model in merged],
        "both": [view_accuracy(model, *views) for model in merged],
        "noise": [
            view_accuracy(combine(base, (changes[own], 1.0), (noise[1 - own], 1.0)), views[own]) for own in (0, 1)
        ],
    }


def measure_task(base: nn.Module, view: str, changes: Changes, seed: int) -> dict:
    """One task's change alone: added, subtracted, and with random signs; accuracies on test digits.

    Returns:
        norm; views: on each of `VIEWS`; both: seen through this view and another task's, in the order of `TASKS`;
        negated and random (random signs): by strength, on this view and on upright digits.
    """
    alone, noise = combine(base, (changes, 1.0)), flip_signs(changes, seed)
    seen = [pair for pair in combinations(TASKS, 2) if view in pair]
    return {
        "view": view,
        "norm": norm(changes),
        "views": {name: view_accuracy(alone, name) for name in VIEWS},
        "both": {" ".join(pair): view_accuracy(alone, *pair) for pair in seen},
        "negated": {str(s): _here_and_upright(combine(base, (changes, -s)), view) for s in (0.5, 1.0)},
        "random": {str(s): _here_and_upright(combine(base, (noise, s)), view) for s in (0.5, 1.0)},
    }


def _here_and_upright(model: nn.Module, view: str) -> list[float]:
    return [view_accuracy(model, view), view_accuracy(model)]


def run_cell(cell: dict) -> dict:
    """All tasks, seeds and pairs of one method at one density.

    A pair of one seed has one mask for both tasks; of neighbouring seeds, two independent masks. Methods without masks
    need the first kind alone.
    """
    base = load_backbone("vit").model()
    learned = {(view, seed): learn_task(view, seed=seed, **cell) for seed in SEEDS for view in TASKS}
    tasks = [
        {"seed": seed, "trainable": run["trainable"], "status": run["status"], "dev": run["dev_accuracy"]}
        | measure_task(base, view, changes, seed)
        for (view, seed), (changes, run) in learned.items()
    ]
    kinds = (("same", 0), ("independent", 1)) if cell["method"] == "mask" else (("none", 0),)
    pairs = [
        {"seed": seed, "masks": masks}
        | measure_pair(base, (a, b), (learned[a, seed][0], learned[b, (seed + shift) % len(SEEDS)][0]), seed)
        for masks, shift in kinds
        for seed in SEEDS
        for a, b in combinations(TASKS, 2)
    ]
    return cell | {"tasks": tasks, "pairs": pairs}


def grid() -> list[dict]:
    """Densities and other methods, each at its rate."""
    return [{"method": method, "density": density, "learning_rate": rate} for (method, density), rate in RATES.items()]


def base_accuracies() -> dict[str, float]:
    """The pretrained model's test accuracy in percent, by the view, or two, through which it sees."""
    model = load_backbone("vit").model()
    return {" ".join(seen): view_accuracy(model, *seen) for seen in [(v,) for v in VIEWS] + [*combinations(TASKS, 2)]}


def load_interference() -> tuple[pd.DataFrame, pd.DataFrame, dict]:
    """The record: its tasks and its pairs, a row each, and all the rest (stamp, strengths, base)."""
    content = load_recorded("science/interference")
    cells, settings = content.pop("cells"), ("method", "density", "learning_rate")
    rows = {kind: [{k: c[k] for k in settings} | row for c in cells for row in c[kind]] for kind in ("tasks", "pairs")}
    return *(pd.DataFrame(rows[kind]).astype({"density": float}) for kind in ("tasks", "pairs")), content


def main() -> None:
    """The command line."""
    rest = {"about": "Two tasks' changes added.", "strengths": STRENGTHS, "base": base_accuracies()}
    command = "python -m rmbook.interference"
    record_runs("science/interference", command, grid(), run_cell, lambda cells: rest | {"cells": cells})
    print("results/science/interference.json", file=sys.stderr)


if __name__ == "__main__":
    main()
