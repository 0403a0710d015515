"""The library as chapters see it in a broken world: its answers are wrong, and figures draw nothing."""

import ast
import collections
import contextlib
import copy
import functools
import io
import re
import types
from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from broken_chapters import Cell, Parts, changed, names_in
from broken_fakes import FAKES, Explorer, as_they_are

REAL_WIDGETS = ("check", "student_quantile", "TableComparison", "CollapseExplorer", "Curve")


def noise(seed: int, signs: tuple[int, ...] = (1,)) -> Callable:
    """Return a function that replaces numbers by random ones of about their size, with these signs."""
    random = np.random.default_rng(seed)

    def number(real: np.ndarray) -> np.ndarray:
        if real.size > 1 and 0 in real.strides:  # as `wide` makes them
            return np.broadcast_to(number(real[..., 0].copy())[..., None], real.shape)
        size = np.nan_to_num(np.abs(real), posinf=1.0).mean() if real.size else 1.0
        count = min(real.size, 2**16 + 1)  # of different ones: a model has millions
        drawn = (size or 1.0) * np.exp(random.normal(0, 1.5, count)) * random.choice(signs, count)
        return np.resize(drawn, real.shape)

    return number


WORLDS = {
    "noise only": lambda: noise(0),
    "noise of both signs": lambda: noise(1, (-1, 1)),
    "nothing matters": lambda: lambda real: np.ones_like(real),
    "nothing happens": lambda: lambda real: np.zeros_like(real),
    "the other way round": lambda: lambda real: np.flip(real) if real.ndim else -real,
    "too large": lambda: lambda real: 100 * real + 100,
    "all diverges": lambda: lambda real: np.full_like(real, np.inf),
    "noise again": lambda: noise(2),
    "noise once more": lambda: noise(3, (-1, 1)),
}


class Module:
    """A module of `rmbook` whose functions answer wrongly."""

    def __init__(self, module: types.ModuleType, library: "Library"):
        self.module, self.library, self.__file__ = module, library, module.__file__

    def __getattr__(self, name: str) -> object:
        return self.library.instead_of(name, getattr(self.module, name))


class Library:
    """What takes the place of the functions that a chapter imports: their answers, with wrong numbers.

    `heard` keeps what the real functions said in an earlier world, by `call_of`: it is not computed again, for wrong
    numbers it would make no difference.
    """

    def __init__(self, number: Callable, heard: dict):
        self.number, self.heard, self.others = number, heard, as_they_are(number)
        self.calls = collections.Counter()

    def instead_of(self, name: str, value: object) -> object:
        """Return what a name of a chapter stands for in this world."""
        module = getattr(value, "__module__", None) or ""
        if value is plt:
            return Drawing()
        if isinstance(value, types.ModuleType) and value.__name__.startswith("rmbook"):
            return Module(value, self)
        if name in self.others:
            return self.others[name]
        if module.startswith("rmbook.widgets") and callable(value) and name not in REAL_WIDGETS:
            return Explorer
        own = isinstance(value, types.FunctionType) and module.startswith("rmbook.") and "plots" not in module
        if own or name in FAKES and module.startswith(("rmbook.", "chapter")):
            return self.function(name, value)
        return value

    def call_of(self, name: str, arguments: tuple, options: dict) -> object:
        """Return a name for a call that says the same in each world, but for the wrong numbers; None if it may not."""
        self.calls[name] += 1
        return self.statement, name, self.calls[name]

    def function(self, name: str, real: Callable) -> Callable:
        """Return a function that answers as the fake one does, or the real one, but with wrong numbers."""

        def answer(*arguments, **options):
            if name in FAKES:
                return changed(FAKES[name](*arguments, **options), self.number)
            call = self.call_of(name, arguments, options)
            said = self.heard.get(call) or (real(*arguments, **options),)
            if call and (plain(said) or plain(arguments) and not hasattr(said[0], "__enter__")):  # a model nobody gave
                self.heard[call] = said
            return copy.deepcopy(said[0]) if isinstance(said[0], torch.nn.Module) else changed(said[0], self.number)

        answer.__name__ = name
        return answer


def plain(answer: object) -> bool:
    """Tell whether an answer consists of numbers and texts, so that nobody can have changed it since."""
    if isinstance(answer, dict | list | tuple):
        return all(map(plain, answer.values() if isinstance(answer, dict) else answer))
    return isinstance(answer, float | int | str | np.ndarray | pd.DataFrame | pd.Series | None)


class Drawing:
    """A figure, an axis or anything else of matplotlib, which draws nothing."""

    def __getattr__(self, name: str) -> "Drawing":
        return self

    def __call__(self, *arguments, **options) -> "Drawing":
        return self

    def __getitem__(self, place) -> "Drawing":
        return self

    def __iter__(self):
        return iter(())

    def subplots(self, rows: int = 1, columns: int = 1, **options) -> tuple["Drawing", object]:
        """Return a figure and its axes, as many as were asked for."""
        axes = np.empty((rows, columns), object)
        for place in np.ndindex(axes.shape):
            axes[place] = self
        return self, axes.squeeze() if axes.size > 1 else self


@functools.cache
def compiled(name: str, code: str) -> types.CodeType:
    """Return code of a cell, compiled, whose asserts are questions."""
    return compile(ast.fix_missing_locations(Parts().visit(ast.parse(code))), name, "exec")


question = functools.cache(lambda text: compile(text, "an assert", "eval"))


def as_it_is(text: str, around: dict) -> bool:
    """Return whether a part of an assert holds."""
    said = eval(question(text), around)
    return bool(said.all() if hasattr(said, "all") else said)


def with_wrong(wrongs: list[Callable], text: str, around: dict) -> bool:
    """Return whether a part of an assert holds whatever is wrong with one of the things that it reads, or with all."""
    read = [name for name in names_in(text) if name in around]
    for wrong in wrongs:
        for names in [read, *([name] for name in read)]:
            with contextlib.suppress(Exception):
                if not as_it_is(text, around | {name: wrongly(around[name], wrong) for name in names}):
                    return False
    return True


def wrongly(value: object, wrong: Callable) -> object:
    """Return a wrong value, or a function that returns wrong ones."""
    return (lambda *given: wrong(value(*given))) if isinstance(value, types.FunctionType) else wrong(value)


def answers(
    cells: list[Cell], library: Library, holds: Callable[[str, dict], bool] = as_it_is
) -> dict[tuple[str, str], bool]:
    """Run statements; return for each part of an assert that could be asked whether it held.

    What breaks off is left out: a later part that needs it is not asked.
    """
    around, found = {"display": lambda *_: None, "__name__": "chapter"}, {}
    for cell in cells:

        def note(text: str, seen: dict, name: str = cell.name, others: dict = around) -> None:
            with contextlib.suppress(Exception):
                found[name, text] = holds(text, others | seen) and found.get((name, text), True)

        around["note"], library.statement = note, cell.code
        library.calls.clear()
        with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
            exec(compiled(cell.name, cell.code), around)
        if re.match(r"from |import |def |@", cell.code):
            around |= {each: library.instead_of(each, around[each]) for each in cell.makes & around.keys()}
    plt.close("all")
    return found
