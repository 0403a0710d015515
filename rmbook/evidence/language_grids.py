"""Recorded grids of a language model on a task's real examples: methods, learning rates and seeds.

The chapters on OPT and Llama show them. `rmbook record fine_tuning_tiny` records the tiny models that the package
makes, `rmbook record fine_tuning_hub --model NAME` any model of the hub, on a GPU.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from rmbook.evidence.grids import best_cells
from rmbook.evidence.recording import load_recorded
from rmbook.evidence.tiers import BIG, model_folder
from rmbook.models.reuse import BaseModels
from rmbook.offline.made import resolve
from rmbook.runs.evaluate import evaluate_run
from rmbook.runs.fingerprints import PlannedRun
from rmbook.sweeps.driver import perform_run
from rmbook.sweeps.grid import expand, plan
from rmbook.tasks.catalog import find_task

TINY = {"tiny-opt": "made:opt", "tiny-llama": "made:llama"}  # names of the models that are made here
OWN_GRIDS = {"made:smollm2": "smollm2_sst2"}  # models that have a grid of their own
PLACES = ("model", "task", "data_dir")
SIZES = ("train_size", "dev_size", "test_size")
KEPT = ("status", "trainable", "total", "steps", "best_epoch", "distance", "cut_prompts", "seconds", "peak_memory")
MEASURES = {
    "dev_loss": ("dev_loss", "mean"),
    "dev": ("dev_accuracy", "mean"),
    "test": ("test_score", "mean"),
    "test_low": ("test_score", "min"),
    "test_high": ("test_score", "max"),
    "trainable": ("trainable", "mean"),
    "runs": ("seed", "count"),
}


def result_name(model: str, task: str = "SST-2") -> str:
    """Return a recorded result's name: "fine_tuning_opt" for the tiny OPT, "fine_tuning_opt-125m_rte" and the like."""
    name = find_task(task).name
    short = "" if name == "SST-2" else "_" + "".join(letter for letter in name.lower() if letter.isalnum())
    return f"fine_tuning_{Path(model).name.lower().removeprefix('tiny-').removeprefix('made:')}{short}"


def recording_command(model: str, task: str = "SST-2", grid: str | None = None) -> str:
    """Return the command that records a model on a task; DIR stands for the folder of the task's original files.

    Args:
        model: as in a grid.
        task: by its name.
        grid: for models that have grids of their own; the longest of these if None.
    """
    own = OWN_GRIDS.get(model) and (grid or OWN_GRIDS[model])
    words = ["rmbook record", own or ("fine_tuning_tiny" if model in TINY else "fine_tuning_hub")]
    words += [f"--model {model}"] if model != "tiny-opt" and not own else []
    words += [f"--task {task}"] if find_task(task).name != "SST-2" else []
    return " ".join(words + (["--data-dir DIR"] if own or model in TINY else []))  # the hub's examples otherwise


def find_recorded(model: str, task: str = "SST-2") -> dict | None:
    """Return the recorded result of a model on a task; None if it is not yet measured."""
    try:
        return load_recorded(result_name(model, task))
    except FileNotFoundError:
        return None


def fit_to_memory(grid: dict, gpu_gigabytes: float | None) -> dict:
    """Return a grid as the machine can carry it out: unchanged but for models that call themselves 6.7b, 7b or 13b.

    A GPU with less than 80 GB cannot take the optimiser's state of such a model, and no single GPU takes their full
    fine-tuning: that method is left out.
    """
    if not any(size in grid["fixed"]["model"].lower() for size in ("-6.7b", "-7b", "-13b")):
        return grid
    small = gpu_gigabytes is not None and gpu_gigabytes < BIG
    fixed = {name: value for name, value in grid["fixed"].items() if name != "mixed_precision"}
    fixed |= {"dtype": "bfloat16"} | ({"micro_batch_size": 2, "gradient_checkpointing": True} if small else {})
    return grid | {"fixed": fixed, "except": [*grid.get("except", []), {"method": "full"}]}


def plan_language(grid: dict) -> list[PlannedRun]:
    """Return the runs of a grid with their identities.

    Raises:
        ModelError, TaskError: the model or its examples cannot be had.
    """
    model = grid["fixed"]["model"]
    folder = resolve(TINY[model]) if model in TINY else model_folder(resolve(model))
    fixed = grid["fixed"] | {"model": folder, "task": find_task(grid["fixed"]["task"]).name}
    return plan(expand({name: grid[name] for name in ("axes", "except") if name in grid} | {"fixed": fixed}))


def perform_language(config: dict, work: Path, bases: BaseModels | None = None, stop: Callable | None = None) -> None:
    """Perform one run of a sweep, as `rmbook.sweeps.driver.perform_run` does, and keep no adapter.

    For full fine-tuning that would be a copy of the model.
    """
    perform_run(config, work, bases, stop)
    (work / "adapter.safetensors").unlink(missing_ok=True)


def language_content(grid: dict, runs: list[PlannedRun], results: list[dict]) -> dict:
    """Return what a recorded result holds beside its stamp; no path of this machine enters."""
    fixed, task = grid["fixed"], find_task(grid["fixed"]["task"]).name
    changes = {"task": task, "data_dir": fixed.get("data_dir"), "seed": 0}
    changes |= {name: fixed[name] for name in SIZES if name in fixed}
    zero_shot = evaluate_run(None, runs[0].config["model"], "test", changes, fixed.get("dtype"), progress=False)
    score = next(value for name, value in zero_shot.items() if name not in ("task", "split", "records"))
    return {
        "model": fixed["model"],
        "task": task,
        "records": describe_files(task, fixed.get("data_dir")) | {"tested": zero_shot["records"]},
        "settings": {name: value for name, value in fixed.items() if name not in PLACES},
        "seeds": grid["axes"]["seed"],
        "zero_shot": 100 * score,
        "runs": [recorded_run(run.config, result) for run, result in zip(runs, results, strict=True)],
    }


def recorded_run(config: dict, result: dict) -> dict:
    """Return one run as it is recorded: scores in percent, None where no epoch was finished."""
    share = next((name for name in ("density", "ratio") if config[name] is not None), None)
    kind = "structured " if config["method"] == "structured_masking" else ""
    best = result["history"][result["best_epoch"] - 1] if result["best_epoch"] else {}
    test, right = next(iter((result["test"] or {}).values()), None), best.get("dev_accuracy")
    return {
        "method": f"{kind}{share} {config[share]:g}" if share else config["method"],
        "learning_rate": config["learning_rate"],
        "seed": config["seed"],
        **{name: result.get(name) for name in KEPT},
        "dev_loss": best.get("dev_loss"),
        "dev_accuracy": None if right is None else 100 * right,
        "test_score": None if test is None else 100 * test,
    }


def summary(runs: list[dict]) -> pd.DataFrame:
    """Return each method at its best learning rate, see `rmbook.sweeps.best_rate`.

    Returns:
        One row a method for which a rate can be chosen: learning_rate, dev_loss, dev, test (means over seeds, in
        percent), test_low, test_high, trainable, runs, and at_edge: whether it is the first or the last learning rate
        of its row of the grid.
    """
    numbers = ["dev_loss", "dev_accuracy", "test_score"]
    table = pd.DataFrame(runs).astype(dict.fromkeys(numbers, float))
    return best_cells(table, ["method"], MEASURES)


def describe_files(task: str, data_dir: str | None) -> dict:
    """Return where a task's examples come from, without any path: names, SHA-256 and lines of its files."""
    found = find_task(task)
    if data_dir is None:
        return {"source": "hub", "repository": found.repository, "revision": found.revision}
    files = {}
    for path in found.original_files(data_dir).values():
        content = path.read_bytes()
        files[path.name] = {"sha256": hashlib.sha256(content).hexdigest(), "lines": content.count(b"\n")}
    return {"source": "original files", "files": files}
