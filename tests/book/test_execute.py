"""`make book` runs a chapter again when something that its outputs depend on has changed, and only then."""

import asyncio
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import execute  # noqa: E402

from install import settings_for_uv  # noqa: E402


def notebook(code: str, text: str = "# A chapter") -> nbformat.NotebookNode:
    cells = [nbformat.v4.new_markdown_cell(text, id="text"), nbformat.v4.new_code_cell(code, id="code")]
    return nbformat.v4.new_notebook(cells=cells)


@pytest.mark.parametrize(
    ("code", "inside", "outside"),
    [
        ("from rmbook.theory.limit import limit_point", "rmbook.theory.limit", "rmbook.engine.layer"),
        ("from rmbook.theory import limit", "rmbook.theory.limit", "rmbook.engine.layer"),
        ("from rmbook import sample_mask", "rmbook.masks.sample", "rmbook.models.language"),
        ("import rmbook\nrmbook.train(1)", "rmbook.training.train", "rmbook.theory.limit"),
        ("from rmbook import (\n    sample_mask,\n    train as t,\n)", "rmbook.training.train", "rmbook.theory.limit"),
        ("from rmbook.paper.tables import TABLES", "results/paper/table5.csv", "results/science/vit_grid.json"),
        ("from rmbook.widgets import explorer", "rmbook/widgets/explorer.js", "rmbook.engine.layer"),
        ("!rmbook train --help", "rmbook/cli/app.py", "nothing"),
    ],
)
def test_a_chapter_depends_on_what_it_imports_and_on_nothing_else(code, inside, outside):
    found = execute.dependencies(code)
    assert inside in found and outside not in found


def test_code_and_surroundings_change_the_key_and_text_does_not():
    around = execute.surroundings()
    key = execute.key(notebook("1 + 1"), around)
    assert key == execute.key(notebook("1 + 1", "# Another title"), around)
    assert key != execute.key(notebook("1 + 2"), around)
    assert key != execute.key(notebook("1 + 1"), around | {"python": "3.0"})


def test_every_chapter_that_imports_the_package_depends_on_it():
    for path in execute.notebooks():
        code = execute.code_of(nbformat.read(path, as_version=4))
        assert ("rmbook." in code or "from rmbook import" in code) == bool(execute.imported_modules(code)), path.stem


def test_what_is_unchanged_is_not_run_again_and_what_fails_is_named(tmp_path, capsys):
    log, folder = tmp_path / "log", tmp_path / "executed"
    folder.mkdir()

    def run(**chapters) -> list[str]:
        for name, (code, text) in chapters.items():
            code = f"print('ran', file=open({str(log)!r}, 'a'))\n{code}"
            nbformat.write(notebook(code, text), tmp_path / f"{name}.ipynb")
        return asyncio.run(execute.run_all([tmp_path / f"{name}.ipynb" for name in chapters], 2, folder))

    def runs() -> int:
        return len(log.read_text().splitlines())

    assert run(one=("6 * 7", "# One"), two=("1 / 0", "# Two")) == ["two"] and runs() == 2
    printed = capsys.readouterr().out
    assert "two: FAILED" in printed and "ZeroDivisionError" in printed and "one: " in printed
    assert not (folder / "two.ipynb").exists()

    assert run(one=("6 * 7", "# Another title")) == [] and runs() == 2
    page = nbformat.read(folder / "one.ipynb", as_version=4)
    assert page.cells[0].source == "# Another title" and page.cells[1].outputs[0].data["text/plain"] == "42"
    assert page.metadata.rmbook.seconds >= 0 and page.metadata.rmbook.versions["torch"]
    before = (folder / "one.ipynb").stat().st_mtime_ns
    assert run(one=("6 * 7", "# Another title")) == [] and (folder / "one.ipynb").stat().st_mtime_ns == before

    path = tmp_path / "one.ipynb"  # numbers in a figure's alt text come from its run
    changed = nbformat.read(path, as_version=4)
    changed.cells[1].source, changed.cells[1].metadata["rmbook"] = "x = 6 * 8\nx", {"alt": "Rises to {x:.1f}."}
    nbformat.write(changed, path)
    assert asyncio.run(execute.run_all([path], 1, folder)) == []
    filled = nbformat.read(folder / "one.ipynb", as_version=4).cells[1]
    assert filled.metadata.mystnb.image.alt == "Rises to 48.0." and filled.outputs[0].data["text/plain"] == "48"
    assert filled.execution_count == filled.outputs[0].execution_count == 1

    text = "It is (7<!--{x}-->), half of it 3.5<!--{x / 2:.1f}-->, less 1e-3<!--{-x:.0e}-->; 7 stays."
    changed.cells.append(nbformat.v4.new_markdown_cell(text))
    nbformat.write(changed, path)  # so do numbers of the prose
    assert asyncio.run(execute.run_all([path], 1, folder)) == []
    prose = nbformat.read(folder / "one.ipynb", as_version=4).cells[-1].source
    assert prose == "It is (48<!--{x}-->), half of it 24.0<!--{x / 2:.1f}-->, less -5e+01<!--{-x:.0e}-->; 7 stays."

    assert run(one=("6 * 8", "# Another title")) == [] and runs() == 3
    assert nbformat.read(folder / "one.ipynb", as_version=4).cells[1].outputs[0].data["text/plain"] == "48"


def test_uv_is_told_what_pip_knows():
    listing = "\n".join((
        ":env:.find-links='/wheels'", "global.cert='/etc/ca.crt'", "global.extra-index-url='file:///one file:///two'",
        "global.find-links='/elsewhere'", "global.timeout='3'", "list.format='columns'",
    ))  # fmt: skip
    options, environment = settings_for_uv(listing, {"HOME": "/root"})
    assert options == [
        *("--index", "file:///one", "--index", "file:///two", "--find-links", "/wheels"),
        *("--index-strategy", "unsafe-best-match"),
    ]
    assert environment == {"HOME": "/root", "SSL_CERT_FILE": "/etc/ca.crt"}
    assert settings_for_uv("", {}) == ([], {})
