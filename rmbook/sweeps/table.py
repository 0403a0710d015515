"""The results of a sweep as one table, and as a CSV or parquet file: the same bytes for the same runs.

Nothing in it depends on when, where, in which order or after how many interruptions the runs were made, unless that is
asked for.
"""

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import MISSING
from pathlib import Path

import pandas as pd

from rmbook.errors import ConfigError
from rmbook.files import replacing
from rmbook.runs.config import RunConfig

SORTED_BY = ("model", "task", "method", "ratio", "density", "settings", "learning_rate", "seed", "run")
COUNTED = ("trainable", "total", "cut_prompts", "steps", "epochs_finished", "best_epoch")
LOSSES = ("train_loss", "dev_loss", "dev_accuracy")
SHARES = ("trained_ratio", *LOSSES, "accuracy", "f1")
SPEED = ("seconds", "tokens_per_second", "peak_memory", "processes", "attempts")
DEFAULTS = {entry.name: entry.default for entry in dataclasses.fields(RunConfig) if entry.default is not MISSING}
PLACE = ("date", "commit", "hardware")


def sweep_table(rows: Sequence[dict], timing: bool = False) -> pd.DataFrame:
    """One row a run, sorted by its settings.

    Args:
        rows: from `rmbook.sweeps.ledger.Ledger.rows`.
        timing: add what differs from time to time: speed, machine, attempts, messages of failed runs.

    Returns:
        Columns: all settings but data_dir (`model` without the folders above it, targets and settings as JSON); state;
            trainable and total parameters; trained_ratio, their quotient; what the best epoch had: train_loss,
            dev_loss, dev_accuracy; accuracy and f1 on the test records, of which a task has one; run, data, weights
            and code, which identify it. Cells of runs that are not finished are empty.
    """
    table = pd.DataFrame([_row(row, timing) for row in rows], columns=_columns(timing))
    kinds = {entry.name: entry.type for entry in dataclasses.fields(RunConfig)}
    for name in table.columns:  # the same kinds of columns whichever cells are empty
        if name in COUNTED or kinds.get(name) in (int, int | None):
            table[name] = table[name].astype("Int64")
        elif name in SHARES + SPEED or kinds.get(name) in (float, float | None):
            table[name] = table[name].astype("float64")
        elif kinds.get(name) is not bool:
            table[name] = table[name].astype("string")
    return table.sort_values(list(SORTED_BY), kind="stable", na_position="first").reset_index(drop=True)


def write_table(table: pd.DataFrame, path: str | os.PathLike) -> None:
    """Write it, completely or not at all, as the end of the file's name says: .csv or .parquet.

    Raises:
        ConfigError: another ending.
        FileNotFoundError: the folder does not exist.
    """
    path = Path(path)
    if path.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"{path} must end in .csv or .parquet.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path.name}: the folder {path.parent} does not exist.")
    with replacing(path) as temporary:
        if path.suffix == ".csv":
            table.to_csv(temporary, index=False, lineterminator="\n")
        else:
            table.to_parquet(temporary, index=False, engine="pyarrow")


def _columns(timing: bool) -> list[str]:
    settings = [entry.name for entry in dataclasses.fields(RunConfig) if entry.name != "data_dir"]
    extra = [*SPEED, *PLACE, "error"] if timing else []
    return [*settings, "state", *COUNTED, *SHARES, "run", "data", "weights", "code", *extra]


def _row(row: dict, timing: bool) -> dict:
    config, result = DEFAULTS | row["config"], row["result"] or {}
    cells = {name: value for name, value in config.items() if name != "data_dir"}
    if Path(config["model"]).is_absolute():
        cells["model"] = Path(config["model"]).name
    cells["settings"] = json.dumps(config["settings"], sort_keys=True)
    if isinstance(config["targets"], list):
        cells["targets"] = json.dumps(config["targets"])
    cells |= {name: result.get(name) for name in COUNTED + LOSSES} | {"trained_ratio": result.get("ratio")}
    test = result.get("test") or {}
    cells |= {"accuracy": test.get("accuracy"), "f1": test.get("f1"), "state": row["state"], "run": row["key"]}
    cells |= row["identity"]
    if timing:
        times = result.get("timing", {})
        cells |= {name: times.get(name) for name in SPEED + PLACE} | {"hardware": json.dumps(times.get("hardware"))}
        cells |= {"attempts": row["attempts"], "error": row["error"]}
    return cells
