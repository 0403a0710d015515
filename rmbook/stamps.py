"""Recorded results: JSON files that say what was measured, and with what.

A chapter computes what the hardware at hand can and reads the rest from such a file. Each has a stamp: date,
hardware, versions, commit and the command that makes it again.
"""

from __future__ import annotations

import ast
import datetime
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from rmbook.yaml_files import read_yaml

if TYPE_CHECKING:
    import torch

PACKAGE = Path(__file__).parent
PACKAGES = ("numpy", "torch", "transformers", "peft", "accelerate", "scikit-learn", "rmbook")
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def stamp(command: str) -> dict[str, Any]:
    """Return where and with what a result is being made: date (UTC), hardware, versions, commit, command."""
    import torch

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
    """Return the most bytes in use so far: on a CUDA device as PyTorch counts them, else by this process."""
    if device is not None and device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return psutil.Process().memory_info().peak_wset
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def describe_stamp(record: dict[str, Any]) -> str:
    """Return one line for a caption: when, where, with which versions and by which command a result was made."""
    stamp, hardware = record["stamp"], record["stamp"]["hardware"]
    return (
        f"Recorded {stamp['date']} on {describe_machine(hardware)}; torch {stamp['versions']['torch']}, transformers "
        f"{stamp['versions']['transformers']}, commit {stamp['commit'][:9]}; made by: {stamp['command']}"
    )


def describe_machine(hardware: dict[str, Any]) -> str:
    """Return a stamp's hardware in words: the GPU, or the CPU and how many threads were used."""
    threads = hardware.get("threads")
    return hardware.get("gpu") or f"{hardware.get('cpu')}, {threads} thread{'s' * (threads != 1)}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # rmbook itself where it runs from its folder
        return None


def _commit() -> str:
    if commit := os.environ.get("RMBOOK_COMMIT"):  # of a copy that is no checkout, on a machine without git
        return commit

    def git(*arguments):
        return subprocess.run(["git", "-C", str(PACKAGE), *arguments], capture_output=True, text=True)

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


def source_fingerprint(*modules: str, package: Path = PACKAGE) -> str:
    """Hash modules of this package, and all that they import from it, without docstrings and comments.

    A module's table, the YAML file of the same name beside it, counts as part of it.
    The package's own `__init__` does not enter: it names everything.

    Args:
        modules: full names, such as "rmbook.runs.run".
        package: folder of the package.

    Returns:
        SHA-256, hexadecimal.
    """
    return hashlib.sha256(json.dumps(reachable_sources(*modules, package=package), sort_keys=True).encode()).hexdigest()


def reachable_sources(*modules: str, package: Path = PACKAGE) -> dict[str, str]:
    """Return syntax trees, and tables, of modules and of all that they import from their package, by name, as text."""
    found, waiting = {}, list(modules)
    while waiting:
        name = waiting.pop()
        path = package.parent.joinpath(*name.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name in found or name == package.name or not path.is_file():
            continue
        tree, imported = _parse(path, package.name, path.stat().st_mtime_ns)
        waiting += imported
        table = path.with_suffix(".yaml")
        found[name] = tree + (repr(read_yaml(table)) if table.is_file() else "")
    return found


@functools.cache  # until the file is another one
def _parse(path: Path, package: str, modified: int) -> tuple[str, tuple[str, ...]]:
    """Return a module's tree without docstrings, as text, and what it imports from its package."""
    tree = ast.parse(path.read_text("utf-8"))
    imported: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == package:
            imported += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names if alias.name.startswith(f"{package}.")]
        elif isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body[0] = ast.Expr(ast.Constant(""))
    return ast.dump(tree), tuple(imported)
