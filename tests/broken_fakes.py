"""What answers in place of the library's slow functions in a broken world: cheap, and of the right form."""

import copy
import functools
import json
import types
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from broken_chapters import changed
from transformers import BertConfig, BertModel

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


def look_at(model, *_, **__):
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    return Look([*trained], torch.tensor(ramp(sum(trained.values()))).float())


@functools.cache
def small_minilm() -> PromptClassifier:
    """Return a classifier of sentences that has learned nothing, with few weights."""
    config = BertConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    encoder = BertModel(config, add_pooling_layer=False).eval()
    return PromptClassifier(encoder, load_backbone("minilm").objective.collate.__self__.tokenizer)


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
