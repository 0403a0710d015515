"""The stored notebooks are complete, clean and follow the chapters' template."""

import ast
import importlib.util
import re
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FRONT_PAGE = "book/intro.ipynb"
MOST_LINES = 25  # of a code cell without its imports: more than that belongs in the package
MOST_COLUMNS = 88  # of its lines: the page cuts off what is wider


def load_record():
    """Import book/record.py, which is a script and not part of the package."""
    spec = importlib.util.spec_from_file_location("record", ROOT / "book" / "record.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RECORD = load_record()
PAGES = [path.relative_to(ROOT).as_posix() for path in RECORD.notebooks()]
CHAPTERS = [page for page in PAGES if page != FRONT_PAGE]


@pytest.fixture(params=PAGES)
def notebook(request):
    return nbformat.read(ROOT / request.param, as_version=4)


@pytest.fixture(params=CHAPTERS)
def chapter(request):
    return nbformat.read(ROOT / request.param, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def markdown(notebook):
    """All prose of a notebook; a blank line between two cells."""
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def headings(notebook):
    """The (level, text) of every heading, fenced blocks left out."""
    prose = re.sub(r"^(`{3,}|:{3,}).*?^\1", "", markdown(notebook), flags=re.MULTILINE | re.DOTALL)
    return [(len(marks), text.strip()) for marks, text in re.findall(r"^(#+) +(.+)$", prose, re.MULTILINE)]


def directives(notebook, name):
    """The (argument, body) of every directive called `name`, with backticks or colons as its fence."""
    pattern = r"^(`{3,}|:{3,})\{" + re.escape(name) + r"\}[ \t]*([^\n]*)\n(.*?)^\1[ \t]*$"
    found = re.findall(pattern, markdown(notebook) + "\n", re.MULTILINE | re.DOTALL)
    return [(argument.strip(), body) for _, argument, body in found]


def test_toc_lists_exactly_the_notebooks_and_the_other_pages():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    listed = [toc["root"]] + [entry["file"] for part in toc["parts"] for entry in part["chapters"]]
    entries = [entry for part in toc["parts"] for entry in part["chapters"]]
    listed += [inner["file"] for entry in entries for inner in entry.get("sections", [])]
    written = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "book").rglob("*.md"))
    assert sorted(f"{name}.ipynb" for name in listed if f"{name}.md" not in written) == PAGES
    assert {f"{name}.md" for name in listed} >= set(written)
    assert listed[0] + ".ipynb" == FRONT_PAGE


def test_notebook_is_valid_and_names_the_usual_kernel(notebook):
    nbformat.validate(notebook)
    metadata = dict(notebook.metadata)
    stamp = metadata.pop("rmbook", None)  # of the run, since runs are noted
    assert metadata == RECORD.METADATA
    assert stamp is None or {"seconds", "date", "hardware", "versions"} <= set(stamp)


def test_outputs_come_from_one_clean_run(notebook):
    counts = [cell.execution_count for cell in code_cells(notebook) if cell.source.strip()]
    assert counts == list(range(1, len(counts) + 1)), "run `make record` on this notebook"
    for cell in code_cells(notebook):
        for output in cell.outputs:
            assert output.output_type != "error", output.get("evalue")
            assert output.get("name") != "stderr", output.get("text")
            assert "%|" not in str(output.get("data", {}).get("text/plain", "")), "a progress bar was left on the page"


def test_colab_header_is_what_record_writes(notebook):
    if not code_cells(notebook):
        return
    header = code_cells(notebook)[0]
    assert header.source == RECORD.colab_header(notebook), "run `make record` on this notebook"
    assert header.metadata["tags"] == RECORD.COLAB_TAGS
    assert not header.outputs
    assert sum("colab-header" in cell.metadata.get("tags", []) for cell in notebook.cells) == 1


def html_outputs(notebook):
    return [html for cell in code_cells(notebook) for o in cell.outputs if (html := o.get("data", {}).get("text/html"))]


def test_the_front_page_begins_with_the_network_that_trains():
    first = html_outputs(nbformat.read(ROOT / FRONT_PAGE, as_version=4))[0]
    assert "data-rmd=" in first and len(first.encode()) < 60_000


def test_figures_that_move_cost_less_than_100_kilobytes_a_page(notebook):
    moving = [page for page in html_outputs(notebook) if re.match(r"<div data-rm\w=", page)]
    assert sum(len(page.encode()) for page in moving) < 100_000


def test_code_cells_are_short(notebook):
    for cell in code_cells(notebook):
        if "remove-input" in cell.metadata.get("tags", []):
            continue  # a prediction: nobody reads its source
        source = re.sub(r"^(from .* import \([^)]*\)|from .*|import .*)\n", "", cell.source, flags=re.MULTILINE)
        assert len(source.splitlines()) <= MOST_LINES, source


def test_lines_of_code_fit_on_the_page(notebook):
    wide = [line for cell in code_cells(notebook) for line in cell.source.splitlines() if len(line) > MOST_COLUMNS]
    assert not wide, "\n".join(wide)


def test_checks_are_collapsed(notebook):
    """A cell that shows nothing and consists of asserts, at least by half, is folded in the page and in an editor."""
    for cell in code_cells(notebook):
        if cell.outputs or not re.search(r"^\s*assert ", cell.source, re.MULTILINE):
            continue
        found = [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Assert)]
        checks = sum(node.end_lineno - node.lineno + 1 for node in found)
        lines = [line for line in cell.source.splitlines() if line.strip() and not line.strip().startswith("#")]
        if checks >= len(lines) / 2:
            assert "hide-input" in cell.metadata["tags"] and cell.metadata["jupyter"]["source_hidden"], cell.source


def test_predictions_hide_their_answers(notebook):
    """In the page the call is left out, in an editor it is folded."""
    for cell in code_cells(notebook):
        if re.search(r"^predict\(", cell.source, re.MULTILINE):
            assert "remove-input" in cell.metadata["tags"] and cell.metadata["jupyter"]["source_hidden"]


def test_the_answer_to_a_question_is_not_seen_at_once(notebook):
    """After a "**Predict**" outputs are collapsed, in the page and in an editor, unless they are there to be moved."""
    asked = False
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            asked = "**Predict" in cell.source
            continue
        asked = asked and not re.search(r"^predict\(", cell.source, re.MULTILINE)  # a click on a guess answers that one
        moves = any("data-rm" in output.get("data", {}).get("text/html", "") for output in cell.get("outputs", []))
        if asked and cell.get("outputs") and not moves:
            tags = cell.metadata.get("tags", [])
            assert {"hide-output", "hide-cell", "remove-output"} & set(tags), cell.source
            assert "remove-output" in tags or cell.metadata["jupyter"]["outputs_hidden"], cell.source


def test_nothing_is_chosen_by_test_scores(notebook):
    """An explorer names a best point only for what is not measured on test data."""
    for cell in code_cells(notebook)[1:]:  # the first one installs, and is not quite Python
        for table in (node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Dict)):
            for name, better in zip(table.keys, table.values, strict=True):
                if isinstance(name, ast.Constant) and "test" in str(name.value) and isinstance(better, ast.Constant):
                    assert better.value not in ("higher", "lower"), f"{name.value} has a best point in:\n{cell.source}"


def test_drawn_figures_have_alternative_text(notebook):
    """The text is in the cell's metadata: {"mystnb": {"image": {"alt": "..."}}}."""
    for cell in code_cells(notebook):
        if any(mime.startswith("image/") for output in cell.outputs for mime in output.get("data", {})):
            alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
            assert alt.strip(), f"no alternative text for the figure of:\n{cell.source}"


def test_notebook_has_one_title(notebook):
    assert [level for level, _ in headings(notebook)].count(1) == 1
    assert headings(notebook)[0][0] == 1


def test_chapter_opens_with_objectives_hardware_and_run_time(chapter):
    first_code = next(i for i, cell in enumerate(chapter.cells) if cell.cell_type == "code")
    opening = "\n".join(cell.source for cell in chapter.cells[:first_code]).lower()
    for part in ["objectives", "hardware", "run time"]:
        assert part in opening, f"{part!r} is missing before the first code cell"


def test_chapter_closes_with_summary_and_bibliography(chapter):
    assert (2, "Summary") in headings(chapter)
    assert directives(chapter, "bibliography")


def test_every_exercise_has_a_hidden_solution_or_a_check(chapter):
    checked = re.findall(r'^check\("([^"]+)", ', "\n".join(cell.source for cell in code_cells(chapter)), re.MULTILINE)
    exercises = directives(chapter, "exercise") + directives(chapter, "exercise-start")
    solutions = directives(chapter, "solution") + directives(chapter, "solution-start")
    labels = [label for _, body in exercises for label in re.findall(r"^:label:\s*(\S+)", body, re.MULTILINE)]
    assert exercises and len(labels) == len(exercises), "a chapter has exercises, each with a :label:"
    assert sorted(labels) == sorted(checked + [argument for argument, _ in solutions])
    for cell in code_cells(chapter):
        if "\ncheck(" in cell.source:
            assert "not answered yet" in cell.outputs[0].text, "an open exercise is stored unanswered"
    for argument, body in solutions:
        assert re.search(r"^:class:.*\bdropdown\b", body, re.MULTILINE), f"the solution of {argument} is not a dropdown"
