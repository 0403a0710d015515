"""Chapters in broken worlds: their cells and what each needs, their asserts part by part, and answers that are wrong.

`tests/book/test_broken_worlds.py` breaks recorded results and the library with it.
"""

import ast
import builtins
import copy
import dataclasses
import functools
import json
import re
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

BOOK = Path(__file__).resolve().parents[1] / "book"
LOADERS = re.compile(r"\b(load_runs|load_paper_table|load_interference|find_recorded)\(")
EFFECTS = re.compile(  # on files, or on all of torch
    r"to_csv|write_|copytree|save_|mkdir|shell\(|shutil\.|start_run\(|fit\(|teach\(|set_default_dtype"
)
CHAPTERS = sorted(path.stem for path in BOOK.glob("*.ipynb"))
HARMLESS = {*dir(builtins), "plt", "fig", "ax", "axes", "np", "pd", "math"}  # what these are given stays as it is
SETTINGS = {"density", "learning_rate", "ratio", "scale"}
NUMBERS = {"Encoding", "Estimate", "HessianNorm", "Images", "Look", "PairedComparison", "Reach", "Runs"}
NUMBERS |= {"TrainingResult", "VarianceComponents"}


class Parts(ast.NodeTransformer):
    """Turns asserts into questions that are noted down and stop nothing; `texts` are the asserts' parts."""

    def __init__(self):
        self.texts = []

    def visit_Assert(self, node: ast.Assert) -> list[ast.stmt]:
        joined = isinstance(node.test, ast.BoolOp) and isinstance(node.test.op, ast.And)
        texts = [ast.unparse(part) for part in (node.test.values if joined else [node.test])]
        self.texts += texts
        return ast.parse("\n".join(f"note({text!r}, locals())" for text in texts)).body


def names_in(text: str) -> set[str]:
    """Return the names of the chapter that a piece of code reads; none if it speaks of numbers in it alone."""
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)]
    made = {node.id for node in nodes if isinstance(node.ctx, ast.Store)}  # in comprehensions
    return {node.id for node in nodes} - made - {"math", "np"} - set(dir(builtins))


@functools.cache
def code_cells(chapter: str) -> list[tuple[str, str]]:
    """Return the cells of code as their ids and their code, without those for the shell."""
    cells = json.loads((BOOK / f"{chapter}.ipynb").read_text())["cells"]
    code = [(cell["id"], "".join(cell["source"])) for cell in cells if cell["cell_type"] == "code"]
    return [(name, text) for name, text in code if not re.search(r"^\s*[%!]", text, re.M)]


@dataclasses.dataclass
class Cell:
    """A statement of a cell: the names it reads, those it makes, those it may change; the parts of its asserts."""

    name: str
    code: str
    parts: list[str]
    reads: set[str]
    makes: set[str]
    changes: set[str]


def analysed(name: str, node: ast.stmt, imported: set[str]) -> Cell:
    """Return a statement of a cell with what can be told from its code; what it calls may change what it is given."""
    names = [each for each in ast.walk(node) if isinstance(each, ast.Name)]
    stored = {each.id for each in names if isinstance(each.ctx, ast.Store)}
    reads, makes, changes = {each.id for each in names if isinstance(each.ctx, ast.Load)}, set(stored), set()
    inner = [each.target for each in ast.walk(node) if isinstance(each, ast.For | ast.comprehension)]
    bound = {each.id for target in inner for each in ast.walk(target) if isinstance(each, ast.Name)}
    bound |= {each.arg for each in ast.walk(node) if isinstance(each, ast.arg)}
    if isinstance(node, ast.Import | ast.ImportFrom):
        makes = {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    elif isinstance(node, ast.FunctionDef | ast.ClassDef):
        reads, makes = reads - stored, {node.name}
    elif isinstance(node, ast.AugAssign):
        reads, makes, changes = reads | stored, set(), {base_of(node.target)}
    else:
        calls = [each for each in ast.walk(node) if isinstance(each, ast.Call)]
        ends = [each.value for each in ast.walk(node) if isinstance(each, ast.Expr)]  # whose answers nobody keeps
        alone = {base_of(each) for each in ends if isinstance(each, ast.Call)} - HARMLESS
        stores = [each for each in ast.walk(node) if isinstance(each, ast.Attribute | ast.Subscript)]
        touched = [each for call in calls if base_of(call.func) not in HARMLESS for each in call.args]
        touched += [each for each in stores if not isinstance(each.ctx, ast.Load)]
        changes = {base_of(each) for each in touched} | alone
        if isinstance(node, ast.If | ast.For | ast.While | ast.With | ast.Try):  # perhaps made, perhaps as before
            makes, changes = set(), changes | stored
        else:
            makes -= bound
        for loop in [each for each in ast.walk(node) if isinstance(each, ast.For)]:
            if {each.id for each in ast.walk(loop.target) if isinstance(each, ast.Name)} & changes:
                changes |= {each.id for each in ast.walk(loop.iter) if isinstance(each, ast.Name)}
        changes -= bound
    questions = Parts()
    questions.visit(copy.deepcopy(node))
    return Cell(name, ast.unparse(node), questions.texts, reads - bound, makes, changes - {""} - imported)


def base_of(node: ast.AST) -> str:
    """Return the name at the start of an expression such as table.loc[0].sum(), or nothing."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


class Chapter:
    """The statements of a chapter's cells, and which of them another one needs."""

    def __init__(self, name: str):
        parts = [(cell, node) for cell, code in code_cells(name) for node in ast.parse(code).body]
        nodes = [node for _, part in parts for node in ast.walk(part)]
        lines = [node.names for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
        imported = {(alias.asname or alias.name).split(".")[0] for names in lines for alias in names}
        self.cells = [analysed(*part, imported) for part in parts]
        made_of = {}  # what an adapter changes when it is removed is its model
        for cell in self.cells:
            cell.changes |= {other for name in cell.changes for other in made_of.get(name, ())}
            made_of |= dict.fromkeys(cell.makes, cell.changes)
        self.recorded = self.tainted(LOADERS)

    def sources(self, place: int, names: Iterable[str]) -> set[int]:
        """Return the cells before a place that made these names or changed what they stand for."""
        found = set()
        for name in names:
            for before in range(place - 1, -1, -1):
                cell = self.cells[before]
                if name in cell.makes | cell.changes:
                    found.add(before)
                if name in cell.makes:
                    break
        return found

    def tainted(self, pattern: re.Pattern) -> set[int]:
        """Return the cells that speak of the pattern or need one that does."""
        found = set()
        for place, cell in enumerate(self.cells):
            if pattern.search(cell.code) or self.sources(place, cell.reads) & found:
                found.add(place)
        return found

    def parts(self, recorded: bool = False) -> set[tuple[str, str]]:
        """Return the asserts' parts, all of them or those about recorded results alone."""
        places = self.recorded if recorded else range(len(self.cells))
        return {(self.cells[n].name, text) for n in places for text in self.cells[n].parts if names_in(text)}

    def needed(self, wanted: set[tuple[str, str]]) -> list[Cell]:
        """Return the statements that ask these parts of asserts and those that they need, in order."""
        asking = {n for n, cell in enumerate(self.cells) if {(cell.name, text) for text in cell.parts} & wanted}
        return self.with_needed(asking)

    def with_needed(self, places: set[int]) -> list[Cell]:
        """Return the statements at some places and those that they need, in order."""
        places = places | {place for place in range(max(places, default=0)) if EFFECTS.search(self.cells[place].code)}
        for place in range(len(self.cells) - 1, -1, -1):
            if place in places:
                places |= self.sources(place, self.cells[place].reads)
        return [self.cells[place] for place in sorted(places)]


def changed(answer: Any, number: Callable, all_kinds: bool = False) -> Any:
    """Return an answer of the same form whose numbers are others: number(array) gives those for an array.

    Settings in tables, and whole numbers and truths in groups of numbers, stay as they are unless all kinds are to
    change: they say which run a number is of. Positions of entries always stay.
    """
    if isinstance(answer, bool | int | float | np.number | np.bool_):
        value = float(number(np.array(float(answer))))
        value = value if isinstance(answer, float) else np.nan_to_num(value)
        return bool(value > 0.5) if isinstance(answer, bool | np.bool_) else type(answer)(value)
    if isinstance(answer, np.ndarray) and answer.dtype.kind in ("fiub" if all_kinds else "f"):
        return number(answer) if answer.dtype.kind == "f" else number(answer.astype(float)).astype(answer.dtype)
    if isinstance(answer, torch.Tensor) and answer.is_floating_point() and not answer.is_meta:
        numbers = number(answer.detach().cpu().double().numpy())
        return torch.from_numpy(np.array(numbers)).to(answer.dtype).requires_grad_(answer.requires_grad)
    if isinstance(answer, torch.Tensor) and all_kinds and not answer.is_meta:  # whole numbers, truths
        return torch.from_numpy(np.nan_to_num(number(answer.double().numpy()), posinf=9.0)).to(answer.dtype)
    if isinstance(answer, pd.DataFrame):
        names = [name for name in answer if all_kinds or name not in SETTINGS and answer[name].dtype.kind == "f"]
        answer = answer.copy()
        for name in names:
            answer[name] = changed(answer[name], number, all_kinds)
        return answer
    if isinstance(answer, pd.Series):
        if answer.dtype.kind in "fiub":
            return pd.Series(number(answer.to_numpy(float)), answer.index)
        return answer.map(lambda each: changed(each, number, all_kinds)) if all_kinds else answer
    if isinstance(answer, dict):
        fixed = [n for n, part in answer.items() if isinstance(part, int | str) or n in ("density", "learning_rate")]
        kept = [] if all_kinds else fixed
        return {n: part if n in kept else changed(part, number, all_kinds) for n, part in answer.items()}
    if isinstance(answer, types.GeneratorType):
        return [changed(part, number, all_kinds) for part in answer]
    if isinstance(answer, list | tuple) and not hasattr(answer, "_fields"):
        return type(answer)(changed(part, number, all_kinds) for part in answer)
    if isinstance(answer, torch.nn.Module) and all_kinds:
        answer = copy.deepcopy(answer)
        for weight in answer.parameters():
            weight.data = changed(weight.data, number)
        return answer
    if isinstance(answer, types.SimpleNamespace):
        return types.SimpleNamespace(**changed(vars(answer), number, all_kinds))
    if type(answer).__name__ in NUMBERS:
        fields = [field.name for field in dataclasses.fields(answer) if field.name != "config"]
        return dataclasses.replace(answer, **{n: changed(getattr(answer, n), number, all_kinds) for n in fields})
    return answer


def halved(value: Any) -> Any:
    """Return the first half of a group of anything: the rest was lost."""
    if isinstance(value, pd.DataFrame | pd.Series):
        return value.iloc[: len(value) // 2]
    if isinstance(value, dict):
        return dict(list(value.items())[: len(value) // 2])
    if isinstance(value, list | tuple | set | str):
        return type(value)(list(value)[: len(value) // 2]) if not isinstance(value, str) else value[: len(value) // 2]
    return value[: len(value) // 2] if isinstance(value, np.ndarray | torch.Tensor) and value.ndim else value


def exchanged(value: Any) -> Any:
    """Return a group in the other order: the first has what belongs to the last one, and so on."""
    if isinstance(value, dict):
        return dict(zip(value, exchanged([*value.values()]), strict=True))
    return value[::-1] if isinstance(value, list | tuple) else value


def reworded(value: Any) -> Any:
    """Return a group of texts with other texts in it."""
    if isinstance(value, dict):
        return {name: reworded(part) for name, part in value.items()}
    if isinstance(value, pd.DataFrame | pd.Series):
        return value.map(reworded)
    if isinstance(value, list | tuple | set) and not hasattr(value, "_fields"):
        return type(value)(map(reworded, value))
    return "another text" if isinstance(value, str) else value
