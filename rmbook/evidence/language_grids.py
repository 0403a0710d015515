"""Recorded grids of a language model on real records: methods, learning rates and seeds, the evidence of two chapters.

Record the tiny OPT with `python -m rmbook.language_record --data-dir DIR`, where DIR has SST-2's original files, and
any other model on a GPU with `--model NAME`. It can be interrupted at any moment and goes on where it stopped.
"""

import argparse
import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from rmbook.evidence.recording import load_recorded, recorded_path
from rmbook.evidence.tiers import BIG, model_folder
from rmbook.files import write_json
from rmbook.offline.made import tiny_checkpoint
from rmbook.offline.store import cache_folder
from rmbook.runs.config import RunConfig
from rmbook.runs.evaluate import evaluate_run
from rmbook.runs.run import MemoryShortage, resume_run, start_run
from rmbook.stamps import stamp
from rmbook.tasks.catalog import find_task

TINY = {"opt": "tiny-opt", "llama": "tiny-llama"}  # names of the models that are made here
TINY_SIZES = {"train_size": 1000, "dev_size": 500, "test_size": 1000, "epochs": 3}
SEEDS = (0, 1)
TINY_RATES = {
    "full": (3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
    "lora": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    "density 0.3": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    "density 0.1": (3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
    "density 0.01": (1e-2, 3e-2, 1e-1, 3e-1, 1e0),
}
# The paper's best learning rates (tables 4, 6 and 7) and their neighbours.
RATES = {
    "full": (1e-6, 1e-5, 1e-4),
    "lora": (1e-5, 1e-4, 1e-3),
    "ratio 0.001": (1e-4, 1e-3, 1e-2),
    "ratio 0.0001": (1e-3, 1e-2, 1e-1),
    "ratio 1e-05": (1e-2, 5e-2, 1e-1),
}
KEPT = ("status", "trainable", "total", "steps", "best_epoch", "cut_prompts", "seconds", "peak_memory")


@dataclass(frozen=True)
class Grid:
    """What is recorded for one model and one task.

    Attributes:
        model: name of the model: "tiny-opt", "tiny-llama" or one on the hub.
        task: one of the eleven.
        rates: learning rates by method: "full", "lora", "density D" or "ratio R".
        settings: of `RunConfig`, the same for all runs.
    """

    model: str
    task: str
    rates: dict
    settings: dict

    @property
    def name(self) -> str:
        """Of the recorded result."""
        return result_name(self.model, self.task)

    def configs(self, model: str, data_dir: str | None) -> list[tuple[dict, RunConfig]]:
        """The runs, each with what tells it from the others; `model` is the folder or name to load."""
        cells = []
        for method, rates in self.rates.items():
            kind, _, share = method.partition(" ")
            chosen = {"method": "random_masking", kind: float(share)} if share else {"method": kind}
            for rate in rates:
                for seed in SEEDS:
                    key = {"method": method, "learning_rate": rate, "seed": seed}
                    common = {"model": model, "task": self.task, "data_dir": data_dir} | self.settings
                    cells.append((key, RunConfig(**common, **chosen, learning_rate=rate, seed=seed)))
        return cells


def result_name(model: str, task: str = "SST-2") -> str:
    """Name of a grid's recorded result: "fine_tuning_opt" for the tiny OPT, "fine_tuning_opt-125m_rte" and the like."""
    name = find_task(task).name
    short = "" if name == "SST-2" else "_" + "".join(letter for letter in name.lower() if letter.isalnum())
    return f"fine_tuning_{Path(model).name.lower().removeprefix('tiny-')}{short}"


def recording_command(model: str, task: str = "SST-2") -> str:
    """The command that records a grid; DIR stands for the folder of the task's original files."""
    tiny = model in TINY.values()
    options = [f"--model {model}"] if model != TINY["opt"] else []
    options += [f"--task {task}"] if find_task(task).name != "SST-2" else []
    options += ["--data-dir DIR"] if tiny else []  # the hub's records otherwise
    return " ".join(["python -m rmbook.language_record", *options])


def find_recorded(model: str, task: str = "SST-2") -> dict | None:
    """The recorded grid of a model on a task; None if it is not yet measured."""
    try:
        return load_recorded(result_name(model, task))
    except FileNotFoundError:
        return None


def make_grid(model: str, task: str, gpu_gigabytes: float | None = None) -> Grid:
    """The grid of a model: its own learning rates for the tiny ones, the paper's for all others.

    A GPU with less than 80 GB cannot take the optimiser's state of a model of billions of weights, and no single GPU
    takes full fine-tuning of 7b or 13b: of models that call themselves so, that row is left out.
    """
    task = find_task(task).name
    if model in TINY.values():
        return Grid(model, task, TINY_RATES, TINY_SIZES)
    large = any(size in model.lower() for size in ("-6.7b", "-7b", "-13b"))
    rates = {method: values for method, values in RATES.items() if not (large and method == "full")}
    small_gpu = gpu_gigabytes is not None and gpu_gigabytes < BIG
    memory = {"micro_batch_size": 2, "gradient_checkpointing": True} if large and small_gpu else {}
    return Grid(model, task, rates, ({"dtype": "bfloat16"} if large else {"mixed_precision": "bf16"}) | memory)


def run_record(key: dict, result: dict) -> dict:
    """One line of the record from a run's result: scores in percent, None where no epoch was finished."""
    best = result["history"][result["best_epoch"] - 1] if result["best_epoch"] else {}
    test = next(iter((result["test"] or {}).values()), None)
    accuracy = best.get("dev_accuracy")
    scores = {
        "dev_loss": best.get("dev_loss"),
        "dev_accuracy": None if accuracy is None else 100 * accuracy,
        "test_score": None if test is None else 100 * test,
    }
    return key | {name: result.get(name) for name in KEPT} | scores


def summary(runs: list[dict]) -> pd.DataFrame:
    """Each method at its best learning rate, which is the one with the lowest mean dev loss; test has no say.

    A learning rate at which some seed has no score is out of the running.

    Returns:
        One row a method that has a score at all: learning_rate, dev_loss, dev, test (means over seeds, in percent),
        test_low, test_high, trainable, runs, and at_edge: whether it is the first or the last learning rate of its row
        of the grid.
    """
    table = pd.DataFrame(runs)
    numbers = ["dev_loss", "dev_accuracy", "test_score"]
    table[numbers] = table[numbers].astype(float)

    def mean(values: pd.Series) -> float:
        return values.mean(skipna=False)

    cells = table.groupby(["method", "learning_rate"], sort=False).agg(
        dev_loss=("dev_loss", mean),
        dev=("dev_accuracy", mean),
        test=("test_score", mean),
        test_low=("test_score", "min"),
        test_high=("test_score", "max"),
        trainable=("trainable", "mean"),
        runs=("seed", "count"),
    )
    scored = cells.dropna(subset=["dev_loss", "test"])
    best = scored.loc[scored["dev_loss"].groupby("method", sort=False).idxmin()].reset_index()
    edges = table.groupby("method")["learning_rate"].agg(["min", "max"]).loc[best["method"]].reset_index(drop=True)
    best["at_edge"] = (best["learning_rate"] == edges["min"]) | (best["learning_rate"] == edges["max"])
    return best.set_index("method")


def describe_files(task: str, data_dir: str | None) -> dict:
    """Where a task's records come from, without any path of this machine: names, SHA-256 and records of its files."""
    found = find_task(task)
    if data_dir is None:
        return {"source": "hub", "repository": found.repository, "revision": found.revision}
    files = {}
    for path in found.original_files(data_dir).values():
        content = path.read_bytes()
        files[path.name] = {"sha256": hashlib.sha256(content).hexdigest(), "lines": content.count(b"\n")}
    return {"source": "original files", "files": files}


def record(grid: Grid, data_dir: str | None, work: Path) -> dict:
    """Run the grid, each run in a folder of `work`, and write the stamped record.

    A run of the same code that is finished is not run again, and one that was interrupted goes on. Adapters are not
    kept: for full fine-tuning they would be copies of the model.
    """
    made = stamp(recording_command(grid.model, grid.task))
    kinds = {name: kind for kind, name in TINY.items()}
    model = str(tiny_checkpoint(kinds[grid.model])) if grid.model in kinds else model_folder(grid.model)
    runs = []
    for key, config in tqdm(grid.configs(model, data_dir), unit="run"):
        runs.append(run_record(key, _run(config, work / made["commit"].replace(" ", "-"))))
    sizes = {name: value for name, value in grid.settings.items() if name in ("train_size", "dev_size", "test_size")}
    changes = {"task": grid.task, "data_dir": data_dir, "seed": 0} | sizes
    zero_shot = evaluate_run(None, model, "test", changes, grid.settings.get("dtype"), progress=False)
    score = next(value for name, value in zero_shot.items() if name not in ("task", "split", "records"))
    content = {
        "stamp": made,
        "model": grid.model,
        "task": grid.task,
        "records": describe_files(grid.task, data_dir) | {"tested": zero_shot["records"]},
        "settings": grid.settings,
        "seeds": SEEDS,
        "zero_shot": 100 * score,
        "runs": runs,
    }
    write_json(recorded_path(grid.name), content)
    return content


def _run(config: RunConfig, folder: Path) -> dict:
    folder = folder / config.default_folder().name
    result = folder / "result.json"
    if result.exists():
        return json.loads(result.read_text())
    try:
        if (folder / "config.json").exists():
            resume_run(folder, progress=False)
        else:
            shutil.rmtree(folder, ignore_errors=True)
            start_run(config, folder, progress=False)
    except MemoryShortage:  # one row of the grid must not take the others along
        return {"status": "out of memory", "best_epoch": 0, "test": None}
    (folder / "adapter.safetensors").unlink(missing_ok=True)
    return json.loads(result.read_text())


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Record a grid of fine-tuning runs on a language model.")
    parser.add_argument("--model", default=TINY["opt"], help="tiny-opt (default), tiny-llama, or a name on the hub")
    parser.add_argument("--task", default="SST-2", help="one of the paper's eleven tasks")
    parser.add_argument("--data-dir", help="folder with the task's original files; the hub's records without it")
    parser.add_argument(
        "--work", type=Path, default=cache_folder() / "recording", help="where unfinished runs are kept"
    )
    given = parser.parse_args(arguments)
    memory = torch.cuda.get_device_properties(0).total_memory / 1e9 if torch.cuda.is_available() else None
    content = record(make_grid(given.model, given.task, memory), given.data_dir, given.work)
    print(summary(content["runs"]).round(2).to_string())


if __name__ == "__main__":
    main()
