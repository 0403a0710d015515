"""Grids: many runs described at once, in a small YAML file or a dict.

    fixed: {model: facebook/opt-125m, task: RTE, epochs: 5}
    axes:
      method:
        - {method: lora}
        - {method: random_masking, ratio: 1e-3}
      learning_rate: [1e-3, 1e-4]
      seed: [0, 1, 2]
    except:
      - {method: lora, learning_rate: 1e-3}

Every setting is one of `rmbook.RunConfig`. An axis holds values of the setting that it is named after, or mappings that
set several at once; no two axes may set the same. The runs are all combinations, the last axis running fastest, without
those that agree with a line of `except`. `rmbook sweep grids` lists the ready-made ones.
"""

import dataclasses
import itertools
import math
import os
import reprlib
from collections.abc import Iterable, Iterator
from importlib.resources import files
from pathlib import Path

from rmbook.errors import ConfigError, closest
from rmbook.runs.config import RunConfig, make_config
from rmbook.runs.fingerprints import PlannedRun, plan_run
from rmbook.yaml_files import read_yaml

PARTS = ("description", "fixed", "axes", "except")
MOST_RUNS = 100_000  # combinations that a grid may ask for, unless more are allowed
# Tables and figures whose runs are those of another one, or among them.
SAME_RUNS = dict.fromkeys(("table6", "table7", "fig1", "fig6", "fig7", "fig8", "fig9", "fig11"), "table5")
SAME_RUNS |= {"table9": "table8", "fig4a": "fig3", "fig4c": "fig3", "fig5": "table8", "fig10": "fig4b"}
SAME_RUNS |= {f"{name}-tiny": f"{other}-tiny" for name, other in SAME_RUNS.items()}


def ready_made() -> dict[str, str]:
    """Return names and descriptions of the grids that come with the package, in alphabetical order."""
    found = {path.stem: read_yaml(path).get("description", "") for path in grid_files()}
    found |= {name: f"its runs are those of {other}, or among them" for name, other in SAME_RUNS.items()}
    return dict(sorted(found.items()))


def read_grid(source: str | os.PathLike) -> dict:
    """Read a grid by its ready-made name, or from a YAML file.

    Raises:
        ConfigError: no such name or file, or the file is no grid.
    """
    name, paths = str(source), {path.stem: path for path in grid_files()}
    path = paths.get(SAME_RUNS.get(name, name))
    if path is None:
        if not Path(name).is_file():
            known = closest(name, [*paths, *SAME_RUNS])
            raise ConfigError(f"{name} is neither a file nor a ready-made grid: {known}")
        path = Path(name)
    grid = read_yaml(path, f"the grid {name}")
    if not isinstance(grid, dict):
        raise ConfigError(f"the grid {name} must hold {', '.join(PARTS)}; got {type(grid).__name__}.")
    return grid


def override(grid: dict, values: dict) -> dict:
    """Return the grid with some settings replaced: by an axis where the value is a list, else by a fixed value.

    Raises:
        ConfigError: a setting that an axis of mappings sets together with others.
    """
    _check(grid)
    fixed, axes = dict(grid.get("fixed") or {}), dict(grid.get("axes") or {})
    for name, value in values.items():
        for axis, entries in axes.items():
            if any(isinstance(entry, dict) and name in entry for entry in entries) and axis != name:
                raise ConfigError(f"{name} is set by the axis {axis} of the grid: copy the grid and change it there.")
        if isinstance(value, list):
            fixed.pop(name, None)
            axes[name] = value
        else:
            axes.pop(name, None)
            fixed[name] = value
    return grid | {"fixed": fixed, "axes": axes}


def expand(grid: dict, allowed: int = MOST_RUNS) -> list[RunConfig]:
    """Return the settings of all runs of a grid, in its order; runs that agree in all settings come once.

    Args:
        grid: from `read_grid`, or a dict of the same form.
        allowed: the most combinations that the axes may have.

    Raises:
        ConfigError: unknown parts or settings, values out of range, an axis without values, two axes that set the same,
            more combinations than are allowed, no runs at all.
    """
    _check(grid)
    sizes = {name: len(values) for name, values in (grid.get("axes") or {}).items()}
    if (count := math.prod(sizes.values())) > allowed:
        told = " x ".join(f"{size:,} of {name}" for name, size in sizes.items())
        raise ConfigError(f"the grid asks for {count:,} runs ({told}), more than {allowed:,}: --allow-runs {count}.")
    found = {}
    for settings in combinations(grid):
        config = make_config(_resolved(settings))
        found.setdefault(config.digest(), config)
    if not found:
        raise ConfigError("the grid has no runs: its lines of `except` leave out all of them.")
    return list(found.values())


def plan(configs: Iterable[RunConfig]) -> list[PlannedRun]:
    """Return the runs with their identities, each once; their data and weights are hashed.

    Raises:
        TaskError, ModelError: examples or a model cannot be found.
    """
    return list({run.key: run for run in map(plan_run, configs)}.values())


def grid_files() -> list[Path]:
    """Return the files of the ready-made grids."""
    return sorted(Path(str(files("rmbook.sweeps"))).glob("grid_files/*.yaml"))


def _check(grid: dict) -> None:
    for name in grid:
        if name not in PARTS:
            raise ConfigError(f"unknown part {name!r} of a grid: {closest(name, PARTS)}")
    for name, kind in (("fixed", dict), ("axes", dict), ("except", list)):
        if not isinstance(grid.get(name), kind | None):
            wanted = "map names to values" if kind is dict else "be a list of mappings"
            raise ConfigError(f"{name} must {wanted}, got {reprlib.repr(grid[name])}.")
    known, set_by = {entry.name for entry in dataclasses.fields(RunConfig)}, {}
    for axis, values in (grid.get("axes") or {}).items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"the axis {axis} must be a list of at least one value, got {reprlib.repr(values)}.")
        if axis not in known and not all(isinstance(value, dict) for value in values):
            raise ConfigError(f"the axis {axis} is no setting, so it must hold mappings: {closest(axis, known)}")
        for name in {name for value in values for name in _settings(axis, value)}:
            if (other := set_by.setdefault(name, axis)) != axis:
                raise ConfigError(f"the axes {other} and {axis} both set {name}: take it out of one of them.")
    for left_out in grid.get("except") or []:
        if not isinstance(left_out, dict) or not left_out:
            raise ConfigError(f"a line of except must map names to values, got {reprlib.repr(left_out)}.")
        if unknown := [name for name in left_out if name not in known]:
            raise ConfigError(f"unknown setting {unknown[0]!r} in except: {closest(unknown[0], known)}")


def _settings(axis: str, value: object) -> dict:
    """Return what a value of an axis sets."""
    return value if isinstance(value, dict) and axis != "settings" else {axis: value}


def combinations(grid: dict) -> Iterator[dict]:
    """Yield the settings of all runs of a grid, in its order and unchecked."""
    axes = grid.get("axes") or {}
    left_out = grid.get("except") or []
    for values in itertools.product(*axes.values()):
        settings = dict(grid.get("fixed") or {})
        for name, value in zip(axes, values, strict=True):
            settings |= _settings(name, value)
        if not any(all(settings.get(name) == value for name, value in line.items()) for line in left_out):
            yield settings


def _resolved(settings: dict) -> dict:
    changed = dict(settings)
    for name in ("model", "data_dir"):
        if str(settings.get(name, "")).startswith("made:"):
            from rmbook.offline.made import resolve  # which needs torch and the libraries of models

            changed[name] = resolve(settings[name])
    return changed
