"""The library as chapters see it in a broken world: nothing trains or simulates, and the answers are wrong."""

import ast
import collections
import contextlib
import copy
import functools
import io
import json
import re
import types
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from transformers import BertConfig, BertModel
from broken_chapters import Cell, Parts, changed, names_in

from rmbook.adapters.adapter_file import save_adapter
from rmbook.engine.masking import apply_random_mask
from rmbook.evidence.backbones import Backbone, load_backbone
from rmbook.evidence.recording import load_recorded
from rmbook.evidence.tiers import make_plan
from rmbook.landscape.curvature import HessianNorm
from rmbook.masks.sample import sample_mask
from rmbook.methods.apply import apply_method
from rmbook.offline.digits import MLP_TARGETS, PretrainingConfig, new_vit
from rmbook.offline.minilm import PromptClassifier
from rmbook.theory.networks import Runs
from rmbook.theory.regression import ColumnMasks
from rmbook.training.config import TrainingResult
from rmbook.training.objectives import Classification


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


@dataclass
class Images(torch.utils.data.Dataset):
    """Images of nothing, all of the same kind."""

    images: torch.Tensor
    large: torch.Tensor
    kind: float

    @classmethod
    def of(cls, split: str, *_, **__) -> "Images":
        """Return those of a split."""
        images = torch.tensor(ramp(400 if split == "train" else 40, 28, 28)).float()
        return cls(images[:, None, :8, :8], images, 1.0)

    @property
    def labels(self) -> torch.Tensor:
        """The same label for each image."""
        return torch.full([len(self)], int(np.clip(self.kind, 0, 9)))

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {"pixel_values": self.images[index], "labels": self.labels[index]}


@dataclass
class Look:
    """A landscape of one shape, whatever model it is of."""

    names: list[str]
    curvature: torch.Tensor
    height: float = 1.0

    @property
    def size(self) -> int:
        """The number of trained entries."""
        return len(self.curvature)

    def point(self) -> torch.Tensor:
        """Return where the model is."""
        return torch.zeros(self.size)

    def loss(self, *_) -> float:
        """Return the loss, which is the same everywhere."""
        return self.height

    def hessian_product(self, vector: torch.Tensor) -> torch.Tensor:
        """Return the product with a Hessian that has a diagonal alone."""
        return self.curvature * vector


def look_at(model, *_):
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    return Look([*trained], torch.tensor(ramp(sum(trained.values()))).float())


@functools.cache
def small_minilm() -> PromptClassifier:
    """Return a classifier of sentences that has learned nothing, with few weights."""
    config = BertConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    return PromptClassifier(BertModel(config, add_pooling_layer=False).eval(), load_backbone("minilm").objective.collate.__self__.tokenizer)


@functools.cache
def small_backbone(name: str = "vit", base: int = 0) -> Backbone:
    """Return a backbone whose model has learned nothing, and has few weights; it mostly answers 0."""
    if name == "minilm":
        model, real = small_minilm(), load_backbone(name)
        data = {split: examples[:40] if split == "test" else examples for split, examples in real.data.items()}
        return replace(real, objective=Classification(model.collate), data=data, _base=model)
    model = new_vit(PretrainingConfig(hidden_size=32, layers=3, seed=base)).eval()
    model.classifier.bias.data[0] = 1.0
    data = {split: Images.of(split) for split in ("train", "dev", "test")}
    return Backbone(name, MLP_TARGETS, ("classifier",), Classification(), data, 400, 16, 200, model)


@functools.cache
def small_plan(family: str) -> types.SimpleNamespace:
    """Return a plan whose model is loaded once."""
    plan = make_plan(family)
    names = [name for name in dir(plan) if not name.startswith("_")]
    return types.SimpleNamespace(**{name: getattr(plan, name) for name in names} | {"load": functools.cache(plan.load)})


def weight_changes(start, model):
    return {name: torch.tensor(ramp(*p.shape)).float() for name, p in start.named_parameters() if ".mlp." in name}


def path(features, targets, masks, rate, steps, start=0.0, **options):
    return wide((*np.broadcast_shapes(np.shape(rate), masks.shape), *np.shape(steps)), masks.width)


def train_masked(problem, densities, rates, steps, **options):
    shape = len(rates), len(densities)
    return Runs(torch.tensor(ramp(*shape, len(steps))), torch.tensor(ramp(*shape)))


ROW = {"epoch": 1, "step": 8, "train_loss": 1.0, "dev_loss": 1.0, "dev_accuracy": 0.5}


def train(number, model, train_data, dev_data, config, log=lambda row: None, **options):
    for weight in [weight for weight in model.parameters() if weight.requires_grad]:
        weight.data += changed(torch.ones_like(weight), number).detach()
    for step in range(1, 5):
        log({"step": step, "loss": 1.0, "gradient_norm": 1.0})
    return changed(TrainingResult("diverged", 1, 1.0, 0.5, (ROW, ROW), 8, 100, 1.0, config), number)


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
    return (found, small_backbone(asked.backbone).model()) if keep_model else found


def view_accuracy(model, *_, **__):
    model(pixel_values=Images.of("test").images)
    return 50.0


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
    "start_run": start_run,
    "resume_run": lambda folder, **_: start_run(None, folder),
    "run_experiment": run_experiment,
    "accuracy": lambda *_, **__: 50.0,
    "view_accuracy": view_accuracy,
    "evaluate": lambda *_, **__: (1.0, 0.5),
    "hessian_norm": lambda look, **_: HessianNorm(1.0, 0.1, 5, True, torch.tensor(ramp(look.size) / look.size).float()),
    "read_adapter": lambda *_: types.SimpleNamespace(values={"layer": torch.tensor(ramp(50))}),
    "press_ctrl_c": lambda *_: None,
    "in_turn": lambda steps, *_: dict.fromkeys(steps, 1.0),
    "loss_along_gradient": lambda look, rates: ramp(len(rates)),
    "loss_along_path": lambda look, start, fractions: ramp(len(fractions)),
    "weight_changes": weight_changes,
    "look_at": look_at,
    "learn_task": lambda *_, **__: (weight_changes(small_backbone().model(), None), ROW),
    "SmallMnist": Images.of,
    "Digits": Images.of,
}
REAL_WIDGETS = ("check", "student_quantile", "TableComparison")
OTHER = {name: {"name": name, "density": 0.4} for name in ("random_masking", "structured_masking")}
OTHER["lora"] = {"name": "bitfit"}


def as_they_are(number: Callable) -> dict[str, object]:
    """Return what answers in a form of its own, which no number changes; masks are all equal, and of one density."""
    density = float(np.clip(np.abs(number(np.array(0.4))), 0.01, 1))
    return {
        "sample_mask": lambda shape, *_, **__: sample_mask(shape, 0.03, 0, "one for all"),
        "confined_mask": lambda shape, *_: sample_mask(shape, 0.03, 0, "one for all"),
        "apply_random_mask": lambda model, targets, structure="entries", **_: apply_random_mask(
            model, targets, density=density, structure=structure
        ),
        "apply_method": lambda model, method, **_: apply_method(model, **OTHER.get(method, {"name": "lora"})),
        "train": functools.partial(train, number),
        "save_adapter": lambda masking, path, **_: save_adapter(masking, path, store_positions=True),
        "load_backbone": small_backbone,
        "load_minilm": lambda: copy.deepcopy(small_minilm()),
        "load_vit": lambda *_, **__: small_backbone().model(),
        "make_plan": small_plan,
        "ColumnMasks": OneMask,
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

    `heard` keeps what the real functions said in an earlier world, by name and number of the call: it is not computed
    again, for wrong numbers it would make no difference.
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


def answers(cells: list[Cell], library: "Library", holds: Callable[[str, dict], bool] = as_it_is) -> dict[tuple[str, str], bool]:
    """Run statements; return for each part of an assert that could be asked whether it held.

    What breaks off is left out: a later part that needs it is not asked.
    """
    around, found = {"display": lambda *_: None, "__name__": "chapter"}, {}
    for cell in cells:

        def note(text: str, seen: dict, name: str = cell.name) -> None:
            with contextlib.suppress(Exception):
                found[name, text] = holds(text, around | seen) and found.get((name, text), True)

        around["note"], library.statement = note, cell.code
        library.calls.clear()
        with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
            exec(compiled(cell.name, cell.code), around)
        if re.match(r"from |import |def |@", cell.code):
            around |= {each: library.instead_of(each, around[each]) for each in cell.makes & around.keys()}
    plt.close("all")
    return found
