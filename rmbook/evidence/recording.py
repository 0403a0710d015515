"""Recording many runs into one stamped result: interrupted at any moment, it goes on where it stopped."""

import json
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rmbook.files import write_json
from rmbook.stamps import stamp


def record_runs(
    name: str, command: str, cells: Sequence, run: Callable[[Any], dict], content: Callable[[list[dict]], dict]
) -> dict:
    """Run all cells, one line a run in a .partial file, then write the stamped record `name`.

    The partial file belongs to one commit: runs of different code never meet in one record.

    Args:
        name: of the record; see `rmbook.stamps.recorded_path`.
        command: that makes it again.
        cells: settings of the runs, fit for JSON, each different.
        run: carries one out; its result is fit for JSON.
        content: what is written beside the stamp, from the results in the order of the cells.

    Returns:
        What was written.
    """
    final, made = recorded_path(name), stamp(command)
    partial = final.with_name(f"{final.stem}.{made['commit'][:9]}.partial.jsonl")
    done = {json.dumps(line["cell"]): line["result"] for line in _complete_lines(partial)}
    with open(partial, "a") as file:
        for cell in tqdm([cell for cell in cells if json.dumps(cell) not in done], unit="run", desc=name):
            done[json.dumps(cell)] = result = run(cell)
            file.write(json.dumps({"cell": cell, "result": result}) + "\n")
            file.flush()
    written = {"stamp": made} | content([done[json.dumps(cell)] for cell in cells])
    write_json(final, written)
    partial.unlink()
    return written


def _complete_lines(partial: Path) -> list[dict]:
    """Finished runs of an earlier call; a last line that was cut off by a kill is removed and run again."""
    lines = partial.read_bytes().splitlines(keepends=True) if partial.exists() else []
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
        partial.write_bytes(b"".join(lines))
    return [json.loads(line) for line in lines]


def recorded_path(name: str) -> Path:
    """Path of the recorded result `name` (without .json), whether or not it exists yet."""
    return Path(str(files("rmbook_results"))) / f"{name}.json"


def load_recorded(name: str) -> dict[str, Any]:
    """A recorded result with its stamp.

    Raises:
        FileNotFoundError: if there is no such record; the message lists those there are.
    """
    path = recorded_path(name)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.json"))) or "none"
        raise FileNotFoundError(f"there is no recorded result {name!r} in {path.parent}; there are: {known}.")
    return json.loads(path.read_text())
