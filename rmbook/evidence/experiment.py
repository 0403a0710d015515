"""One fine-tuning run of the chapters of experiments, from its settings to its numbers, on any backbone."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from rmbook.checks import scale_factor
from rmbook.engine.masking import apply_masks
from rmbook.evidence.backbones import Backbone, load_backbone
from rmbook.evidence.changes import distance_from
from rmbook.evidence.mask_choices import choose_masks
from rmbook.landscape.curvature import hessian_norm
from rmbook.landscape.landscape import Landscape
from rmbook.methods.applied_method import AppliedMethod
from rmbook.methods.apply import apply_method, full_finetuning
from rmbook.methods.settings import METHOD_SETTINGS
from rmbook.training.config import TrainingConfig
from rmbook.training.evaluation import evaluate
from rmbook.training.objectives import Objective
from rmbook.training.train import train

APPLIED = ("lora", "structured_masking", "adalora", "adapter", "prefix", "bitfit")  # at the settings of `apply_method`
METHODS = ("full", "mask", *APPLIED)
MASKING = ("mask", "structured_masking")
HESSIAN_EXAMPLES = 128  # of the training data: the norm over more differs by less than between two masks
TOLERANCE = 1e-2  # of the residual; the norm's own error is about its square


@dataclass(frozen=True)
class Experiment:
    """Settings of a run; what is None is the backbone's own.

    Attributes:
        learning_rate: of AdamW, constant.
        method: "full", "mask", or one of `rmbook.methods.apply.METHODS` at its defaults: "lora", "structured_masking",
            "adalora", "adapter", "prefix" or "bitfit".
        density: of a mask, random or structured, in each target layer.
        seed: of the mask or the factors, and of the order of the examples.
        mask_seed: of the mask, where it is not the same.
        backbone, base: see `rmbook.evidence.backbones.load_backbone`.
        choice: which entries are trained; see `rmbook.evidence.mask_choices.choose_masks`.
        scale: S = scale * values, or "inverse_density" for 1 / density.
        start: "pretrained", "shuffled" or "new"; see `rmbook.evidence.backbones.Backbone.model`.
        steps: optimiser steps; whole epochs are run, so it is rounded to those.
        train_size: training examples.
        hessian: measure the Hessian's norm before and after; some 30 gradients each.
    """

    learning_rate: float
    method: str = "mask"
    density: float | None = None
    seed: int = 0
    backbone: str = "vit"
    choice: str = "entries"
    scale: float | str = 1.0
    start: str = "pretrained"
    steps: int | None = None
    train_size: int | None = None
    mask_seed: int | None = None
    hessian: bool = False
    base: int = 0

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}.")
        if (self.density is None) == (self.method in MASKING):
            got = f"{self.method}, density {self.density}"
            raise ValueError(f"a mask needs a density and no other method takes one, got {got}.")


def run_experiment(settings: Experiment, keep_model: bool = False) -> dict | tuple[dict, nn.Module]:
    """Carry a run out by the paper's protocol: the epoch of lowest dev loss is tested.

    Args:
        settings: what to run.
        keep_model: return the trained model, too.

    Returns:
        The settings that are not their defaults, and: status ("completed" or "diverged"), steps, best_epoch, dev_loss,
        dev_accuracy and test_accuracy in percent, trainable, ratio, distance (`distance_from`) at the best epoch, curve
        (dev accuracy in percent after each epoch), seconds; hessian_before and hessian_after if asked for.
    """
    backbone = load_backbone(settings.backbone, settings.base)
    model, method = put_method(backbone, settings)
    data = backbone.train_data(settings.train_size)
    landscape = settings.hessian and look_at(model, backbone)
    before = {"hessian_before": hessian_norm(landscape, tolerance=TOLERANCE).norm} if landscape else {}
    start = backbone.model(settings.start, settings.seed)
    config = TrainingConfig(
        learning_rate=settings.learning_rate,
        epochs=epochs(backbone, settings.steps, len(data)),
        batch_size=backbone.batch_size,
        seed=settings.seed,
    )
    given = {"objective": backbone.objective, "method": method, "progress": False}
    result = train(model, data, backbone.data["dev"], config, **given)
    trained = result.best_epoch > 0  # else it diverged at once, and the model is what it was
    after = {"hessian_after": hessian_norm(landscape, tolerance=TOLERANCE).norm} if landscape and trained else {}
    own = {entry.name: getattr(settings, entry.name) for entry in dataclasses.fields(settings)}
    measured = {name: value for name, value in own.items() if name == "seed" or value != _DEFAULTS[name]}
    measured |= {
        "status": result.status,
        "steps": result.steps,
        "best_epoch": result.best_epoch,
        "dev_loss": result.dev_loss if math.isfinite(result.dev_loss) else None,
        "dev_accuracy": 100 * result.dev_accuracy if trained else None,
        "test_accuracy": accuracy(model, backbone.objective, backbone.data["test"]),
        "trainable": result.trainable,
        "ratio": result.trainable / sum(parameter.numel() for parameter in start.parameters()),
        "distance": distance_from(start, model),
        "curve": [round(100 * row["dev_accuracy"], 2) for row in result.history],
        "seconds": round(result.seconds, 2),
    }
    measured |= before | after
    return (measured, model) if keep_model else measured


def prepare_model(backbone: Backbone, settings: Experiment) -> nn.Module:
    """Return a fresh model with the method on it, before any step."""
    return put_method(backbone, settings)[0]


def put_method(backbone: Backbone, settings: Experiment) -> tuple[nn.Module, AppliedMethod | None]:
    """Return a fresh model with the method on it, and the method's handle where `apply_method` gave one."""
    model = backbone.model(settings.start, settings.seed)
    if settings.method in APPLIED:
        given = {"targets": backbone.targets, "density": settings.density, "seed": settings.seed}
        taken = METHOD_SETTINGS[settings.method].takes
        chosen = {name: value for name, value in given.items() if name in taken}
        return model, apply_method(model, settings.method, **chosen)
    if settings.method == "full":
        return full_finetuning(model, exclude=backbone.fixed), None
    data = backbone.train_data(min(HESSIAN_EXAMPLES, backbone.train_size))
    seed = settings.seed if settings.mask_seed is None else settings.mask_seed
    chosen = {"seed": seed, "objective": backbone.objective, "data": data}
    masks = choose_masks(model, backbone.targets, settings.choice, settings.density, **chosen)
    apply_masks(model, masks, scale=scale_factor(settings.scale, settings.density))
    return model, None


def look_at(model: nn.Module, backbone: Backbone, examples: int = HESSIAN_EXAMPLES) -> Landscape:
    """Return the loss over the first training examples as a function of what the model trains."""
    data = backbone.train_data(min(examples, backbone.train_size))
    return Landscape(model, data, backbone.objective, batch_size=HESSIAN_EXAMPLES)


def epochs(backbone: Backbone, steps: int | None, examples: int) -> int:
    """Return the whole epochs that come nearest to a number of steps, the backbone's own if None; at least 1."""
    return max(1, round((steps or backbone.steps) / math.ceil(examples / backbone.batch_size)))


def accuracy(model: nn.Module, objective: Objective, data: Sequence) -> float:
    """Return the share of right answers in percent."""
    return 100 * evaluate(model, data, objective)[1]


_DEFAULTS = {f.name: f.default for f in dataclasses.fields(Experiment)}
