"""Recording a grid anew: its runs as a sweep, which resumes and can be shared, its results in one stamped file."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rmbook.errors import ConfigError
from rmbook.evidence.backbones import load_backbone
from rmbook.evidence.connections import ConnectionCell, measure_connections
from rmbook.evidence.curvature_cells import CurvatureCell, measure_cell
from rmbook.evidence.experiment import Experiment, run_experiment
from rmbook.evidence.grids import read_recorded_grid, recorded_grids
from rmbook.evidence.interference import STRENGTHS, Cell, base_accuracies, run_cell
from rmbook.evidence.language_grids import (
    fit_to_memory,
    language_content,
    perform_language,
    plan_language,
    recording_command,
    result_name,
)
from rmbook.evidence.recording import recorded_path
from rmbook.evidence.tiers import gpu_memory
from rmbook.files import write_json
from rmbook.offline.store import cache_folder
from rmbook.runs.fingerprints import PlannedRun, settings_key
from rmbook.runs.result import RunError
from rmbook.stamps import source_fingerprint, stamp
from rmbook.sweeps.driver import Perform
from rmbook.sweeps.folder import SweepFolder
from rmbook.sweeps.grid import combinations
from rmbook.sweeps.listener import Listener
from rmbook.sweeps.local import run_sweep
from rmbook.sweeps.state import open_ledger
from rmbook.version import __version__

OUT_OF_MEMORY = {"status": "out of memory", "best_epoch": 0, "test": None}  # the result of a run that needs too much


@dataclass(frozen=True)
class Kind:
    """A kind of run that grids are made of.

    Attributes:
        plan: gives the runs of a grid, with their identities.
        perform: carries one out; see `rmbook.sweeps.driver`.
        content: gives what the recorded file holds beside its stamp, from the grid, its runs and their results.
    """

    plan: Callable[[dict], list[PlannedRun]]
    perform: Perform
    content: Callable[[dict, list[PlannedRun], list[dict]], dict]


def plan_settings(settings: type, measure: Callable, grid: dict) -> list[PlannedRun]:
    """Return the runs of a grid of backbones, each known by its settings, the model's weights and the code.

    Args:
        settings: class of a run's settings.
        measure: gives what is measured with such settings: its module, and all that this imports, is the code.
        grid: from `rmbook.evidence.grids.read_recorded_grid`.

    Raises:
        ConfigError: the grid has a setting that the class does not know, or a value that it refuses.
    """
    code, runs = f"{__version__}+{source_fingerprint(measure.__module__)[:16]}", {}
    for values in combinations(grid):
        try:
            config = dataclasses.asdict(settings(**values))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"the grid has a run that cannot be: {error}") from None
        backbone = load_backbone(config.get("backbone", "vit"), config.get("base", 0))
        identity = {"weights": backbone.fingerprint, "code": code}
        key = settings_key(config, identity)
        runs[key] = PlannedRun(key, config, identity)
    return list(runs.values())


def perform_settings(settings: type, measure: Callable, config: dict, work: Path, *unused: object) -> None:
    """Perform one run of a sweep, see `rmbook.sweeps.driver`; an interrupted one begins anew, as it takes a minute.

    Args:
        settings, measure: as for `plan_settings`.
        config: the fields of the settings.
        work: folder for its result.json.
        unused: models that are kept loaded, and what would stop a run.
    """
    measured = measure(settings(**config))
    work.mkdir(parents=True, exist_ok=True)
    write_json(work / "result.json", measured | {"status": measured.get("status", "completed"), "config": config})


def experiment_content(grid: dict, runs: list[PlannedRun], results: list[dict]) -> dict:
    """Return what the recorded file of a grid of experiments holds."""
    return {"about": grid["description"], "runs": [_without(result, "config") for result in results]}


def interference_content(grid: dict, runs: list[PlannedRun], results: list[dict]) -> dict:
    """Return what the recorded file of a grid of merged tasks holds."""
    cells = [_without(result, "config", "status") for result in results]
    before = [{"base": base} | base_accuracies(base) for base in sorted({cell["base"] for cell in cells})]
    return {"about": grid["description"], "strengths": STRENGTHS, "before": before, "cells": cells}


def _without(result: dict, *names: str) -> dict:
    return {name: value for name, value in result.items() if name not in names}


def _measured(content: Callable, *given) -> Kind:
    return Kind(partial(plan_settings, *given), partial(perform_settings, *given), content)


KINDS = {
    "experiment": _measured(experiment_content, Experiment, run_experiment),
    "curvature": _measured(experiment_content, CurvatureCell, measure_cell),
    "connections": _measured(experiment_content, ConnectionCell, measure_connections),
    "interference": _measured(interference_content, Cell, run_cell),
    "fine_tuning": Kind(plan_language, perform_language, language_content),
}


def record_grid(
    source: str,
    folder: str | Path | None = None,
    changes: dict | None = None,
    *,
    listener: Listener | None = None,
    perform: Perform | None = None,
) -> Path:
    """Run a grid, or what of it is not done yet, and write its results with a stamp.

    Several processes that record the same grid in one folder share its runs.

    Args:
        source: name of a recorded grid, or a YAML file of such a grid.
        folder: of the sweep; if None, the one in rmbook's cache for grids of this kind.
        changes: model, task or data_dir of a grid of language models, instead of its own.
        listener: is told how it goes.
        perform: carries a run out, instead of what the grid's kind has.

    Returns:
        The file that was written: the recorded result, or for a YAML file NAME.json in the folder of the sweep.

    Raises:
        ConfigError: no such grid, or a change that it does not take.
        RunError: a run failed; the others are kept.
        TrainingInterrupted: Ctrl-C or SIGTERM; the same call resumes.
        ModelError, TaskError: the model or its examples cannot be had.
    """
    grid, name = read_recorded_grid(source), Path(source).stem
    if grid.get("kind") not in KINDS:
        raise ConfigError(f"the kind of the grid {source} must be one of {', '.join(KINDS)}, got {grid.get('kind')!r}.")
    kind, result, command = KINDS[grid["kind"]], f"science/{name}", f"rmbook record {source}"
    if changes and grid["kind"] != "fine_tuning":
        raise ConfigError(f"{source} is no grid of language models: leave out {', '.join(changes)}.")
    if grid["kind"] == "fine_tuning":
        grid = fit_to_memory(grid | {"fixed": grid["fixed"] | (changes or {})}, gpu_memory())
        fixed = grid["fixed"]
        given = fixed["model"], fixed["task"]
        result, command = grid.get("result") or result_name(*given), recording_command(*given, source)
    folder = Path(folder or cache_folder() / "recording" / grid["kind"])  # grids that share runs count them once
    made, runs = stamp(command), kind.plan(grid)
    run_sweep(runs, folder, perform=perform or kind.perform, listener=listener, retry_failed=True)
    content = {"stamp": made} | kind.content(grid, runs, _results(runs, folder))
    target = recorded_path(result) if source in recorded_grids() else folder / f"{name}.json"
    write_json(target, content)
    return target


def _results(runs: list[PlannedRun], folder: Path) -> list[dict]:
    place = SweepFolder(folder)
    ledger = open_ledger(place)
    failed = {row["key"]: row["error"] for row in ledger.rows("failed")}
    ledger.close()
    short = {key for key, error in failed.items() if error.startswith("MemoryShortage")}
    if other := [error for key, error in failed.items() if key not in short and key in {run.key for run in runs}]:
        raise RunError(f"{len(other)} runs failed, such as: {other[0]} See `rmbook sweep status {folder}`.")
    return [OUT_OF_MEMORY | {"config": run.config} if run.key in short else place.result(run.key) for run in runs]
