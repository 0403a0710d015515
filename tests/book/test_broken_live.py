"""live"""
import contextlib, io, os, re, sys, time, types, ast, dataclasses
from functools import partial
from pathlib import Path
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from broken_chapters import BOOK, Parts, changed, code_cells, names_in
from rmbook.evidence.recording import load_recorded
from rmbook.landscape.curvature import HessianNorm
from rmbook.masks.sample import sample_mask
from rmbook.theory.networks import Runs
from rmbook.training.config import TrainingConfig, TrainingResult

LOADERS = re.compile(r"\b(load_runs|load_paper_table|load_score_rows|load_interference|find_recorded)\b")


def ramp(*shape):
    """Numbers from 1 to 2."""
    return np.linspace(1, 2, int(np.prod(shape))).reshape(shape)

def wide(shape, width):
    return np.broadcast_to(ramp(*shape)[..., None], (*shape, width))

def path(features, targets, masks, rate, steps, start=0.0, **options):
    return wide((*np.broadcast_shapes(np.shape(rate), masks.shape), *np.shape(steps)), masks.width)

def regression(n, d, seed=0, noise=0.0):
    return wide((n,), d), ramp(n), ramp(d)

def networks(problem, densities, rates, steps, **options):
    shape = len(rates), len(densities)
    return Runs(torch.tensor(ramp(*shape, len(steps))), torch.tensor(ramp(*shape)))

def train(model, train_data, dev_data, config, log=None, **options):
    history = [{"epoch": k, "step": k, "train_loss": 1.0, "dev_loss": 1.0, "dev_accuracy": 0.5} for k in (1, 2)]
    for k in range(4):
        if log: log({"step": k, "loss": 1.0, "gradient_norm": 1.0})
    return TrainingResult("completed", 1, 1.0, 0.5, tuple(history), 8, 100, 1.0, config)

def started(config, folder, progress=True):
    row = {"epoch": 1, "step": 8, "train_loss": 1.0, "dev_loss": 1.0, "dev_accuracy": 0.5}
    return {"status": "completed", "steps": 8, "trainable": 100, "total": 1000, "ratio": 0.1, "best_epoch": 1, "history": [row, row],
            "test": {"accuracy": 0.5}, "records": {"train": 10, "dev": 10, "test": 10}, "cut_prompts": 3, "max_length": 10}

def experiment(asked, keep_model=False):
    from rmbook.evidence.backbones import load_backbone
    template = load_recorded("science/vit_grid")["runs"][0]
    found = template | {n: v for n, v in dataclasses.asdict(asked).items() if v is not None and n != "steps"}
    found |= {"train_size": asked.train_size or 400, "curve": [50.0] * 8, "steps": asked.steps or 200}
    return (found, load_backbone(asked.backbone).model()) if keep_model else found

class Explorer:
    def __init__(self, number):
        self.number = number
        self.data = {"start": float(number(np.array(1.0)))}
    @property
    def run(self):
        return {"losses": self.number(ramp(5)), "distance": float(self.number(np.array(1.0)))}

FAKES = {
    "gradient_descent": path, "sign_descent": path, "adam": path, "sgd": path, "closed_form": path,
    "sample_regression": regression,
    "gram_eigenvalues": lambda features, masks: ramp(*masks.shape, len(features)),
    "largest_stable_rate": lambda features, masks: ramp(*masks.shape),
    "eigenvalue_deviation": lambda features, masks: (ramp(*masks.shape), ramp(*masks.shape)),
    "loss": lambda features, targets, weights, *_: ramp(*np.shape(weights)[:-1]),
    "expected_squared_norm": lambda features, truth, noise, masks: (ramp(*masks.shape), ramp(*masks.shape)),
    "simulated_squared_norm": lambda features, truth, noise, masks, draws: (ramp(*masks.shape), ramp(*masks.shape)),
    "explore_regression": None,
    "train_masked": networks, "sharpness": lambda *_: 1.0,
    "train": train, "start_run": started, "resume_run": lambda *_, **__: started(None, None), "run_experiment": experiment,
    "accuracy": lambda *_, **__: 50.0, "evaluate": lambda *_, **__: (1.0, 0.5), "view_accuracy": lambda *_, **__: 50.0,
    "hessian_norm": lambda look, **_: HessianNorm(1.0, 0.1, 5, True, torch.tensor(ramp(look.size))),
    "loss_along_gradient": lambda look, rates, *_: ramp(len(rates)),
    "in_turn": lambda steps, rounds=15: {name: 1.0 for name in steps},
    "press_ctrl_c": lambda *_: None,
}
MASKED = {"sample_mask": lambda shape, *_, **__: sample_mask(shape, 0.03, 0, "one for all")}
SILENT = ("rmbook.widgets", "rmbook.plots")

def noise(seed, signs=False):
    random = np.random.default_rng(seed)
    def number(real):
        real = np.asarray(real)
        if 0 in real.strides and real.size > 1:
            return np.broadcast_to(number(real[..., 0].copy())[..., None], real.shape)
        size = np.nanmean(np.abs(real)) if real.size else 1.0
        size = size if np.isfinite(size) and size > 0 else 1.0
        found = size * np.exp(random.normal(0, 1.5, real.shape))
        return found * random.choice([-1, 1], real.shape) if signs else found
    return number

WORLDS = {
    "noise": lambda: noise(0), "noise 2": lambda: noise(1), "signed": lambda: noise(2, True),
    "alike": lambda: lambda real: np.ones(np.shape(real)), "still": lambda: lambda real: np.zeros(np.shape(real)),
    "large": lambda: lambda real: 100 * np.asarray(real) + 100, "reversed": lambda: lambda real: np.flip(real) if np.ndim(real) else -real,
}

class Heard(dict):
    pass

def wrap(name, function, number, heard, count):
    def answered(*arguments, **options):
        if name == "explore_regression":
            return Explorer(number)
        if name in MASKED:
            return MASKED[name](*arguments, **options)
        key = name, count.setdefault(name, 0)
        count[name] += 1
        if FAKES.get(name):
            answer = FAKES[name](*arguments, **options)
        elif key in heard:
            answer = heard[key]
        else:
            answer = function(*arguments, **options)
            if plain(answer):
                heard[key] = answer
        return changed(answer, number)
    answered.__name__ = name
    answered.wrapped = True
    return answered

def plain(answer):
    if isinstance(answer, dict): return all(map(plain, answer.values()))
    if isinstance(answer, (list, tuple)): return all(map(plain, answer))
    return isinstance(answer, (float, int, str, np.ndarray, pd.DataFrame, pd.Series, torch.Tensor, type(None)))

def figures(chapter):
    cells, later, out = code_cells(chapter), set(), []
    for cell, text in reversed(cells):
        names = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Name)]
        made = {n.id for n in names if isinstance(n.ctx, ast.Store)}
        if "plt.show()" in text and not re.search(r"^\s*(assert|def) ", text, re.M) and not made & later:
            out.append(cell)
        else:
            later |= {n.id for n in names if isinstance(n.ctx, ast.Load)}
    return out

class Rmbook:
    def __init__(self, module, number, heard, count):
        self.module, self.rest = module, (number, heard, count)
    def __getattr__(self, name):
        value = getattr(self.module, name)
        return wrap(name, value, *self.rest) if isinstance(value, types.FunctionType) else value

def ask(chapter, number, heard, report=None, skip=()):
    around, found, count = {"display": lambda *_: None, "__name__": "chapter"}, {}, {}
    broke = []
    for cell, code in code_cells(chapter):
        if cell in skip: continue
        parts = Parts()
        tree = ast.fix_missing_locations(parts.visit(ast.parse(code)))
        def note(text, question, cell=cell):
            try:
                right = bool(np.all(question()))
            except NameError: return
            except Exception as error:
                found.setdefault((cell, text), set()).add(type(error).__name__); return
            found.setdefault((cell, text), set()).add(right)
        around["note"] = note
        t=time.process_time()
        for statement in tree.body:
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    exec(compile(ast.Module([statement], []), cell, "exec"), around)
            except (Exception, SystemExit) as error:
                broke.append((cell, type(error).__name__, str(error)[:100]))
            for name, value in list(around.items()):
                module = getattr(value, "__module__", None) or ""
                if getattr(value, "wrapped", False) or not isinstance(module, str): continue
                if isinstance(value, types.ModuleType):
                    if value.__name__ == "rmbook": around[name] = Rmbook(value, number, heard, count)
                elif module.startswith("rmbook.widgets") and callable(value) and name not in FAKES and name != "student_quantile":
                    around[name] = lambda *_, **__: None
                elif LOADERS.fullmatch(name):
                    def lost(*_, **__): raise FileNotFoundError("recorded")
                    lost.wrapped = True
                    lost.real = value if not hasattr(value, "real") else value.real
                    around[name] = lost
                elif isinstance(value, types.FunctionType) and (module.startswith("rmbook.") and not module.startswith("rmbook.plots") or name in FAKES):
                    around[name] = wrap(name, value, number, heard, count)
        if report is not None:
            report.append((time.process_time()-t, cell, [b for b in broke if b[0]==cell]))
        plt.close("all")
    return found, broke
