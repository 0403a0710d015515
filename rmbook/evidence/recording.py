"""Recorded results: JSON files with what was measured, each with the stamp of where and how it was made."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any


def recorded_path(name: str) -> Path:
    """Return the path of the recorded result `name` (without .json), whether or not it exists yet."""
    return Path(str(files("rmbook_results"))) / f"{name}.json"


def load_recorded(name: str) -> dict[str, Any]:
    """Return a recorded result with its stamp.

    Raises:
        FileNotFoundError: there is no such result; the message lists those there are.
    """
    path = recorded_path(name)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.json"))) or "none"
        raise FileNotFoundError(f"there is no recorded result {name!r} in {path.parent}; there are: {known}.")
    return json.loads(path.read_text())
