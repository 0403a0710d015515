"""Recorded results: JSON files that say what was measured, and with what.

A chapter computes what the hardware at hand can and reads the rest from such a file. Each has a stamp: date,
hardware, versions, commit and the command that makes it again.
"""

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import psutil
import torch

from rmbook.files import replacing

PACKAGES = ("numpy", "torch", "transformers", "peft", "accelerate", "scikit-learn", "rmbook")


def stamp(command: str) -> dict[str, Any]:
    """Where and with what a result is being made: date (UTC), hardware, versions, commit, command."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "hardware": {
            "cpu": _cpu_name(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in PACKAGES},
            "torch": torch.__version__,  # says which build, which its package's version does not always
        },
        "commit": _commit(),
        "command": command,
    }


def peak_memory(device: torch.device | None = None) -> int:
    """Most bytes in use so far: of a CUDA device as PyTorch counts them, else of this process."""
    if device is not None and device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return psutil.Process().memory_info().peak_wset
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


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


def describe_stamp(record: dict[str, Any]) -> str:
    """One line for a caption: when, where, with which versions and by which command a record was made."""
    stamp, hardware = record["stamp"], record["stamp"]["hardware"]
    machine = hardware["gpu"] or f"{hardware['cpu']}, {hardware['threads']} thread{'s' * (hardware['threads'] > 1)}"
    return (
        f"Recorded {stamp['date']} on {machine}; torch {stamp['versions']['torch']}, transformers "
        f"{stamp['versions']['transformers']}, commit {stamp['commit'][:9]}; made by: {stamp['command']}"
    )


def write_json(path: Path, data: Any) -> None:
    """Write `data` as JSON, completely or not at all."""
    with replacing(path) as temporary, open(temporary, "w") as file:
        json.dump(data, file, indent=1)
        file.write("\n")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # rmbook itself where it runs from its folder
        return None


def _commit() -> str:
    if commit := os.environ.get("RMBOOK_COMMIT"):  # of a copy that is no checkout, on a machine without git
        return commit

    def git(*arguments):
        return subprocess.run(["git", "-C", str(Path(__file__).parent), *arguments], capture_output=True, text=True)

    head = git("rev-parse", "HEAD")
    if head.returncode:
        return "unknown: not a git checkout"
    changed = git("status", "--porcelain", "--", ".").stdout.strip()  # the package's own folder
    return head.stdout.strip() + (" with uncommitted changes" if changed else "")


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
