"""Interference: two tasks whose learned changes are added up.

The tasks are views of the digits (`rmbook.offline.digits.VIEWS`), the models are the pretrained vision transformers.
Each of these has its own division of the digits, so what measures one is told its number, `base`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import pandas as pd
import torch
from torch import nn

from rmbook.evidence.backbones import load_backbone
from rmbook.evidence.changes import Changes, combine, cosine, flip_signs, norm, shared_entries, weight_changes
from rmbook.evidence.experiment import Experiment, run_experiment
from rmbook.evidence.recording import load_recorded
from rmbook.offline.digits import VIEWS

TASKS = ("mirrored", "upside_down", "turned", "negative")
STRENGTHS = (0.5, 0.7, 1.0)
SETTINGS = ("method", "density", "learning_rate", "base")


@dataclass(frozen=True)
class Cell:
    """Settings that are measured together: all tasks, seeds and pairs of a method on one network, at one rate."""

    method: str
    density: float | None
    learning_rate: float
    seeds: list[int]
    base: int = 0


def learn_task(
    view: str,
    method: str,
    density: float | None,
    learning_rate: float,
    seed: int,
    mask_seed: int | None = None,
    base: int = 0,
) -> tuple[Changes, dict]:
    """Fine-tune a pretrained transformer on one view.

    Args:
        view: one of `TASKS`.
        method, density, learning_rate: as for `rmbook.evidence.experiment.Experiment`.
        seed: the order of the examples (and LoRA's start) follows it and the view, so no two tasks share it.
        mask_seed: of the mask, for all views alike; the seed if None.
        base: which of the pretrained transformers.

    Returns:
        What changed, and the result of `rmbook.evidence.experiment.run_experiment`.
    """
    order, mask_seed = 10 * TASKS.index(view) + seed, seed if mask_seed is None else mask_seed
    chosen = {"seed": order, "mask_seed": mask_seed, "backbone": f"vit:{view}", "base": base}
    result, model = run_experiment(Experiment(learning_rate, method, density, **chosen), keep_model=True)
    return weight_changes(load_backbone("vit", base).model(), model), result


@torch.no_grad()
def view_accuracy(model: nn.Module, *views: str, split: str = "test", base: int = 0) -> float:
    """Return right answers in percent on digits seen through views, the first one applied first; none means upright."""
    images = (data := load_backbone("vit:upright", base).data[split]).images
    for view in views:
        images = VIEWS[view](images)
    answers = model.eval()(pixel_values=images).logits.argmax(1)
    return 100 * float((answers == data.labels).double().mean())


def measure_pair(model: nn.Module, views: Sequence[str], changes: Sequence[Changes], seed: int, base: int = 0) -> dict:
    """Measure two tasks' changes, added to the pretrained model.

    Returns:
        shared and cosine (see the functions); by strength, one of `STRENGTHS` for both: dev and test, accuracies on the
        two views, and both, test accuracy on digits seen through both views, the first one first; and noise, test
        accuracies on each view of its own change plus the other's with random signs (from `seed`), at strength 1.
    """
    right, noise = partial(view_accuracy, base=base), [flip_signs(change, seed) for change in changes]
    merged = [combine(model, *((change, strength) for change in changes)) for strength in STRENGTHS]
    return {
        "views": list(views),
        "shared": shared_entries(*changes),
        "cosine": cosine(*changes),
        "dev": [[right(summed, view, split="dev") for view in views] for summed in merged],
        "test": [[right(summed, view) for view in views] for summed in merged],
        "both": [right(summed, *views) for summed in merged],
        "noise": [right(combine(model, (changes[own], 1.0), (noise[1 - own], 1.0)), views[own]) for own in (0, 1)],
    }


def measure_task(model: nn.Module, view: str, changes: Changes, seed: int, base: int = 0) -> dict:
    """Measure one task's change alone: added to the pretrained model, subtracted, with random signs; on test digits.

    Returns:
        norm; views: on each of `VIEWS`; both: seen through this view and another task's, in the order of `TASKS`;
        negated and random (random signs): by strength, on this view and on upright digits.
    """
    right, noise = partial(view_accuracy, base=base), flip_signs(changes, seed)
    alone, seen = combine(model, (changes, 1.0)), [pair for pair in combinations(TASKS, 2) if view in pair]

    def here_and_upright(change: Changes, strength: float) -> list[float]:
        summed = combine(model, (change, strength))
        return [right(summed, view), right(summed)]

    return {
        "view": view,
        "norm": norm(changes),
        "views": {name: right(alone, name) for name in VIEWS},
        "both": {" ".join(pair): right(alone, *pair) for pair in seen},
        "negated": {str(s): here_and_upright(changes, -s) for s in (0.5, 1.0)},
        "random": {str(s): here_and_upright(noise, s) for s in (0.5, 1.0)},
    }


def run_cell(cell: Cell, learn: Callable = learn_task, views: Sequence[str] = TASKS) -> dict:
    """Measure all tasks, seeds and pairs of one method at one density, on one network.

    A pair of one seed has one mask for both tasks; of neighbouring seeds, two independent masks. Methods without masks,
    and a mask of all entries, need the first kind alone.

    Args:
        cell: what to measure.
        learn: learns one view, as `learn_task`.
        views: the tasks.

    Returns:
        The settings, tasks (one `measure_task` each) and pairs (one `measure_pair` each).
    """
    model, seeds = load_backbone("vit", cell.base).model(), cell.seeds
    settings = {name: getattr(cell, name) for name in SETTINGS}
    learned = {(view, seed): learn(view, **settings, seed=seed) for seed in seeds for view in views}
    tasks = [
        {"seed": seed, "trainable": run["trainable"], "status": run["status"], "dev": run["dev_accuracy"]}
        | measure_task(model, view, changes, seed, cell.base)
        for (view, seed), (changes, run) in learned.items()
    ]
    drawn = cell.method == "mask" and cell.density < 1
    kinds = (("same", 0), ("independent", 1)) if drawn else (("none", 0),)
    pairs = [
        {"seed": seed, "masks": masks}
        | measure_pair(model, (a, b), (learned[a, seed][0], learned[b, other][0]), seed, cell.base)
        for masks, shift in kinds
        for seed, other in zip(seeds, seeds[shift:] + seeds[:shift], strict=True)
        for a, b in combinations(views, 2)
    ]
    return settings | {"tasks": tasks, "pairs": pairs}


def base_accuracies(base: int = 0) -> dict[str, float]:
    """Return a pretrained model's test accuracy in percent, by the view, or two, through which it sees."""
    model, seen = load_backbone("vit", base).model(), [(view,) for view in VIEWS] + [*combinations(TASKS, 2)]
    return {" ".join(views): view_accuracy(model, *views, base=base) for views in seen}


def interference_tables(content: dict) -> tuple[pd.DataFrame, pd.DataFrame, dict]:
    """Return a recorded grid as its tasks and its pairs, a row each, and all the rest (stamp, strengths, before)."""
    rest = {name: value for name, value in content.items() if name != "cells"}
    rows = {
        kind: [{name: cell[name] for name in SETTINGS} | row for cell in content["cells"] for row in cell[kind]]
        for kind in ("tasks", "pairs")
    }
    return *(pd.DataFrame(rows[kind]).astype({"density": float}) for kind in ("tasks", "pairs")), rest


def load_interference() -> tuple[pd.DataFrame, pd.DataFrame, dict]:
    """Return the recorded grid "interference" as `interference_tables` do."""
    return interference_tables(load_recorded("science/interference"))
