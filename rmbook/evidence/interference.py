"""Interference: two tasks whose learned changes are added up.

The tasks are views of the digits (`rmbook.offline.digits.VIEWS`), the model is one pretrained vision transformer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import pandas as pd
import torch
from torch import nn

from rmbook.evidence.backbones import load_backbone
from rmbook.evidence.changes import Changes, combine, cosine, flip_signs, norm, shared_entries, weight_changes
from rmbook.evidence.experiment import Experiment, run_experiment
from rmbook.evidence.recording import load_recorded
from rmbook.offline.digits import VIEWS, Digits

TASKS = ("mirrored", "upside_down", "turned", "negative")
STRENGTHS = (0.5, 0.7, 1.0)


@dataclass(frozen=True)
class Cell:
    """Settings that are measured together: all tasks, seeds and pairs of a method at one density and rate."""

    method: str
    density: float | None
    learning_rate: float
    seeds: list[int]


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
        What changed, and the result of `rmbook.evidence.experiment.run_experiment`.
    """
    order, mask_seed = 10 * TASKS.index(view) + seed, seed if mask_seed is None else mask_seed
    chosen = {"seed": order, "mask_seed": mask_seed, "backbone": f"vit:{view}"}
    result, model = run_experiment(Experiment(learning_rate, method, density, **chosen), keep_model=True)
    return weight_changes(load_backbone("vit").model(), model), result


@torch.no_grad()
def view_accuracy(model: nn.Module, *views: str, split: str = "test") -> float:
    """Return right answers in percent on digits seen through views, the first one applied first; none means upright."""
    images = (data := _digits(split)).images
    for view in views:
        images = VIEWS[view](images)
    answers = model.eval()(pixel_values=images).logits.argmax(1)
    return 100 * float((answers == data.labels).double().mean())


_digits = cache(lambda split: Digits(split, "upright"))


def measure_pair(base: nn.Module, views: Sequence[str], changes: Sequence[Changes], seed: int) -> dict:
    """Measure two tasks' changes, added.

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
    """Measure one task's change alone: added, subtracted, and with random signs; accuracies on test digits.

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


def run_cell(cell: Cell, learn: Callable = learn_task, views: Sequence[str] = TASKS) -> dict:
    """Measure all tasks, seeds and pairs of one method at one density.

    A pair of one seed has one mask for both tasks; of neighbouring seeds, two independent masks. Methods without masks
    need the first kind alone.

    Args:
        cell: what to measure.
        learn: learns one view, as `learn_task`.
        views: the tasks.

    Returns:
        The settings, tasks (one `measure_task` each) and pairs (one `measure_pair` each).
    """
    base = load_backbone("vit").model()
    settings = {"method": cell.method, "density": cell.density, "learning_rate": cell.learning_rate}
    seeds = cell.seeds
    learned = {(view, seed): learn(view, **settings, seed=seed) for seed in seeds for view in views}
    tasks = [
        {"seed": seed, "trainable": run["trainable"], "status": run["status"], "dev": run["dev_accuracy"]}
        | measure_task(base, view, changes, seed)
        for (view, seed), (changes, run) in learned.items()
    ]
    kinds = (("same", 0), ("independent", 1)) if cell.method == "mask" else (("none", 0),)
    pairs = [
        {"seed": seed, "masks": masks}
        | measure_pair(base, (a, b), (learned[a, seed][0], learned[b, seeds[(place + shift) % len(seeds)]][0]), seed)
        for masks, shift in kinds
        for place, seed in enumerate(seeds)
        for a, b in combinations(views, 2)
    ]
    return settings | {"tasks": tasks, "pairs": pairs}


def base_accuracies() -> dict[str, float]:
    """Return the pretrained model's test accuracy in percent, by the view, or two, through which it sees."""
    model = load_backbone("vit").model()
    return {" ".join(seen): view_accuracy(model, *seen) for seen in [(v,) for v in VIEWS] + [*combinations(TASKS, 2)]}


def interference_tables(content: dict) -> tuple[pd.DataFrame, pd.DataFrame, dict]:
    """Return a recorded grid as its tasks and its pairs, a row each, and all the rest (stamp, strengths, base)."""
    settings, rest = ("method", "density", "learning_rate"), {n: v for n, v in content.items() if n != "cells"}
    rows = {
        kind: [{name: cell[name] for name in settings} | row for cell in content["cells"] for row in cell[kind]]
        for kind in ("tasks", "pairs")
    }
    return *(pd.DataFrame(rows[kind]).astype({"density": float}) for kind in ("tasks", "pairs")), rest


def load_interference() -> tuple[pd.DataFrame, pd.DataFrame, dict]:
    """Return the recorded grid "interference" as `interference_tables` do."""
    return interference_tables(load_recorded("science/interference"))
