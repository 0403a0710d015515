"""The settings of one fine-tuning run: from flags or from a file, checked, and stored with the run."""

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml

from rmbook.errors import ConfigError, closest
from rmbook.methods.apply import METHODS
from rmbook.tasks.catalog import find_task
from rmbook.training.config import TrainingConfig
from rmbook.training.learning_rate import suggest_learning_rate

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
MIXED_PRECISION = ("no", "bf16", "fp16")


@dataclass(frozen=True)
class RunConfig:
    """All that decides the outcome of a run; checked when made. Defaults are the paper's (appendix B).

    Attributes:
        model: name on the hub, or folder.
        task: one of the sixteen, see `rmbook.tasks.catalog`. The paper's settings
            for images are not the defaults: they are in the ready-made grid table2.
        learning_rate: of AdamW.
        method: see `rmbook.methods.apply.apply_method`.
        ratio: trained entries / all parameters of the model (masks only); of CLIP, of the image encoder with its
            projection. Give this or density.
        density: probability that an entry of a target matrix is trained (masks only).
        targets: preset or names of the target layers; the method's own if None.
        settings: further settings of the method, such as {"rank": 16}.
        revision: commit or branch of the model on the hub.
        data_dir: folder with the task's original files; None reads the hub's.
        seed: of the records drawn, the mask, the order of the batches and dropout.
        epochs, batch_size, micro_batch_size, max_grad_norm, weight_decay, schedule, warmup_steps, max_steps: see
            `rmbook.TrainingConfig`.
        train_size, dev_size, test_size: see `rmbook.tasks.splits.sample_splits`.
        max_length: longest prompt in tokens; 2,048 or what the model can take if None. Not for images.
        dtype: of the frozen weights: float32, bfloat16, float16 or float64.
        mixed_precision: "no", "bf16" or "fp16": computation under autocast, as `accelerate` does it.
        gradient_checkpointing: compute activations twice instead of keeping them.
        dropout: probability for all dropout layers of the model; its own if None.
    """

    model: str
    task: str
    learning_rate: float
    method: str = "random_masking"
    ratio: float | None = None
    density: float | None = None
    targets: tuple[str, ...] | str | None = None
    settings: dict = field(default_factory=dict)
    revision: str | None = None
    data_dir: str | None = None
    seed: int = 0
    epochs: int = 5
    batch_size: int = 8
    micro_batch_size: int | None = None
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    train_size: int = 1000
    dev_size: int | None = None
    test_size: int = 1000
    max_length: int | None = None
    dtype: str = "float32"
    mixed_precision: str = "no"
    gradient_checkpointing: bool = False
    dropout: float | None = None
    schedule: str = "constant"
    warmup_steps: int = 0
    max_steps: int | None = None

    def __post_init__(self):
        object.__setattr__(self, "task", find_task(self.task).name)
        if isinstance(self.targets, list):
            object.__setattr__(self, "targets", tuple(self.targets))
        for name, known in (("method", METHODS), ("dtype", DTYPES), ("mixed_precision", MIXED_PRECISION)):
            value = getattr(self, name)
            if value not in known:
                raise ConfigError(f"unknown {name} {value!r}: {closest(value, known)}")
        try:
            self.training()
        except ValueError as error:
            raise ConfigError(str(error)) from None
        masks = self.method.endswith("_masking")
        given = [name for name in ("ratio", "density") if getattr(self, name) is not None]
        if masks and len(given) != 1:
            raise ConfigError(f"{self.method} needs a ratio or a density, and not both; got {given or 'neither'}.")
        if given and not masks:
            raise ConfigError(f"{self.method} takes no {given[0]}: it belongs to random_masking, structured_masking.")
        for name in given:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
                raise ConfigError(f"{name} must be above 0 and at most 1, got {value!r}.")
        if self.dropout is not None and not (isinstance(self.dropout, int | float) and 0 <= self.dropout < 1):
            raise ConfigError(f"dropout must be at least 0 and below 1, got {self.dropout!r}.")
        if not isinstance(self.settings, dict):
            raise ConfigError(f"settings must map names to values, got {self.settings!r}.")
        for name, least in (("train_size", 1), ("dev_size", 1), ("test_size", 1), ("max_length", 2)):
            value = getattr(self, name)
            optional = value is None and name in ("dev_size", "max_length")
            if not optional and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise ConfigError(f"{name} must be an integer of at least {least}, got {value!r}.")
        if self.max_length is not None and not find_task(self.task).has_prompts:
            raise ConfigError(f"max_length is of prompts, and {self.task} has none: leave it out.")

    def training(self) -> TrainingConfig:
        """The settings of the training loop."""
        names = [entry.name for entry in dataclasses.fields(TrainingConfig)]
        return TrainingConfig(**{name: getattr(self, name) for name in names})

    def to_dict(self) -> dict:
        """All settings, fit for JSON, in the order of the fields."""
        settings = dataclasses.asdict(self)
        return settings | {"targets": list(self.targets) if isinstance(self.targets, tuple) else self.targets}

    def digest(self) -> str:
        """SHA-256 of all settings: equal for equal runs."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def default_folder(self) -> Path:
        """Where the run goes if no folder is named: runs/MODEL-TASK-METHOD-DIGEST."""
        return Path("runs") / f"{Path(self.model).name}-{self.task}-{self.method}-{self.digest()[:8]}"


def make_config(values: dict) -> RunConfig:
    """A `RunConfig` from names and values, as they stand in a file.

    Raises:
        ConfigError: a name is unknown, a setting that is needed is missing, or a value is out of range.
    """
    known = {entry.name: entry for entry in dataclasses.fields(RunConfig)}
    for name in values:
        if name not in known:
            raise ConfigError(f"unknown setting {name!r}: {closest(name, known)}")
    if missing := [name for name in ("model", "task", "learning_rate") if values.get(name) is None]:
        ratio = values.get("ratio")
        known = missing == ["learning_rate"] and isinstance(ratio, float) and 0 < ratio <= 1
        hint = (
            f" By the paper's law a mask of that ratio wants about {suggest_learning_rate(ratio):.0e}." if known else ""
        )
        raise ConfigError(f"{', '.join(missing)} must be given: {_EXAMPLE}{hint}")
    return RunConfig(**values)


def read_config(path: str | os.PathLike) -> dict:
    """The settings in a YAML or JSON file, unchecked.

    Raises:
        ConfigError: the file is missing, or holds no settings.
    """
    try:
        values = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the settings in {path}: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold lines like 'task: RTE', got {type(values).__name__}.")
    for name in ("learning_rate", "ratio", "density", "dropout", "weight_decay", "max_grad_norm"):
        if isinstance(values.get(name), str):  # YAML reads 1e-4 as text: its numbers need a point, 1.0e-4
            try:
                values[name] = float(values[name])
            except ValueError:
                raise ConfigError(f"{path}: {name} must be a number, got {values[name]!r}.") from None
    return values


_EXAMPLE = "rmbook train --model facebook/opt-125m --task rte --method random_masking --ratio 1e-4 --lr 1e-2"
