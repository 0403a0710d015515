"""What a sweep found beside what the paper printed: the difference, and whether it is more than chance.

Two scores of the same true value differ by the spread of their seeds and by the luck of their test records. With the
standard deviation s over k seeds, and n test records of which a share p is right,

    error^2 = s^2 / k + q (1 - q) / n,    q = (n p + 2) / (n + 4),

is the squared standard error of a mean over seeds; q is p drawn a little to one half (Agresti and Coull, 1998), as
100 right answers of 100 are no proof of perfection. The second term is not divided by k, because small test sets are
the same for every seed. For F1, which lies between 0 and 1 for each record, it is an upper bound. The paper's error is
not printed, and is assumed to be equal, so two standard errors of the difference are 2 sqrt(2) error: a difference
within them "agrees". That does not prove that the two are equal. Beyond them, about one difference in twenty is still
chance, more with three seeds, whose spread is itself uncertain.
"""

import functools
import math

import pandas as pd

from rmbook.errors import ConfigError, closest
from rmbook.paper.tables import TEST_IMAGES, TEST_RECORDS, load_paper_table
from rmbook.tasks.catalog import find_task
from rmbook.tasks.images import IMAGE_TASKS

PAPER_MODELS = {f"facebook/opt-{size}": f"OPT-{size}" for size in ("125m", "1.3b", "13b")}
PAPER_MODELS |= {"meta-llama/Llama-2-7b-hf": "Llama-2-7b", "openai/clip-vit-base-patch16": "CLIP-ViT-B/16"}
VERDICTS = ("agrees", "above", "below", "too few seeds", "not comparable")
LEAST_SEEDS = 3  # the paper's number; it gives none for images
# The paper's settings as far as they decide an outcome; precision and the size of parts are left free.
PROTOCOL = {"targets": None, "settings": "{}", "epochs": 5, "batch_size": 8, "max_grad_norm": 1.0, "weight_decay": 0.0}
PROTOCOL |= {"dev_size": None, "test_size": 1000, "max_length": None, "dropout": None}
PROTOCOL |= {"schedule": "constant", "warmup_steps": 0, "max_steps": None}
# Of images (appendix B.2), which the paper trains for a number of steps; it says nothing of the part for dev.
IMAGE_PROTOCOL = {"settings": "{}", "batch_size": 128, "max_grad_norm": 1.0, "weight_decay": 0.1, "dropout": None}
IMAGE_PROTOCOL |= {"schedule": "cosine", "warmup_steps": 200, "max_steps": 2000}


def compare(summary: pd.DataFrame, model: str | None = None) -> pd.DataFrame:
    """Put the paper's numbers beside a summary.

    Args:
        summary: from `rmbook.sweeps.report.summarize`.
        model: the paper's name of the one model that is a folder, such as "OPT-125m": the caller's word for it.

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
    """Of a mean score in percent; see the head of this module.

    Args:
        score: mean over seeds, in percent.
        deviation: over seeds, in percent.
        seeds: how many.
        records: in the test set.
    """
    share = (records * score / 100 + 2) / (records + 4)
    return math.sqrt(deviation**2 / seeds + 100**2 * share * (1 - share) / records)


def paper_numbers(model: str, task: str, method: str, ratio: float | None, all_records: bool) -> tuple[float, float]:
    """The paper's score in percent, and its best learning rate; NaN where it prints none.

    Args:
        model: by the paper's name.
        ratio: of a mask; None for other methods, which have one row each.
        all_records: trained on all records (table 3) instead of 1,000; of images there is no other number.
    """
    key, fewer = (model, task, method, _share(method, ratio)), not all_records or task in IMAGE_TASKS
    score = _numbers("score", (5, 8, 4, 2) if fewer else (3,)).get(key, math.nan)
    return score, _numbers("learning_rate", (6, 7, 9, 4, 2)).get(key, math.nan) if fewer else math.nan


def _compared(row: pd.Series, paper_model: str | None) -> dict:
    config = row["config"]
    everything = config["train_size"] > 1000
    paper = rate = math.nan
    if paper_model:
        ratio = None if pd.isna(row["ratio"]) else row["ratio"]
        paper, rate = paper_numbers(paper_model, row["task"], row["method"], ratio, everything)
    found = {"paper_model": paper_model or "", "paper": paper, "paper_learning_rate": rate}
    found |= {"difference": row["score"] - paper, "tolerance": math.nan}
    if reason := _not_comparable(row, paper_model, paper, everything):
        return found | {"verdict": "not comparable", "reason": reason}
    if row["seeds"] < LEAST_SEEDS:
        wanted = f"at least {LEAST_SEEDS}" if row["task"] in IMAGE_TASKS else f"the paper's {LEAST_SEEDS}"
        return found | {"verdict": "too few seeds", "reason": f"{row['seeds']}, {wanted}"}
    error = standard_error(row["score"], row["deviation"], row["seeds"], row["test_records"])
    found["tolerance"] = 2 * math.sqrt(2) * error
    if abs(found["difference"]) <= found["tolerance"]:
        return found | {"verdict": "agrees", "reason": ""}
    return found | {"verdict": "above" if found["difference"] > 0 else "below", "reason": ""}


def _not_comparable(row: pd.Series, paper_model: str | None, paper: float, everything: bool) -> str:
    """Why a group has no verdict; "" if it has one."""
    config = row["config"]
    if not paper_model:
        return "the model is a folder" if row["local"] else "the model is not in the paper"
    images = row["task"] in IMAGE_TASKS
    protocol = _image_protocol(row["method"]) if images else PROTOCOL
    for name, wanted in protocol.items():
        default = name == "dev_size" and config[name] == find_task(row["task"]).dev_size
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
        wanted = "not all images" if images else "neither the paper's 1000 nor all records"
        return f"train_size {config['train_size']} is {wanted}"
    steps = config["epochs"] * math.ceil(row["train_records"] / config["batch_size"])
    if images and steps < config["max_steps"]:
        return f"{config['epochs']} epochs are {steps} steps, the paper's {config['max_steps']}"
    tested = (TEST_IMAGES if images else TEST_RECORDS)[row["task"]]
    return f"{row['test_records']} test records, the paper's {tested}" if row["test_records"] != tested else ""


def _image_protocol(method: str) -> dict:
    """Masks and LoRA are in the MLP layers; full fine-tuning takes no targets."""
    return IMAGE_PROTOCOL | {"targets": None if method == "full" else "mlp"}


def _share(method: str, ratio: float | None) -> str:
    return f"{ratio:.6g}" if ratio is not None and method.endswith("_masking") else ""


@functools.cache
def _numbers(column: str, tables: tuple[int, ...]) -> dict[tuple, float]:
    """A column of the paper's tables by (model, task, method, share)."""
    rows = [row for number in tables for row in load_paper_table(number).to_dict("records")]
    return {
        (row["model"], row["task"], row["method"], _share(row["method"], row["ratio"])): row[column] for row in rows
    }
