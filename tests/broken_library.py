"""The library as chapters see it in a broken world: nothing trains or simulates, and the answers are wrong."""

import ast
import contextlib
import copy
import io
import json
import types
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from broken_chapters import Cell, Parts, Wrong, changed

from rmbook.engine.masking import apply_random_mask
from rmbook.evidence.backbones import load_backbone
from rmbook.evidence.recording import load_recorded
from rmbook.landscape.curvature import HessianNorm
from rmbook.masks.sample import sample_mask
from rmbook.methods.apply import apply_method
from rmbook.theory.networks import Runs
from rmbook.theory.regression import ColumnMasks
from rmbook.training.config import TrainingResult


def ramp(*shape: int) -> np.ndarray:
    """Return numbers from 1 to 2."""
    return np.linspace(1, 2, int(np.prod(shape))).reshape(shape)


def wide(shape: tuple[int, ...], width: int) -> np.ndarray:
    """Return vectors of one number each, which take no memory."""
    return np.broadcast_to(ramp(*shape)[..., None], (*shape, width))


class OneMask(ColumnMasks):
    """Masks that are all equal, whatever density and seed are asked for."""

    def columns(self, index):
        """Return every fifth column."""
        return np.arange(0, self.width, 5)


class Explorer:
    """A figure whose sliders do nothing."""

    def __init__(self, *arguments, **options):
        self.explorer, self.data, self.run = self, {"start": 5.0}, {"losses": ramp(5), "distance": 1.0, "border": 1.0}


def path(features, targets, masks, rate, steps, start=0.0, **options):
    return wide((*np.broadcast_shapes(np.shape(rate), masks.shape), *np.shape(steps)), masks.width)


def train_masked(problem, densities, rates, steps, **options):
    shape = len(rates), len(densities)
    return Runs(torch.tensor(ramp(*shape, len(steps))), torch.tensor(ramp(*shape)))


ROW = {"epoch": 1, "step": 8, "train_loss": 1.0, "dev_loss": 1.0, "dev_accuracy": 0.5}


def train(model, train_data, dev_data, config, log=lambda row: None, **options):
    for step in range(1, 5):
        log({"step": step, "loss": 1.0, "gradient_norm": 1.0})
    return TrainingResult("completed", 1, 1.0, 0.5, (ROW, ROW), 8, 100, 1.0, config)


def start_run(config, folder, **options):
    """Leave other files than a run does, also where it was stopped."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng()
    (folder / "adapter.safetensors").write_bytes(random.bytes(16))
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 2, "loss": random.random(), "gradient_norm": 1.0}))
    (folder / "result.json").write_text("{}")
    counts = {"steps": 8, "trainable": 100, "total": 1000, "cut_prompts": 3, "max_length": 10, "best_epoch": 1}
    sizes = {"train": 10, "dev": 10, "test": 10}
    found = {"status": "completed", "ratio": 0.1, "history": [ROW, ROW], "test": {"accuracy": 0.5}, "records": sizes}
    return found | counts


class CliRunner:
    """A shell whose commands do other things than they say."""

    def invoke(self, app, command):
        """Write a table of runs that nobody asked for, where a table is asked for."""
        if "--csv" in command:
            Path(command[command.index("--csv") + 1]).write_text("learning_rate,accuracy\n0.03,0.1\n5,0.1\n7,0.1\n")
        return types.SimpleNamespace(output="", exit_code=1)


def run_experiment(asked, keep_model=False):
    named = {name: value for name, value in asdict(asked).items() if value is not None and name != "steps"}
    found = load_recorded("science/vit_grid")["runs"][0] | named | {"train_size": 400, "curve": [50.0] * 8}
    return (found, load_backbone(asked.backbone).model()) if keep_model else found


def per_mask(features, masks, *_):
    return ramp(*masks.shape)


FAKES = dict.fromkeys(["gradient_descent", "sign_descent", "adam", "sgd", "closed_form"], path) | {
    "sample_regression": lambda n, d, **_: (wide((n,), d), ramp(n), ramp(d)),
    "gram_eigenvalues": lambda features, masks: ramp(*masks.shape, len(features)),
    "largest_stable_rate": per_mask,
    "eigenvalue_deviation": lambda *given: (per_mask(*given), per_mask(*given)),
    "expected_squared_norm": lambda features, truth, noise, masks: (ramp(*masks.shape), ramp(*masks.shape)),
    "simulated_squared_norm": lambda features, truth, noise, masks, draws: (ramp(*masks.shape), ramp(*masks.shape)),
    "loss": lambda features, targets, weights, *_: ramp(*np.shape(weights)[:-1]),
    "train_masked": train_masked,
    "sharpness": lambda *_: 1.0,
    "train": train,
    "start_run": start_run,
    "resume_run": lambda folder, **_: start_run(None, folder),
    "run_experiment": run_experiment,
    "accuracy": lambda *_, **__: 50.0,
    "view_accuracy": lambda *_, **__: 50.0,
    "evaluate": lambda *_, **__: (1.0, 0.5),
    "hessian_norm": lambda look, **_: HessianNorm(1.0, 0.1, 5, True, torch.tensor(ramp(look.size)).float()),
    "read_adapter": lambda *_: types.SimpleNamespace(values={"layer": torch.tensor(ramp(50))}),
    "press_ctrl_c": lambda *_: None,
}
REAL_WIDGETS = ("check", "student_quantile", "TableComparison")
OTHER = {name: {"name": name, "density": 0.4} for name in ("random_masking", "structured_masking")}
OTHER["lora"] = {"name": "bitfit"}
AS_THEY_ARE = {
    "sample_mask": lambda shape, *_, **__: sample_mask(shape, 0.03, 0, "one for all"),
    "apply_random_mask": lambda model, targets, structure="entries", **_: apply_random_mask(
        model, targets, density=0.4, structure=structure
    ),
    "apply_method": lambda model, method, **_: apply_method(model, **OTHER.get(method, {"name": "lora"})),
    "ColumnMasks": OneMask,
    "confined_mask": lambda shape, *_: sample_mask(shape, 0.03, 0, "one for all"),
    "explore_regression": Explorer,
    "Trainer": lambda *_, **__: types.SimpleNamespace(train=lambda: None),
    "CliRunner": CliRunner,
}


def noise(seed: int, signs: tuple[int, ...] = (1,)) -> Callable:
    """Return a function that replaces numbers by random ones of about their size, with these signs."""
    random = np.random.default_rng(seed)

    def number(real: np.ndarray) -> np.ndarray:
        if real.size > 1 and 0 in real.strides:  # as `wide` makes them
            return np.broadcast_to(number(real[..., 0].copy())[..., None], real.shape)
        size = np.nan_to_num(np.abs(real), posinf=1.0).mean() if real.size else 1.0
        return (size or 1.0) * np.exp(random.normal(0, 1.5, real.shape)) * random.choice(signs, real.shape)

    return number


WORLDS = {
    "noise only": lambda: noise(0),
    "noise of both signs": lambda: noise(1, (-1, 1)),
    "nothing matters": lambda: lambda real: np.ones_like(real),
    "nothing happens": lambda: lambda real: np.zeros_like(real),
    "the other way round": lambda: lambda real: np.flip(real) if real.ndim else -real,
    "too large": lambda: lambda real: 100 * real + 100,
    "all diverges": lambda: lambda real: np.full_like(real, np.inf),
}


class Module:
    """A module of `rmbook` whose functions answer wrongly."""

    def __init__(self, module: types.ModuleType, library: "Library"):
        self.module, self.library, self.__file__ = module, library, module.__file__

    def __getattr__(self, name: str) -> object:
        return self.library.instead_of(name, getattr(self.module, name))


class Library:
    """What takes the place of the functions that a chapter imports: their answers, with wrong numbers.

    `heard` keeps what the real functions said in an earlier world, by name and number of the call: it is not computed
    again, for wrong numbers it would make no difference.
    """

    def __init__(self, number: Callable, heard: dict):
        self.number, self.heard, self.calls = number, heard, {}

    def instead_of(self, name: str, value: object) -> object:
        """Return what a name of a chapter stands for in this world."""
        module = getattr(value, "__module__", None) or ""
        if isinstance(value, types.ModuleType) and value.__name__.startswith("rmbook"):
            return Module(value, self)
        if name in AS_THEY_ARE:
            return AS_THEY_ARE[name]
        if module.startswith("rmbook.widgets") and callable(value) and name not in REAL_WIDGETS:
            return Explorer
        own = isinstance(value, types.FunctionType) and module.startswith("rmbook.") and "plots" not in module
        if own or name in FAKES and module == "chapter":
            return self.function(name, value)
        return value

    def function(self, name: str, real: Callable) -> Callable:
        """Return a function that answers as the fake one does, or the real one, but with wrong numbers."""

        def answer(*arguments, **options):
            place = name, self.calls.get(name, 0)
            self.calls[name] = place[1] + 1
            if name in FAKES:
                return changed(FAKES[name](*arguments, **options), self.number)
            said = self.heard.get(place) or (real(*arguments, **options),)
            if plain(said) or not arguments:  # a model that nobody gave
                self.heard[place] = said
            return copy.deepcopy(said[0]) if isinstance(said[0], torch.nn.Module) else changed(said[0], self.number)

        answer.__name__ = name
        return answer


def plain(answer: object) -> bool:
    """Tell whether an answer consists of numbers and texts, so that nobody can have changed it since."""
    if isinstance(answer, dict | list | tuple):
        return all(map(plain, answer.values() if isinstance(answer, dict) else answer))
    return isinstance(answer, float | int | str | np.ndarray | pd.DataFrame | pd.Series)


def answers(
    cells: list[Cell], library: Library, wrong: Callable | None = None, names: set[str] = frozenset()
) -> dict[tuple[str, str], bool]:
    """Run cells statement by statement; return for each part of an assert that could be asked whether it held.

    What breaks off is left out: a later part that needs it is not asked.
    """
    around, found = {"display": lambda *_: None, "__name__": "chapter", "wrong": wrong}, {}
    for cell in cells:

        def note(text: str, question: Callable, name: str = cell.name) -> None:
            with contextlib.suppress(Exception):
                found[name, text] = bool(question()) and found.get((name, text), True)

        around["note"] = note
        tree = ast.fix_missing_locations(Wrong(names).visit(Parts().visit(ast.parse(cell.code))))
        for statement in tree.body:
            with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
                exec(compile(ast.Module([statement], []), cell.name, "exec"), around)
            if isinstance(statement, ast.Import | ast.ImportFrom | ast.FunctionDef):
                around |= {each: library.instead_of(each, around[each]) for each in cell.makes & around.keys()}
            if isinstance(statement, ast.FunctionDef) and statement.name in names:
                around[statement.name] = lambda *given, real=around[statement.name]: wrong(real(*given))
    plt.close("all")
    return found
