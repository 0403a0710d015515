"""The folder of a run: reading its settings, and writing its measurements."""

import json
import math
import os
from pathlib import Path

from rmbook.errors import ConfigError, TaskError
from rmbook.files import UnreadableFileError, replacing
from rmbook.json_files import read_json
from rmbook.runs.config import RunConfig, make_config, read_config
from rmbook.runs.result import RunError, read_metrics


def first_process() -> bool:
    """Return whether this is the only process of a run, or the first of several that torchrun or accelerate started."""
    return os.environ.get("RANK", "0") == "0"


def run_config(folder: Path) -> RunConfig:
    """The settings of the run in a folder; raises RunError if there are none, or damaged ones."""
    path = folder / "config.json"
    if not path.exists():
        raise RunError(f"there is no run in {folder}: it has no config.json.")
    try:
        return make_config(read_config(path))
    except (ConfigError, TaskError) as error:
        raise RunError(f"{path} is damaged ({str(error).removesuffix('.')}): start the run again.") from None


def check_inputs(folder: Path, found: dict[str, str], data_dir: str | None, model: str | None) -> None:
    """Raise RunError if a run began with other examples or other weights than those that are there now.

    Args:
        folder: of the run.
        found: from `rmbook.runs.fingerprints.describe_inputs`, or a part of it.
        data_dir: where the examples are; None on the hub.
        model: where the weights are.
    """
    path = folder / "inputs.json"
    if not path.exists():  # of an older version
        return
    try:
        begun = read_json(path)
        changed = [name for name in found if begun[name] != found[name]]
    except (UnreadableFileError, TypeError, KeyError):
        raise RunError(f"{path} is damaged: start the run again.") from None
    if changed:
        named = {"data": f"the examples in {data_dir or 'the hub'}", "weights": f"the base model's weights in {model}"}
        what = " and ".join(named[name] for name in changed)
        raise RunError(f"{what} are not those that the run in {folder} began with: restore them, or start a new run.")


def finite(row: dict) -> dict:
    """The row with None for numbers that are not finite, for which JSON has no word."""
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in row.items()}


class MetricsFile:
    """metrics.jsonl: one JSON object a line, appended as the run goes.

    Args:
        path: the file. Lines from steps after `step` are removed first: the run takes these steps again.
        step: optimiser steps of which the state is kept.
        epochs: finished epochs of which the state is kept.
        writes: False in all processes of a distributed run but the first.
    """

    def __init__(self, path: Path, step: int, epochs: int, writes: bool = True):
        self.path, self.writes = path, writes
        if writes:
            kept = [r for r in self.rows() if r["step"] <= step and ("dev_loss" not in r or r["epoch"] <= epochs)]
            with replacing(path) as temporary:
                temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))

    def __call__(self, row: dict) -> None:
        """Append a row."""
        if self._file:
            self._file.write(json.dumps(finite(row)) + "\n")

    def rows(self) -> list[dict]:
        """Return what the file holds."""
        return read_metrics(self.path)

    def __enter__(self) -> "MetricsFile":
        self._file = open(self.path, "a", buffering=1) if self.writes else None  # each line as it comes
        return self

    def __exit__(self, *error) -> None:
        if self._file:
            self._file.close()
