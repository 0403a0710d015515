"""What a run has written of its outcome: result.json and metrics.jsonl, checked when they are read."""

from pathlib import Path
from typing import Any

from rmbook.errors import RmbookError
from rmbook.files import UnreadableFileError
from rmbook.json_files import (
    check_fields,
    count,
    each,
    each_named,
    fields,
    mapping,
    number,
    optional,
    read_json,
    read_json_lines,
    text,
)
from rmbook.training.state import EPOCH

STATUSES = ("completed", "diverged")
HARDWARE = dict.fromkeys(("cpu", "gpu"), optional(text)) | dict.fromkeys(("cores", "threads"), optional(count))
STAMP = dict.fromkeys(("date", "commit", "command"), optional(text))
STAMP |= {"hardware": optional(fields(HARDWARE)), "versions": each_named(optional(text))}
RESULT = {
    "status": lambda value: value in STATUSES,
    "config": mapping,
    **dict.fromkeys(("trainable", "total", "cut_prompts", "steps", "best_epoch"), count),
    "ratio": number,
    "records": each_named(count),
    "max_length": optional(count),
    "history": each(fields(EPOCH, tuple(EPOCH))),
    "distance": optional(number),
    "test": optional(each_named(number)),
    "seconds": number,
    "tokens_per_second": optional(number),
    "peak_memory": count,
    "processes": count,
    "stamp": fields(STAMP),
}
STEP = {"step": count, "epoch": count, "tokens": count, "seconds": number}


class RunError(RmbookError):
    """A run cannot be started or resumed; one line that says what to do."""


def check_result(result: Any, needed: tuple[str, ...] = tuple(RESULT)) -> None:
    """Raise ValueError if what is in a result.json cannot be a result.

    Args:
        result: as it was read.
        needed: the fields that must be there.
    """
    check_fields(result, RESULT, needed)
    if "history" in result and not result.get("best_epoch", 0) <= len(result["history"]):
        raise ValueError("best_epoch is beyond its history")


def read_result(folder: Path) -> dict | None:
    """Return what is in the result.json of a fine-tuning run; None if there is none.

    Raises:
        RunError: it is damaged.
    """
    path = folder / "result.json"
    if not path.exists():
        return None
    try:
        result = read_json(path)
        check_result(result)
        return result
    except (UnreadableFileError, ValueError) as error:
        why = str(error).removeprefix(f"{path} is damaged: ").removesuffix(".")
        onward = f"remove it, and `rmbook train --resume {folder}` makes it again."
        raise RunError(f"{path} is damaged ({why}): {onward}") from None


def read_metrics(path: Path) -> list[dict]:
    """Return the rows of a metrics.jsonl, none if there is no such file.

    Raises:
        RunError: a line is damaged.
    """
    try:
        return read_json_lines(path, _is_row) if path.exists() else []
    except (OSError, UnreadableFileError) as error:
        raise RunError(f"{error} Remove the line, or start the run again.") from None


def _is_row(row: Any) -> bool:
    if not isinstance(row, dict):
        return False
    epoch = "dev_loss" in row
    kinds = EPOCH if epoch else STEP
    whole = epoch or not row.keys().isdisjoint(("tokens", "seconds"))  # a step that diverged has neither
    return fields(kinds, tuple(kinds) if whole else ("step", "epoch"))(row)
