"""Recorded results that are broken on purpose: dealt out at random, all alike, too few, of other settings."""

import copy
from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
import torch
from broken_chapters import LOADERS
from broken_library import Library

SETTINGS = {"method", "density", "learning_rate", "seed", "backbone", "choice", "scale", "start", "train_size", "base",
            "mask_seed", "model", "task", "ratio", "hessian", "view", "masks", "steps"}  # fmt: skip


def measured(table: pd.DataFrame) -> list[str]:
    """Return the columns of what was measured; in the paper's tables of rates, that is the best rate."""
    settings = SETTINGS | {name for name in table if isinstance(table[name].iloc[0], list) and name == "views"}
    return [name for name in table if name not in settings] or ["learning_rate"]


def dealt(table: pd.DataFrame, order: np.ndarray) -> pd.DataFrame:
    """Return the table in which row i has the results of row order[i]."""
    return table.assign(**{name: table[name].to_numpy()[order] for name in measured(table)})


def shuffled(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return the results dealt out to the runs at random."""
    return dealt(table, np.random.default_rng(seed).permutation(len(table)))


def score_of(table: pd.DataFrame) -> str:
    return next(name for name in ("dev_accuracy", "score", *measured(table)) if name in table)


def opposite(table: pd.DataFrame) -> pd.DataFrame:
    """Return the results of the worst run for the best one, and so on."""
    order = table[score_of(table)].argsort().to_numpy()
    ranks = np.empty_like(order)
    ranks[order] = order[::-1]
    return dealt(table, ranks)


def in_order(table: pd.DataFrame, best_first: bool) -> pd.DataFrame:
    """Return the best results for the first runs, or for the last."""
    order = table[score_of(table)].argsort().to_numpy()
    return dealt(table, order[::-1] if best_first else order)


def alike(table: pd.DataFrame) -> pd.DataFrame:
    """Return the results of one run for all runs, and each curve or group of numbers as its mean: nothing matters."""
    same = dealt(table, np.full(len(table), len(table) // 2))
    groups = [name for name in measured(table) if isinstance(same[name].iloc[0], list | dict)]
    means = {name: float(np.mean(leaves(same[name].iloc[0]))) for name in groups}
    return same.assign(**{name: [levelled(group, means[name]) for group in table[name]] for name in groups})


def leaves(group: list | dict | float) -> list[float]:
    """Return the numbers in a group of numbers, or of groups of them."""
    if not isinstance(group, list | dict):
        return [group]
    return [leaf for part in (group.values() if isinstance(group, dict) else group) for leaf in leaves(part)]


def levelled(group: list | dict | float, mean: float) -> list | dict | float:
    """Return a group of the same form with one number in all places."""
    if isinstance(group, dict):
        return {name: levelled(part, mean) for name, part in group.items()}
    return [levelled(part, mean) for part in group] if isinstance(group, list) else mean


def exaggerated(table: pd.DataFrame) -> pd.DataFrame:
    """Return results three times as far from their mean."""
    names = [name for name in measured(table) if table[name].dtype == float]
    return table.assign(**{name: table[name].mean() + 3 * (table[name] - table[name].mean()) for name in names})


def diverging(table: pd.DataFrame) -> pd.DataFrame:
    """Return the same runs, of which every third ended as NaN before its first epoch did."""
    hit = np.arange(len(table)) % 3 == 0
    ended = {"status": "diverged", "dev_accuracy": 0.0, "dev_loss": None, "best_epoch": 0}
    return table.assign(**{name: table[name].mask(hit, value) for name, value in ended.items() if name in table})


def outlying(table: pd.DataFrame) -> pd.DataFrame:
    """Return the same results, but those of the first three runs are half as large."""
    names = [name for name in measured(table) if table[name].dtype == float]
    return table.assign(**{name: table[name].where(np.arange(len(table)) > 2, table[name] / 2) for name in names})


def fewer(table: pd.DataFrame) -> pd.DataFrame:
    """Return the first third of the runs: the rest was lost."""
    return table.iloc[: len(table) // 3].copy()


def one_less(table: pd.DataFrame) -> pd.DataFrame:
    """Return all runs but the last."""
    return table.iloc[:-1].copy()


def mislabelled(table: pd.DataFrame) -> pd.DataFrame:
    """Return the runs with learning rates, scales and networks that they did not have."""
    changes = {"learning_rate": 10 * table["learning_rate"]} if "learning_rate" in table else {}
    return table.assign(**changes | {name: 2 for name in ("scale", "base") if name in table})


def exchanged(table: pd.DataFrame) -> pd.DataFrame:
    """Return the runs with the settings of other runs, the last ones for the first."""
    names = [name for name in ("learning_rate", "base") if name in table]
    return table.assign(**{name: table[name].to_numpy()[::-1] for name in names})


def unbroken(table: pd.DataFrame) -> pd.DataFrame:
    """Return the results as they are."""
    return table


def lost(table: pd.DataFrame) -> pd.DataFrame:
    """Raise, as if there were no results at all."""
    raise FileNotFoundError


RECORDS = [partial(shuffled, seed=0), alike, opposite, exaggerated, outlying, diverging, fewer, one_less, mislabelled]
RECORDS += [exchanged, partial(in_order, best_first=True), partial(in_order, best_first=False)]
RECORDS += [partial(shuffled, seed=seed) for seed in (1, 2, 3)]


class Records(Library):
    """What takes the place of functions where only the recorded results are broken; what trains is a fake one."""

    def __init__(self, world: Callable, loaded: dict, heard: dict):
        super().__init__(lambda real: real, heard)
        self.world, self.loaded = world, loaded

    def instead_of(self, name: str, value: object) -> object:
        """Return a loader whose results are broken: a table, a tuple with tables, a mapping with runs or accuracies."""
        return partial(self.load, value) if LOADERS.match(f"{name}(") else super().instead_of(name, value)

    def load(self, load: Callable, *arguments):
        """Return results that have been loaded before, or are now, and broken."""
        if (load, arguments) not in self.loaded:
            self.loaded[load, arguments] = load(*arguments)
        return self.change(copy.deepcopy(self.loaded[load, arguments]))

    def call_of(self, name: str, arguments: tuple, options: dict) -> object:
        """Return a name for a call that says the same with other records: of plain arguments, or with a model."""
        given = (*arguments, *options.values())
        if any(isinstance(each, torch.nn.Module) for each in given):
            return super().call_of(name, arguments, options)
        return (name, *options, *given) if all(isinstance(each, str | float | int | None) for each in given) else None

    def change(self, content):
        if isinstance(content, pd.DataFrame):
            changed = self.world(content)
            changed.attrs = content.attrs
            return changed
        if isinstance(content, tuple):
            return tuple(self.change(part) for part in content)
        if self.world is unbroken:
            return content
        if "runs" in content:
            runs = self.world(pd.DataFrame(content["runs"]).astype(object)).to_dict("records")
            return content | {"runs": runs, "zero_shot": content["zero_shot"] / 2}
        halves = [{name: value / 2 for name, value in row.items()} | {"base": row["base"]} for row in content["before"]]
        return content | {"before": halves}
