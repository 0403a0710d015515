"""What `pip install` puts on another machine: every module and every data file, and nothing of the book's tools."""

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import rmbook

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FOLDERS = {"rmbook": "rmbook", "results": "rmbook_results"}  # in the repository, and as it is installed
LEFT_BEHIND = shutil.ignore_patterns("__pycache__", "*.pyc")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """The wheel that setuptools builds from a copy of the package, without a network."""
    copy = tmp_path_factory.mktemp("source")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=LEFT_BEHIND)
    for name in ("pyproject.toml", PROJECT["readme"], *PROJECT["license-files"]):
        shutil.copy(ROOT / name, copy)
    build = "from setuptools import build_meta; print(build_meta.build_wheel('wheels'))"
    (copy / "wheels").mkdir()
    subprocess.run([sys.executable, "-c", build], cwd=copy, check=True, capture_output=True, text=True)
    return zipfile.ZipFile(next((copy / "wheels").glob("*.whl")))


def test_wheel_holds_every_module_and_every_data_file(wheel):
    expected = {
        f"{installed}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, installed in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.name not in LEFT_BEHIND(path.parent, [path.name]) and "__pycache__" not in path.parts
    }
    found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert sorted(expected - found) == [], "missing in the wheel: see [tool.setuptools] in pyproject.toml"
    assert sorted(found - expected) == []
    assert sum(not name.endswith(".py") for name in found) > 20


def test_the_map_of_each_room_names_all_its_modules():
    for room in (ROOT / "rmbook").glob("*/__init__.py"):
        lines = [line for line in room.read_text().splitlines() if line.startswith("    ")]
        modules = {path.stem for path in room.parent.glob("*.py")} - {"__init__"}
        assert sorted(modules - set(re.findall(r"\w+", " ".join(lines)))) == [], room


def test_types_of_the_public_surface_are_checked_strictly():
    """mypy's list of strict modules holds the home of each public name; `make test` runs mypy."""
    overrides = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]["overrides"]
    (strict,) = (entry["module"] for entry in overrides if entry.get("disallow_untyped_defs"))
    for name in rmbook.__all__:
        home = f"rmbook.{rmbook._HOMES[name]}"
        assert any(fnmatch.fnmatch(home, pattern) for pattern in strict), f"{name} lives in {home}, which is not strict"


def test_wheel_carries_its_licence_its_types_and_its_command(wheel):
    inside = {re.sub(r"^[^/]*\.dist-info/", "", name): name for name in wheel.namelist()}
    assert {"licenses/LICENSE", "licenses/NOTICE", "rmbook/py.typed"} <= inside.keys()
    assert b"Apache License" in wheel.read(inside["licenses/LICENSE"])
    metadata = wheel.read(inside["METADATA"]).decode()
    assert "\nLicense-Expression: Apache-2.0\n" in metadata and f"\nVersion: {rmbook.__version__}\n" in metadata
    assert b"rmbook = rmbook.cli.app:app" in wheel.read(inside["entry_points.txt"])


IMPORT_ALL = """
import importlib.machinery, sys

class Hiding(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in BLOCKED else super().find_spec(name, path, target)

sys.meta_path[:] = [Hiding if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path]
import rmbook
for name in rmbook.__all__:
    getattr(rmbook, name)
import rmbook.cli.app
import rmbook_results
print(len(rmbook.__all__))
"""


def modules_of_extras() -> set[str]:
    """Import names of what only the extras ask for."""
    base = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    extras = {
        canonicalize_name(Requirement(line).name)
        for lines in PROJECT["optional-dependencies"].values()
        for line in lines
    }
    wanted = extras - base - {"setuptools", "packaging", "triton"}  # torch and transformers bring these
    return {
        module
        for module, distributions in packages_distributions().items()
        if {canonicalize_name(name) for name in distributions} & wanted
    }


def test_every_public_name_imports_without_the_books_tools(wheel, tmp_path):
    """The wheel's own files are used, away from the repository, with the extras' packages hidden."""
    blocked = modules_of_extras()
    assert {"jupyter_book", "nbval", "pytest", "ray", "optuna", "hypothesis", "playwright"} <= blocked
    wheel.extractall(tmp_path)
    script = f"BLOCKED = {sorted(blocked)!r}\n{IMPORT_ALL}"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(rmbook.__all__) > 20


def test_version_is_written_alike_everywhere():
    assert PROJECT["version"] == rmbook.__version__


CHAPTERS = """
import json, pathlib
import matplotlib
matplotlib.use("agg")
from IPython.core.inputtransformer2 import TransformerManager

for path in sorted(pathlib.Path(BOOK).glob("*.ipynb")):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    quick = len(cells) if path.stem in QUICK else 2  # the cell for Colab, and the imports
    around = {"display": lambda *shown: None}
    for cell in cells[:quick]:
        exec(TransformerManager().transform_cell("".join(cell["source"])), around)
    print(path.stem, len(cells[:quick]))
"""


def test_chapters_begin_where_only_the_package_is_installed(wheel, tmp_path):
    """The first cell finds the package, the imports need none of the book's tools, quick chapters run."""
    wheel.extractall(tmp_path / "installed")
    hiding = IMPORT_ALL.partition("import rmbook\n")[0]
    blocked, quick = modules_of_extras() - {"mlxtend"}, ("tables_reread", "benchmark_reread")  # the first cell has it
    given = f"BLOCKED, BOOK, QUICK = {sorted(blocked)!r}, {str(ROOT / 'book')!r}, {quick}\n"
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed")}
    command = [sys.executable, "-W", "ignore", "-c", given + hiding + CHAPTERS]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-3000:]
    counts = dict(line.split() for line in done.stdout.splitlines() if re.fullmatch(r"\w+ \d+", line))
    assert len(counts) >= 25 and all(int(counts[chapter]) > 10 for chapter in quick)
