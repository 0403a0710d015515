"""The results of a sweep as one table, and as a CSV or parquet file: the same bytes for the same runs.

Nothing in it depends on when or where the runs were made, in which order, or after how many interruptions, unless that
is asked for.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path

import pandas as pd
import pyarrow as pa

from rmbook.errors import ConfigError, reason
from rmbook.files import replacing
from rmbook.json_files import each, mapping, number, text
from rmbook.runs.config import RunConfig
from rmbook.runs.result import RunError
from rmbook.settings import kinds_of
from rmbook.sweeps.folder import COUNTED, LOSSES, PLACE, TIMED

SORTED_BY = ("model", "task", "method", "ratio", "density", "settings", "learning_rate", "seed", "run")
SHARES = ("trained_ratio", *LOSSES, "accuracy", "f1")
SPEED = (*TIMED, "attempts")
KINDS = {entry.name: entry.type for entry in dataclasses.fields(RunConfig)}
DEFAULTS = {entry.name: entry.default for entry in dataclasses.fields(RunConfig) if entry.default is not MISSING}
NEEDED = {"model", "task", "learning_rate"}
_KINDS_OF = {entry.name: kinds_of(entry) for entry in dataclasses.fields(RunConfig)}
_JSON_KINDS = {
    **{str: text, float: number, dict: mapping, tuple[str, ...]: each(text)},
    int: lambda value: type(value) is int and number(value),
    bool: lambda value: type(value) is bool,
    type(None): lambda value: value is None,
}


def sweep_table(rows: Sequence[dict], timing: bool = False) -> pd.DataFrame:
    """Return a table with one row a run, sorted by its settings.

    Args:
        rows: from `rmbook.sweeps.driver.read_rows`.
        timing: add what would be different another time: speed, machine, attempts, messages of failed runs.

    Returns:
        Columns: all settings but data_dir (`model` without the folders above it, targets and settings as JSON); state;
            trainable and total parameters; trained_ratio, their quotient; what the best epoch had: train_loss,
            dev_loss, dev_accuracy; accuracy and f1 on the test examples, of which a task has one; run, data, weights
            and code, which identify it. Cells of runs that are not finished are empty. Runs of another kind than
            fine-tuning have their own settings instead.

    Raises:
        RunError: settings of another kind that make no columns.
    """
    try:
        return _table(rows, timing)
    except (OverflowError, TypeError, ValueError) as error:
        said = reason(error)
        raise RunError(f"the runs of this sweep make no table, as their settings do not fit ({said}).") from None


def _table(rows: Sequence[dict], timing: bool) -> pd.DataFrame:
    table = pd.DataFrame([_row(row, timing) for row in rows], columns=_columns(rows, timing))
    kinds = KINDS if all(is_fine_tuning(row["config"]) for row in rows) else {}
    for name in table.columns:  # the same kinds of columns whichever cells are empty
        if name in COUNTED or kinds.get(name) in (int, int | None):
            table[name] = table[name].astype("Int64")
        elif name in SHARES + SPEED or kinds.get(name) in (float, float | None):
            table[name] = table[name].astype("float64")
        elif not kinds and any(name in row["config"] for row in rows):
            table[name] = table[name].convert_dtypes()
        elif kinds.get(name) is not bool:
            table[name] = table[name].astype("string")
    order = [name for name in SORTED_BY if name in table]
    return table.sort_values(order, kind="stable", na_position="first", ignore_index=True)


def is_fine_tuning(config: dict) -> bool:
    """Return whether these are settings of a fine-tuning run, those of `rmbook.RunConfig`."""
    if not NEEDED <= config.keys() <= KINDS.keys():
        return False
    return all(any(_JSON_KINDS[kind](value) for kind in _KINDS_OF[name]) for name, value in config.items())


def method_label(settings: Mapping) -> str:
    """Return a run's method and share in words: "random_masking ratio 0.001"."""
    shares = (f"{name} {settings[name]:g}" for name in ("ratio", "density") if pd.notna(settings[name]))
    return " ".join([settings["method"], *shares])


def write_table(table: pd.DataFrame, path: str | os.PathLike) -> None:
    """Write a table, completely or not at all, in the format that the file's name ends in: .csv or .parquet.

    Raises:
        ConfigError: the name has another ending.
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
            try:
                table.to_parquet(temporary, index=False, engine="pyarrow")
            except (pa.ArrowException, OverflowError) as error:  # settings of another kind than fine-tuning
                said = reason(error)
                raise ConfigError(f"{path}: a column holds values of several types ({said}); use .csv.") from None


def _columns(rows: Sequence[dict], timing: bool) -> list[str]:
    tuning = all(is_fine_tuning(row["config"]) for row in rows)  # runs of another kind have settings of their own
    settings = KINDS if tuning else [name for row in rows for name in row["config"]]
    extra = [*SPEED, *PLACE, "error"] if timing else []
    wanted = [*settings, "state", *COUNTED, *SHARES, "run", "data", "weights", "code", *extra]
    return [name for name in dict.fromkeys(wanted) if name != "data_dir"]


def _row(row: dict, timing: bool) -> dict:
    config, result = row["config"], row["result"] or {}
    settings = {n: json.dumps(v, sort_keys=True) if isinstance(v, list | dict) else v for n, v in config.items()}
    if Path(str(config.get("model") or "")).is_absolute():
        settings["model"] = Path(config["model"]).name
    cells = {name: result.get(name) for name in COUNTED + LOSSES} | {"trained_ratio": result.get("ratio")}
    test = result.get("test") or {}
    cells |= {"accuracy": test.get("accuracy"), "f1": test.get("f1"), "state": row["state"], "run": row["key"]}
    cells |= row["identity"]
    if timing:
        times = result.get("timing", {})
        cells |= {name: times.get(name) for name in SPEED + PLACE} | {"hardware": json.dumps(times.get("hardware"))}
        cells |= {"attempts": row["attempts"], "error": row["error"]}
    return cells | (DEFAULTS if is_fine_tuning(config) else {}) | settings
