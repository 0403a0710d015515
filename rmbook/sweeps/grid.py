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
set several at once; a list in a mapping stands for all its values, as an axis of its own. The runs are all
combinations, the last axis running fastest, without those that agree with a line of `except`. `rmbook sweep grids` lists
the ready-made ones.
"""

import dataclasses
import functools
import itertools
import operator
import os
from collections.abc import Iterable, Iterator
from importlib.resources import files
from pathlib import Path

import yaml

from rmbook.errors import ConfigError, closest
from rmbook.runs.config import RunConfig, make_config
from rmbook.runs.fingerprints import NUMBERS, PlannedRun, plan_run

PARTS = ("description", "fixed", "axes", "except")
WHOLE = ("settings", "targets")  # settings that are mappings or lists themselves
# Tables and figures whose runs are those of another one, or among them.
SAME_RUNS = dict.fromkeys(("table6", "table7", "fig1", "fig6", "fig7", "fig8", "fig9", "fig11"), "table5")
SAME_RUNS |= {"table9": "table8", "fig4a": "fig3", "fig4c": "fig3", "fig5": "table8", "fig10": "fig4b"}
SAME_RUNS |= {f"{name}-tiny": f"{other}-tiny" for name, other in SAME_RUNS.items()}


def ready_made() -> dict[str, str]:
    """Names and descriptions of the grids that come with the package, in alphabetical order."""
    found = {path.stem: parse_grid(path.read_text(), path.stem).get("description", "") for path in _files()}
    found |= {name: f"its runs are those of {other}, or among them" for name, other in SAME_RUNS.items()}
    return dict(sorted(found.items()))


def read_grid(source: str | os.PathLike) -> dict:
    """A grid by its ready-made name, or from a YAML file.

    Raises:
        ConfigError: no such name or file, or the file is no grid.
    """
    name, paths = str(source), {path.stem: path for path in _files()}
    path = paths.get(SAME_RUNS.get(name, name))
    if path is None:
        if not Path(name).is_file():
            known = closest(name, [*paths, *SAME_RUNS])
            raise ConfigError(f"{name} is neither a file nor a ready-made grid: {known}")
        path = Path(name)
    try:
        return parse_grid(path.read_text("utf-8"), name)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the grid {name}: {error}") from None


def override(grid: dict, values: dict) -> dict:
    """The grid with some settings replaced: by an axis where the value is a list, else by a fixed value.

    Raises:
        ConfigError: a setting that an axis of mappings sets together with others.
    """
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


def expand(grid: dict) -> list[RunConfig]:
    """The settings of all runs of a grid, in its order; runs that agree in all settings come once.

    Raises:
        ConfigError: unknown parts or settings, values out of range, an axis without values, no runs at all.
    """
    _check(grid)
    found = {}
    for settings in combinations(grid):
        config = make_config(_resolved(settings))
        found.setdefault(config.digest(), config)
    if not found:
        raise ConfigError("the grid has no runs: its lines of `except` leave out all of them.")
    return list(found.values())


def plan(configs: Iterable[RunConfig]) -> list[PlannedRun]:
    """The runs with their identities, each once; hashes their data and weights.

    Raises:
        TaskError, ModelError: records or a model cannot be found.
    """
    return list({run.key: run for run in map(plan_run, configs)}.values())


def _files() -> list[Path]:
    return sorted(Path(str(files("rmbook.sweeps"))).glob("grid_files/*.yaml"))


def parse_grid(text: str, name: str) -> dict:
    """Return the grid that a YAML text holds.

    Raises:
        ConfigError: it is not YAML, or no mapping.
    """
    try:
        grid = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"the grid {name} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(grid, dict):
        raise ConfigError(f"the grid {name} must hold {', '.join(PARTS)}; got {type(grid).__name__}.")
    return grid


def _check(grid: dict) -> None:
    for name in grid:
        if name not in PARTS:
            raise ConfigError(f"unknown part {name!r} of a grid: {closest(name, PARTS)}")
    for name, kind in (("fixed", dict), ("axes", dict), ("except", list)):
        if not isinstance(grid.get(name) or kind(), kind):
            wanted = "map names to values" if kind is dict else "be a list of mappings"
            raise ConfigError(f"{name} must {wanted}, got {grid[name]!r}.")
    known = {entry.name for entry in dataclasses.fields(RunConfig)}
    for name, values in (grid.get("axes") or {}).items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"the axis {name} must be a list of at least one value, got {values!r}.")
        if name not in known and not all(isinstance(value, dict) for value in values):
            raise ConfigError(f"the axis {name} is no setting, so it must hold mappings: {closest(name, known)}")
    for left_out in grid.get("except") or []:
        if not isinstance(left_out, dict) or not left_out:
            raise ConfigError(f"a line of except must map names to values, got {left_out!r}.")
        if unknown := [name for name in left_out if name not in known]:
            raise ConfigError(f"unknown setting {unknown[0]!r} in except: {closest(unknown[0], known)}")


def combinations(grid: dict) -> Iterator[dict]:
    """Yield all combinations of a grid's axes with its fixed settings, without those that `except` names."""
    left_out = [_numbers(line) for line in grid.get("except") or []]
    for values in _spread(grid.get("axes") or {}):
        settings = _numbers(dict(grid.get("fixed") or {}) | values)
        if not any(all(settings.get(name) == value for name, value in line.items()) for line in left_out):
            yield settings


def _spread(axes: dict, whole: tuple[str, ...] = ()) -> Iterator[dict]:
    """Yield all combinations of axes; an entry that is a mapping holds axes in turn, but for the settings in `whole`."""
    lists = ((name, v if isinstance(v, list) and name not in whole else [v]) for name, v in axes.items())
    for parts in itertools.product(*([*_entries(name, values)] for name, values in lists)):
        yield functools.reduce(operator.or_, parts, {})


def _entries(name: str, values: list) -> Iterator[dict]:
    for value in values:
        if isinstance(value, dict) and name != "settings":
            yield from _spread(value, WHOLE)
        else:
            yield {name: value}


def _numbers(settings: dict) -> dict:
    """YAML reads 1e-4 as text: its numbers need a point, 1.0e-4."""
    changed = dict(settings)
    for name in NUMBERS:
        if isinstance(settings.get(name), str):
            try:
                changed[name] = float(settings[name])
            except ValueError:
                raise ConfigError(f"{name} must be a number, got {settings[name]!r}.") from None
    return changed


def _resolved(settings: dict) -> dict:
    changed = dict(settings)
    for name in ("model", "data_dir"):
        if str(settings.get(name, "")).startswith("made:"):
            from rmbook.offline.made import resolve  # which needs torch and the libraries of models

            changed[name] = resolve(settings[name])
    return changed
