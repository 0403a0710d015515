"""The recorded grids: which runs they have, and their results as tables.

A grid is a small YAML file in rmbook/evidence/recorded, of the form that `rmbook.sweeps.grid` explains, with these
additions. `kind` says what a run is, see `rmbook.evidence.record`; a grid of language models may name its `result`. A
list in an axis of mappings stands for all its values, and may hold mappings itself. And an axis can be taken from
another recorded grid:

    axes:
      method: {best_in: vit_grid, density: [0.01, 0.001]}

stands for each method and density there (or those listed) at its best learning rate on each base. `rmbook record NAME`
records a grid anew.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd

from rmbook.errors import ConfigError, closest
from rmbook.evidence.experiment import Experiment
from rmbook.evidence.recording import load_recorded
from rmbook.sweeps.best_rate import DIVERGED, best_rate
from rmbook.yaml_files import read_yaml

MEASURES = {
    "dev": ("dev_accuracy", "mean"),
    "test": ("test_accuracy", "mean"),
    "distance": ("distance", "mean"),
    "trainable": ("trainable", "mean"),
    "runs": ("seed", "count"),
}


def recorded_grids() -> dict[str, dict]:
    """Return the recorded grids by name, in alphabetical order, as their files have them."""
    paths = sorted(Path(str(files("rmbook.evidence"))).glob("recorded/*.yaml"))
    return {path.stem: read_yaml(path) for path in paths}


def read_recorded_grid(source: str) -> dict:
    """Return a recorded grid by its name, or from a YAML file, with all its axes written out.

    Raises:
        ConfigError: no such name or file, or the file is no grid.
        FileNotFoundError: a grid that an axis is taken from is not recorded.
    """
    grid = recorded_grids().get(source)
    if grid is None:
        if not Path(source).is_file():
            raise ConfigError(f"{source} is neither a file nor a recorded grid: {closest(source, recorded_grids())}")
        grid = read_yaml(source, f"the grid {source}")
    if not isinstance(grid, dict) or not isinstance(grid.get("axes", {}), dict):
        raise ConfigError(f"the grid {source} must map names to values, and so must its axes.")
    axes = {name: _written_out(values) for name, values in grid.get("axes", {}).items()}
    return {"description": "", "fixed": {}} | grid | {"axes": axes}


def _written_out(values: list | dict) -> list:
    if isinstance(values, dict):
        return _best_in(**values)
    return [entry for value in values for entry in (_spread(value) if isinstance(value, dict) else [value])]


def _spread(mapping: dict) -> Iterator[dict]:
    """Yield all combinations of the lists in a mapping, without lists."""
    parts = []
    for name, values in mapping.items():
        entries = _written_out(values if isinstance(values, list) else [values])
        parts.append([entry if isinstance(entry, dict) else {name: entry} for entry in entries])
    for chosen in itertools.product(*parts):
        yield {name: value for part in chosen for name, value in part.items()}


def _best_in(best_in: str, **only: list) -> list[dict]:
    """Return the methods and densities of a recorded grid, each with its best learning rate on each base."""
    table = best_cells(load_runs(best_in).query("scale == 1.0"), ["method", "density", "base"]).reset_index()
    for name, values in only.items():
        table = table[table[name].isin(values) | (table[name].isna() & (None in values))]
    names = ["method", "density", "learning_rate"] + ["base"] * bool(table["base"].any())  # base 0 need not be named
    rows = table[names].astype(object)
    return rows.where(rows.notna(), None).to_dict("records")


def load_runs(name: str) -> pd.DataFrame:
    """Return the runs of a recorded grid, one row each, with all settings; `.attrs["record"]` is the rest of its file.

    A run that diverged before the first epoch ended has the dev accuracy 0, so that means over seeds count it.

    Raises:
        FileNotFoundError: there is no such recorded result.
    """
    content = load_recorded(f"science/{name}")
    table = to_table(content["runs"])
    table.attrs["record"] = Shared((key, value) for key, value in content.items() if key != "runs")
    return table


class Shared(dict):
    """A dictionary that is its own copy: pandas copies what a table has in `attrs` at each step, which took longer."""

    def __deepcopy__(self, memo: dict) -> "Shared":
        return self


def to_table(runs: Sequence[dict]) -> pd.DataFrame:
    """Return results of `run_experiment`, one row each, with the settings that are their defaults filled in."""
    table = pd.DataFrame(runs)
    for entry in dataclasses.fields(Experiment):
        if entry.default is not dataclasses.MISSING and entry.default is not None:
            column = table[entry.name] if entry.name in table else pd.Series(index=table.index, dtype=object)
            table[entry.name] = column.where(column.notna(), entry.default)
    table["density"] = table["density"].astype(float) if "density" in table else float("nan")
    table["base"] = table["base"].astype(int)
    return table.assign(dev_accuracy=table["dev_accuracy"].fillna(0.0)).infer_objects()


def best_runs(table: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """Return the runs of each group and base at its best learning rate, see `rmbook.sweeps.best_rate`.

    The rate is chosen on each base anew, as who fine-tunes has one. A rate at which not all of the group's seeds were
    run takes no part. A group in which no rate can be chosen has no rows.

    Args:
        table: with the columns learning_rate, seed, status, dev_accuracy and dev_loss, those of `by`, and base where
            there are several.
        by: columns that make a group; all runs are one group without any.
    """
    names = [name for name in dict.fromkeys([*by, "base"]) if name in table]
    group = table.groupby(names, sort=False, dropna=False).ngroup().to_numpy() if names else np.zeros(len(table), int)
    rates, runs = table["learning_rate"].to_numpy(), {}
    columns = (table[name].tolist() for name in ("seed", "status", "dev_accuracy", "dev_loss"))
    for number, rate, seed, status, right, loss in zip(group, rates, *columns, strict=True):
        scores = runs.setdefault(number, {}).setdefault(rate, {})
        scores.setdefault(seed, []).append(DIVERGED if status == "diverged" else (right, loss))
    best = np.array([_best_rate(runs[number]) for number in range(len(runs))])
    chosen = np.flatnonzero(rates == best[group])
    return table.iloc[chosen[np.argsort(group[chosen], kind="stable")]]


def _best_rate(scores: dict[float, dict[int, list]]) -> float:
    """Return the best of a group's rates, nan if there is none, from the scores by rate and seed."""
    seeds = set().union(*scores.values())
    complete = {rate: sum(own.values(), []) for rate, own in scores.items() if own.keys() == seeds}
    rate = best_rate(complete)
    return np.nan if rate is None else rate


def best_cells(table: pd.DataFrame, by: Sequence[str], measures: dict[str, tuple] = MEASURES) -> pd.DataFrame:
    """Return the best learning rate of each group, and what it gives.

    Args:
        table: from `load_runs` or `to_table`, or as for `best_runs` with the columns that are measured.
        by: columns that make a group, such as ["method", "density"].
        measures: what is taken over the runs at that rate, as for pandas' `agg`; what the table has no column for is
            left out.

    Returns:
        One row a group, by default: learning_rate (the middle one of the bases), dev, test (mean accuracies in
        percent), test_sd (between the bases' means, or between seeds on one base), distance (mean), trainable,
        runs; and at_edge (whether it is the smallest or largest rate that was tried, on any base).
    """
    by = list(by)
    tried = table.groupby(by, sort=False, dropna=False)["learning_rate"]
    best = best_runs(table.assign(lowest=tried.transform("min"), highest=tried.transform("max")), by)
    best["at_edge"] = (best["learning_rate"] == best["lowest"]) | (best["learning_rate"] == best["highest"])
    found = {name: measure for name, measure in measures.items() if measure[0] in table}
    found = {"learning_rate": ("learning_rate", "median")} | found | {"at_edge": ("at_edge", "any")}
    cells = best.groupby(by, sort=False, dropna=False).agg(**found)
    if measures is MEASURES and "test_accuracy" in table:
        cells.insert(cells.columns.get_loc("test") + 1, "test_sd", _spread_of_test(best, by))
    return cells


def _spread_of_test(best: pd.DataFrame, by: list[str]) -> pd.Series:
    runs = best.groupby(by, sort=False, dropna=False)["test_accuracy"].std()
    if "base" not in best or "base" in by:
        return runs
    bases = best.groupby([*by, "base"], sort=False, dropna=False)["test_accuracy"].mean()
    bases = bases.groupby(level=by, sort=False, dropna=False).agg(["std", "size"])
    return bases["std"].where(bases["size"] > 1, runs)
