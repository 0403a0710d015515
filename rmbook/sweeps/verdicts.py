"""A sweep's scores beside the paper's: the difference, and whether it is more than chance.

Two scores of the same true value differ by the spread over seeds and by the choice of test examples. With the standard
deviation s over k seeds, and n test examples of which a share p is right,

    error^2 = s^2 / k + q (1 - q) / n,    q = (n p + 2) / (n + 4),

is the squared standard error of a mean over seeds; q is p drawn a little to one half (Agresti and Coull, 1998), as
100 right answers of 100 are no proof of perfection. The second term is not divided by k, because small test sets are
the same for every seed. For F1, which lies between 0 and 1 for each example, it is an upper bound. The paper prints no
error; it is assumed to be as large as ours, so two standard errors of the difference are 2 sqrt(2) error. A difference
within them "agrees", which does not prove that the two are equal. Of differences that are chance alone, about one in
twenty lies beyond them, and more with three seeds, whose spread is itself uncertain.
"""

import functools
import math
from typing import Any

import pandas as pd

from rmbook.errors import ConfigError, closest
from rmbook.paper.tables import TEST_IMAGES, TEST_RECORDS, load_paper_table
from rmbook.runs.config import PAPER_SETTINGS
from rmbook.sweeps.grid import read_grid
from rmbook.sweeps.table import DEFAULTS
from rmbook.tasks.catalog import find_task

PAPER_MODELS = {f"facebook/opt-{size}": f"OPT-{size}" for size in ("125m", "1.3b", "13b")}
PAPER_MODELS |= {"meta-llama/Llama-2-7b-hf": "Llama-2-7b", "openai/clip-vit-base-patch16": "CLIP-ViT-B/16"}
VERDICTS = ("agrees", "above", "below", "too few seeds", "not comparable")
LEAST_SEEDS = 3  # the paper's number; it gives none for images
# Settings of images that must be the paper's: it counts their steps alone, and takes all of them.
_OF_TEXT = ("targets", "epochs", "dev_size", "test_size", "max_length")
COMPARED = tuple(name for name in PAPER_SETTINGS if name not in _OF_TEXT)


def compare(summary: pd.DataFrame, model: str | None = None) -> pd.DataFrame:
    """Put the paper's numbers beside a summary.

    Args:
        summary: from `rmbook.sweeps.report.summarize`.
        model: the paper's name, such as "OPT-125m", for the one model of the sweep that is a folder.

    Returns:
        The summary with these columns too: paper_model, empty for a model that is not in the paper; paper, its score in
            percent, and paper_learning_rate, both empty where it prints none; difference, score - paper in points;
            tolerance, two standard errors of it; verdict, one of `VERDICTS`; reason, of those without one.

    Raises:
        ConfigError: `model` is not one of the paper's, or it is not clear which folder it stands for.
    """
    names = dict(PAPER_MODELS)
    if model is not None:
        folders = sorted(set(summary.loc[summary["local"], "model"]))
        if model not in PAPER_MODELS.values():
            raise ConfigError(f"the paper has no model {model!r}: {closest(model, PAPER_MODELS.values())}")
        if len(folders) != 1:
            found = ", ".join(folders) or "none"
            raise ConfigError(f"--as names the one model of a sweep that is a folder; this sweep's are: {found}.")
        names |= {folders[0]: model}
    rows = []
    for _, row in summary.iterrows():
        paper_model = names.get(row["model"]) if not row["local"] or model else None
        rows.append(_compared(row, paper_model))
    return pd.concat([summary, pd.DataFrame(rows, index=summary.index)], axis=1)


def standard_error(score: float, deviation: float, seeds: int, records: int) -> float:
    """Return the standard error of a mean score, in percentage points; see the head of this module.

    Args:
        score: mean over seeds, in percent.
        deviation: standard deviation over seeds, in percentage points.
        seeds: number of seeds.
        records: number of test examples.
    """
    share = (records * score / 100 + 2) / (records + 4)
    return math.sqrt(deviation**2 / seeds + 100**2 * share * (1 - share) / records)


def paper_numbers(model: str, task: str, method: str, ratio: float | None, all_records: bool) -> tuple[float, float]:
    """Return the paper's score in percent, and its best learning rate; NaN where it prints none.

    Args:
        model: the paper's name of the model.
        task: name of the task.
        method: name of the method.
        ratio: trainable / all parameters of a mask; None for other methods, which have one row each.
        all_records: trained on all examples (table 3) instead of 1,000; for images the paper has no other number.
    """
    key, fewer = (model, task, method, _share(method, ratio)), not (all_records and find_task(task).has_prompts)
    score = _numbers("score", (5, 8, 4, 2) if fewer else (3,)).get(key, math.nan)
    return score, _numbers("learning_rate", (6, 7, 9, 4, 2)).get(key, math.nan) if fewer else math.nan


def _compared(row: pd.Series, paper_model: str | None) -> dict:
    config = row["config"]
    everything = config["train_size"] > 1000
    paper = rate = math.nan
    if paper_model:
        ratio = None if pd.isna(row["ratio"]) else row["ratio"]
        paper, rate = paper_numbers(paper_model, row["task"], row["method"], ratio, everything)
    found: dict[str, Any] = {"paper_model": paper_model or "", "paper": paper, "paper_learning_rate": rate}
    found |= {"difference": row["score"] - paper, "tolerance": math.nan}
    if reason := _not_comparable(row, paper_model, paper, everything):
        return found | {"verdict": "not comparable", "reason": reason}
    if row["seeds"] < LEAST_SEEDS:
        wanted = f"the paper's {LEAST_SEEDS}" if find_task(row["task"]).has_prompts else f"at least {LEAST_SEEDS}"
        return found | {"verdict": "too few seeds", "reason": f"{row['seeds']}, {wanted}"}
    error = standard_error(row["score"], row["deviation"], row["seeds"], row["test_records"])
    found["tolerance"] = 2 * math.sqrt(2) * error
    if abs(found["difference"]) <= found["tolerance"]:
        return found | {"verdict": "agrees", "reason": ""}
    return found | {"verdict": "above" if found["difference"] > 0 else "below", "reason": ""}


def _not_comparable(row: pd.Series, paper_model: str | None, paper: float, everything: bool) -> str:
    """Return why a group has no verdict; "" if it has one."""
    config = row["config"]
    if not paper_model:
        return "the model is a folder: name it with --as" if row["local"] else "the model is not in the paper"
    task = find_task(row["task"])
    images = not task.has_prompts
    for name, wanted in _protocol(images, row["method"]).items():
        default = name == "dev_size" and config[name] == task.dev_size
        if config[name] != wanted and not default:
            return f"{name} {config[name]}, the paper's {'default' if wanted in (None, '{}') else wanted}"
    if not images and config["train_size"] < 1000:
        return f"train_size {config['train_size']}, the paper's 1000"
    if row["missing"]:
        return f"incomplete: {row['missing']}"
    if math.isnan(row["learning_rate"]):
        return "runs diverged at every learning rate"
    if math.isnan(paper):
        return "the paper has no such number"
    if (everything or images) and not row["train_records"] < config["train_size"]:
        wanted = "not all images" if images else "neither the paper's 1000 nor all examples"
        return f"train_size {config['train_size']} is {wanted}"
    steps = config["epochs"] * math.ceil(row["train_records"] / config["batch_size"])
    if images and steps < config["max_steps"]:
        return f"{config['epochs']} epochs are {steps} steps, the paper's {config['max_steps']}"
    tested = (TEST_IMAGES | TEST_RECORDS)[task.name]
    return f"{row['test_records']} test examples, the paper's {tested}" if row["test_records"] != tested else ""


@functools.cache
def _protocol(images: bool, method: str) -> dict:
    """Return the paper's settings: those of table 5, or of table 2 for images; what they leave out is the default."""
    values = DEFAULTS | {"settings": "{}"} | read_grid("table2" if images else "table5")["fixed"]
    if not images:
        return {name: values[name] for name in PAPER_SETTINGS}
    return {name: values[name] for name in COMPARED} | {"targets": None if method == "full" else "mlp"}


def _share(method: str, ratio: float | None) -> str:
    return f"{ratio:.6g}" if ratio is not None and method.endswith("_masking") else ""


@functools.cache
def _numbers(column: str, tables: tuple[int, ...]) -> dict[tuple, float]:
    """Return a column of the paper's tables by (model, task, method, share)."""
    rows = [row for number in tables for row in load_paper_table(number).to_dict("records")]
    return {
        (row["model"], row["task"], row["method"], _share(row["method"], row["ratio"])): row[column] for row in rows
    }
