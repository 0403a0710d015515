"""Run the chapters on the machine at hand, several at a time: the first half of `make book`.

A chapter that has run is kept in `_build/chapters` under a name made from all that its outputs depend on: its code, the
part of the package that it imports, the recorded results that it reads, the versions of what is installed, and the
machine. It is not run again until one of these changes. Sphinx then builds the pages from the executed notebooks
(`_ext/rmbook_book.py`); the notebooks in book/ stay as they are.
"""

import asyncio
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import sys
import time
import tomllib
from pathlib import Path

import nbformat
import torch
from nbclient.exceptions import CellExecutionError
from packaging.requirements import Requirement
from record import NUMBER, ROOT, execute, notebooks, write

import rmbook
from rmbook.stamps import reachable_sources

EXECUTED = ROOT / "_build" / "chapters"
LOOKS_AT_THE_SOURCES = re.compile(r"glob\(|\bsubprocess\b|\binspect\b|^\s*[!%]{1,2}(?!pip)\w", re.M)
NOT_THE_CHAPTERS = ("RMBOOK_CACHE", "RMBOOK_EXECUTED", "RMBOOK_JOBS")  # variables that change no output


def code_of(notebook: nbformat.NotebookNode) -> str:
    """Return all that a kernel is asked: the code, and what is filled into prose and into the texts of figures."""
    parts = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            parts += [cell.source, *cell.metadata.get("rmbook", {}).values()]
        elif cell.cell_type == "markdown":
            parts += [mark["value"] for mark in NUMBER.finditer(cell.source)]
    return "\n".join(parts)


def imported_modules(code: str) -> list[str]:
    """Return the modules of rmbook that code imports; for a name of the short surface, the module it lives in."""
    named = re.findall(r"\brmbook(?:\.\w+)+", code)
    for names in re.findall(r"from rmbook import \(?([\w, \n]+)", code):
        named += [f"rmbook.{name.split()[0]}" for name in names.split(",") if name.strip()]
    for module, names in re.findall(r"from (rmbook\.[\w.]+) import \(?([\w, \n]+)", code):
        named += [f"{module}.{name.split()[0]}" for name in names.split(",") if name.strip()]
    homes = {f"rmbook.{name}": f"rmbook.{home}" for name, home in rmbook._HOMES.items()}
    found = set()
    for name in named:
        parts = homes.get(name, name).split(".")
        found |= {".".join(parts[:length]) for length in range(2, len(parts) + 1)}
    return sorted(found)  # names that are no module are passed over by reachable_sources


def dependencies(code: str) -> dict[str, str]:
    """Return what a chapter's outputs depend on inside the repository, by name: sources as text, data as digests."""
    sources = reachable_sources(*imported_modules(code))
    records = [path for path in (ROOT / "results").rglob("*.*") if path.suffix in (".json", ".csv")]
    if LOOKS_AT_THE_SOURCES.search(code):
        paths = [path for path in (ROOT / "rmbook").rglob("*.*") if path.suffix != ".pyc"] + records
    else:
        modules = [ROOT.joinpath(*name.split(".")) for name in sources]
        modules = [path / "__init__.py" if path.is_dir() else path.with_suffix(".py") for path in modules]
        paths = [path for folder in {path.parent for path in modules} for path in folder.glob("*.*")]
        # A record is read from its folder, whose name is somewhere in there; the record's own name may be put together.
        named = set(re.findall(r"\w+", code)).union(*(words_of(path) for path in modules))
        paths = [path for path in paths if path.suffix != ".py"]
        paths += [path for path in records if path.parent.name in named]
    data = {path.relative_to(ROOT).as_posix(): path for path in paths if path.is_file()}
    return sources | {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in data.items()}


@functools.cache
def words_of(path: Path) -> frozenset[str]:
    """Return all words of a source file."""
    return frozenset(re.findall(r"\w+", path.read_text()))


def surroundings() -> dict[str, object]:
    """Return what the outputs depend on outside the repository: versions, hardware, settings in the environment."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + project["optional-dependencies"]["book"]
    return {
        "versions": {name: importlib.metadata.version(name) for name in (Requirement(line).name for line in lines)},
        "python": platform.python_version(),
        "machine": [platform.machine(), os.cpu_count(), torch.cuda.device_count()],
        "settings": {k: v for k, v in os.environ.items() if k.startswith("RMBOOK_") and k not in NOT_THE_CHAPTERS},
    }


def key(notebook: nbformat.NotebookNode, around: dict[str, object]) -> str:
    """Return the digest of all that a notebook's outputs depend on."""
    everything = [code_of(notebook), dependencies(code_of(notebook)), around]
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:16]


def with_outputs(notebook: nbformat.NotebookNode, executed: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return the notebook as it is now (its text may have changed) with the outputs of a run of the same code."""
    outputs = iter([cell for cell in executed.cells if cell.cell_type == "code"])
    prose = [cell for cell in executed.cells if cell.cell_type == "markdown"]
    numbers = iter([mark[0] for cell in prose for mark in NUMBER.finditer(cell.source)])
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = NUMBER.sub(lambda _: next(numbers), cell.source)
        elif cell.cell_type == "code":
            done = next(outputs)
            cell.outputs, cell.execution_count = done.outputs, done.execution_count
            if "rmbook" in cell.metadata:  # its alt text has numbers of that run
                cell.metadata["mystnb"] = done.metadata["mystnb"]
    notebook.metadata = executed.metadata
    return notebook


async def run_all(paths: list[Path], jobs: int, folder: Path = EXECUTED) -> list[str]:
    """Bring the executed chapters up to date, `jobs` at a time, longest first; return the names that failed."""
    around, places, failed, done = surroundings(), asyncio.Semaphore(jobs), [], 0

    def seconds(path: Path) -> float:
        return nbformat.read(path, as_version=4).metadata.get("rmbook", {}).get("seconds", float("inf"))

    def report(path: Path, text: str) -> None:
        nonlocal done
        done += 1
        print(f"[{done:2d}/{len(paths)}] {path.stem}: {text}", flush=True)

    async def bring_up_to_date(path: Path) -> None:
        notebook = nbformat.read(path, as_version=4)
        kept, target = folder / f"{path.stem}-{key(notebook, around)}.ipynb", folder / path.name
        if kept.is_file():
            text = "unchanged"
        else:
            async with places:
                try:
                    await execute(notebook, path.parent, "make book")
                except (CellExecutionError, RuntimeError, TimeoutError) as error:
                    failed.append(path.stem)
                    return report(path, f"FAILED\n{error}")
            for old in folder.glob(f"{path.stem}-*.ipynb"):
                old.unlink()
            write(notebook, kept)
            text = f"{notebook.metadata.rmbook.seconds} s"
        page = with_outputs(nbformat.read(path, as_version=4), nbformat.read(kept, as_version=4))
        if not target.is_file() or nbformat.read(target, as_version=4) != page:  # else the page need not be built again
            write(page, target)
        report(path, text)

    await asyncio.gather(*(bring_up_to_date(path) for path in sorted(paths, key=seconds, reverse=True)))
    return failed


def main(arguments: list[str]) -> int:
    """Run the notebooks named on the command line, or all."""
    EXECUTED.mkdir(parents=True, exist_ok=True)
    # A GPU's memory is for one chapter at a time. RMBOOK_JOBS says otherwise.
    jobs = int(os.environ.get("RMBOOK_JOBS", 1 if torch.cuda.is_available() else min(os.cpu_count() or 1, 8)))
    paths = [Path(argument).resolve() for argument in arguments] or notebooks()
    print(f"running what has changed of {len(paths)} chapters, {jobs} at a time", flush=True)
    start = time.perf_counter()
    failed = asyncio.run(run_all(paths, jobs))
    print(f"{time.perf_counter() - start:.0f} s for the chapters", flush=True)
    if failed:
        print(f"failed: {', '.join(sorted(failed))}; the cell and its error stand above", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
