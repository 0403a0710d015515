"""Statements, simulators and chapters name each other, and every one of these links leads somewhere.

- A theorem, lemma, proposition or corollary of the book ends with "In code:" and the functions that compute or test it.
  The tools of the proofs, whose labels begin with "tool-", need none.
- The docstring of a function that simulates the theory has one sentence "In the book: `label` in chapter, ...". A label
  is that of a statement, an equation, an exercise, a section or a chapter.
- The first table of the proofs lists every statement with its functions and its chapter.
"""

import ast
import importlib
import re
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
SIMULATORS = [
    "regression",
    "descent",
    "limit",
    "bounds",
]  # every public name of these modules has its place in the book
SHARED = {
    "seeded_generator",
    "take_columns",
}  # what these modules share with each other is public to them, not a simulator
INDEX = "proofs"
STATEMENT = re.compile(r"^(:{3,}|`{3,})\{prf:(theorem|lemma|proposition|corollary)\}[^\n]*\n(.*?)^\1 *$", re.M | re.S)
LABEL = re.compile(r"^:label: *(\S+) *$|^\((\S+)\)=$|\$\$ *\((\S+)\)$", re.M)
FUNCTION = re.compile(r"`(rmbook\.\w+\.\w+\.\w+)`")


class Chapter(NamedTuple):
    prose: str
    code: str


class Statement(NamedTuple):
    label: str
    chapter: str
    functions: frozenset[str]


def read_book() -> dict[str, Chapter]:
    book = {}
    for path in sorted((ROOT / "book").glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        book[path.stem] = Chapter(
            *("\n\n".join(c.source for c in cells if c.cell_type == kind) for kind in ("markdown", "code"))
        )
    return book


def read_docstrings() -> dict[str, str]:
    """The docstring of every public function and class of the package, read without importing anything."""
    docstrings = {}
    for path in sorted((ROOT / "rmbook").rglob("[!_]*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                docstrings[f"{module}.{node.name}"] = " ".join((ast.get_docstring(node) or "").split())
    return docstrings


def statements(book) -> list[Statement]:
    found = []
    for name, chapter in book.items():
        for match in STATEMENT.finditer(chapter.prose):
            label = re.search(r"^:label: *(\S+)", match[3], re.M)
            functions = match[3].partition("In code:")[2]
            found.append(Statement(label and label[1], name, frozenset(FUNCTION.findall(functions))))
    return [statement for statement in found if not (statement.label or "").startswith("tool-")]


def labels(chapter: Chapter) -> set[str]:
    return {next(filter(None, groups)) for groups in LABEL.findall(chapter.prose)}


def links(docstring: str) -> set[tuple[str, str]]:
    """The (label, chapter) pairs of a docstring; a sentence of another form has none."""
    sentence = re.search(r"In the book: (`[\w-]+` in \w+(?:, `[\w-]+` in \w+)*)\.(?= |$)", docstring)
    return set(re.findall(r"`([\w-]+)` in (\w+)", sentence[1])) if sentence else set()


def can_be_imported(name: str) -> bool:
    module, _, function = name.rpartition(".")
    try:
        return hasattr(importlib.import_module(module), function)
    except ImportError:
        return False


def from_statements(book, docstrings) -> list[str]:
    """Statement -> function -> the same statement in the same chapter."""
    problems = []
    for label, chapter, functions in statements(book):
        if not label or not functions:
            problems.append(
                f"{label or 'a statement without label'} in {chapter} names no function: add 'In code: ...'"
            )
        for name in functions:
            if name not in docstrings or not can_be_imported(name):
                problems.append(f"{label} in {chapter} names {name}, which is no public function of rmbook")
            elif (label, chapter) not in links(docstrings[name]):
                problems.append(f"the docstring of {name} does not say 'In the book: `{label}` in {chapter}.'")
    return problems


def from_functions(book, docstrings) -> list[str]:
    """Function -> label in its chapter -> the same function, in the statement or else called in the chapter."""
    problems = []
    named_by = {statement.label: statement for statement in statements(book)}
    for name, docstring in docstrings.items():
        module, function = name.split(".")[-2:]
        needed = module in SIMULATORS and function not in SHARED and not function.startswith("check_")
        if (needed or "In the book:" in docstring) and not links(docstring):
            problems.append(f"the docstring of {name} needs a sentence 'In the book: `label` in chapter, ...'")
        for label, chapter in links(docstring):
            if chapter not in book or label not in labels(book[chapter]):
                problems.append(f"{name} names {label} in {chapter}, where there is no such label")
            elif label in named_by:
                if name not in named_by[label].functions:
                    problems.append(f"{label} in {chapter} does not name {name}, which names it")
            elif not re.search(rf"\b{function}\(", book[chapter].code):
                problems.append(f"{name} names {label} in {chapter}, whose code cells do not call it")
    return problems


def from_index(book, docstrings) -> list[str]:
    """The table of the proofs lists exactly the statements of the book, each once."""
    rows = re.findall(r"^\| \{prf:ref\}`([\w-]+)`, \{doc\}`(\w+)` \|.*\|(.*)\|$", book[INDEX].prose, re.M)
    listed = [
        Statement(label, chapter, frozenset(f"rmbook.theory.{name}" for name in re.findall(r"`(\w+\.\w+)`", functions)))
        for label, chapter, functions in rows
    ]
    wanted = statements(book)
    return [f"missing in the table of {INDEX}: {statement}" for statement in wanted if statement not in listed] + [
        f"listed in {INDEX}, but not so in the book: {row}"
        for row in listed
        if row not in wanted or listed.count(row) > 1
    ]


@pytest.mark.parametrize("walk", [from_statements, from_functions, from_index])
def test_links_lead_there_and_back(walk):
    assert walk(read_book(), read_docstrings()) == []


def test_the_walk_covers_part_one():
    """The parser sees what a reader sees: otherwise, an empty walk would pass."""
    found = {statement.label: statement for statement in statements(read_book())}
    assert len(found) == len(statements(read_book())) >= 11, "every label belongs to one statement"
    assert found["thm-stable-step"].chapter == "how_large_a_step"
    assert "rmbook.theory.regression.largest_stable_rate" in found["thm-stable-step"].functions
    assert links(read_docstrings()["rmbook.theory.regression.largest_stable_rate"]) == {
        ("thm-stable-step", "how_large_a_step")
    }


@pytest.mark.parametrize(
    "walk, where, old, new",
    [
        (from_statements, "further_from_home", "In code: `rmbook.theory.limit.expected_squared_norm`,", ""),
        (from_statements, "how_large_a_step", "`rmbook.theory.limit.limit_point`", "`rmbook.theory.limit.limit_pint`"),
        (from_statements, "further_from_home", ":label: thm-distance", ":label: thm-distances"),
        (from_statements, "masked_linear_regression", "In code: ", "In program: "),
        (from_statements, "rmbook.theory.regression.gram", "`lem-gram`", "`lem-grams`"),
        (from_functions, "rmbook.theory.regression.gram", "In the book: ", "In our book: "),
        (from_functions, "rmbook.theory.regression.gram", "In the book: `", "In the book: see `"),
        (from_functions, "rmbook.theory.regression.gram", "in masked_linear_regression", "in flatter_landscape"),
        (from_functions, "masked_linear_regression", "(eq-masked-regression)", "(eq-regression)"),
        (from_functions, "masked_linear_regression", "(ch-masked-linear-regression)=", ""),
        (from_functions, "proofs", "sgd(", "gradient_descent("),
        (from_functions, "how_large_a_step", "`rmbook.theory.descent.closed_form`, ", ""),
        (from_index, "proofs", "| {prf:ref}`lem-gram`, ", "| The Gram trick, "),
        (from_index, "proofs", "`lem-gram`, {doc}`masked_linear_regression`", "`lem-gram`, {doc}`flatter_landscape`"),
        (from_index, "proofs", "`bounds.matrix_bernstein`, ", ""),
        (from_index, "flatter_landscape", "`rmbook.theory.bounds.matrix_bernstein`, ", ""),
    ],
)
def test_a_broken_link_is_found(walk, where, old, new):
    book, docstrings = read_book(), read_docstrings()
    known = walk(book, docstrings)
    if where in book:
        assert any(old in text for text in book[where]), f"{where} no longer contains {old!r}: choose another link"
        book[where] = Chapter(*(text.replace(old, new) for text in book[where]))
    else:
        assert old in docstrings[where], f"{where} no longer contains {old!r}: choose another link"
        docstrings[where] = docstrings[where].replace(old, new)
    assert set(walk(book, docstrings)) - set(known)
