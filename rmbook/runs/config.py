"""The settings of one fine-tuning run: from flags or from a file, checked, and stored with the run.

Nothing here needs torch: a mistake is answered before that is loaded.
"""

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmbook.errors import ConfigError, shown
from rmbook.methods.settings import METHOD_SETTINGS, PRESETS, AdaLoraSettings, MethodSettings, method_settings
from rmbook.settings import COUNT, check_names, check_settings, documented, same_setting, setting
from rmbook.tasks.catalog import find_task
from rmbook.tasks.images import IMAGE_TASKS
from rmbook.tasks.language import LANGUAGE_TASKS
from rmbook.training.config import TrainingConfig
from rmbook.yaml_files import read_yaml

DTYPES = ("float32", "bfloat16", "float16", "float64")  # by the names that they have in torch
MASKS = tuple(name for name, kind in METHOD_SETTINGS.items() if "ratio" in kind.takes)
_EXAMPLE = "rmbook train --model facebook/opt-125m --task rte --method random_masking --ratio 1e-4 --lr 1e-2"


@documented
@dataclass(frozen=True)
class RunConfig:
    """All that decides the outcome of a run; checked when made. Defaults are the paper's (appendix B).

    Its settings for images are not the defaults: they are in the ready-made grid table2.

    Example:
        >>> RunConfig(model="facebook/opt-125m", task="rte", ratio=1e-3, learning_rate=1e-2).task
        'RTE'
    """

    model: str = setting("Name on the hub, folder, or made:NAME for one that is made here", path=True)
    task: str = setting(f"{', '.join(LANGUAGE_TASKS)}; for CLIP {', '.join(IMAGE_TASKS)}")
    learning_rate: float = same_setting(TrainingConfig, "learning_rate")
    method: str = setting("What is trained", "random_masking", choices=tuple(METHOD_SETTINGS))
    ratio: float | None = setting(
        "Masks: trained entries / all parameters of the model (of CLIP: of the image encoder)", None, above=0, most=1
    )
    density: float | None = setting(
        "Masks: probability that an entry of a target matrix is trained; give this or the ratio", None, above=0, most=1
    )
    targets: tuple[str, ...] | str | None = setting(
        f"Layers that get a mask or factors: {', '.join(PRESETS)}, or names with commas", None, unset="qv", paper=True
    )
    settings: dict[str, Any] = setting(
        "A setting of the method, as in --set rank=16; `rmbook describe --method lora` lists them",
        {},
        flags=("--set",),
        paper=True,
    )
    revision: str | None = setting("Commit or branch of the model on the hub", None)
    data_dir: str | None = setting("Folder with the task's original files", None, unset="the hub's", path=True)
    seed: int = same_setting(TrainingConfig, "seed")
    epochs: int = same_setting(TrainingConfig, "epochs")
    batch_size: int = same_setting(TrainingConfig, "batch_size")
    micro_batch_size: int | None = same_setting(TrainingConfig, "micro_batch_size")
    max_grad_norm: float = same_setting(TrainingConfig, "max_grad_norm")
    weight_decay: float = same_setting(TrainingConfig, "weight_decay")
    train_size: int = setting("Training examples", 1000, least=1, most=COUNT)
    dev_size: int | None = setting(
        "Examples that choose the best epoch",
        None,
        least=1,
        most=COUNT,
        unset="the task's own, 500 for most",
        paper=True,
    )
    test_size: int = setting("Test examples", 1000, least=1, most=COUNT, paper=True)
    max_length: int | None = setting(
        "Longest prompt in tokens; not for images",
        None,
        least=2,
        most=COUNT,
        unset="2048, or what the model can take",
        paper=True,
    )
    dtype: str = setting("Numbers of the frozen weights", "float32", choices=DTYPES)
    mixed_precision: str = setting("Computation under autocast", "no", choices=("no", "bf16", "fp16"))
    gradient_checkpointing: bool = setting("Compute activations twice: less memory for a third more time", False)
    dropout: float | None = setting(
        "Probability of all dropout layers", None, least=0, below=1, unset="the model's own", paper=True
    )
    schedule: str = same_setting(TrainingConfig, "schedule")
    warmup_steps: int = same_setting(TrainingConfig, "warmup_steps")
    max_steps: int | None = same_setting(TrainingConfig, "max_steps")

    def __post_init__(self) -> None:
        check_settings(self)
        object.__setattr__(self, "task", find_task(self.task).name)
        self._check_method()
        if self.max_length is not None and not find_task(self.task).has_prompts:
            raise ConfigError(f"max_length is of prompts, and {self.task} has none: leave it out.")

    def _check_method(self) -> None:
        given = [name for name in ("ratio", "density") if getattr(self, name) is not None]
        if self.method in MASKS and len(given) != 1:
            raise ConfigError(f"{self.method} needs a ratio or a density, and not both; got {given or 'neither'}.")
        takes = METHOD_SETTINGS[self.method].takes
        for name in ("ratio", "density", "targets"):
            if getattr(self, name) is not None and name not in takes:
                others = [method for method, kind in METHOD_SETTINGS.items() if name in kind.takes]
                raise ConfigError(f"{self.method} takes no {name}: it belongs to {', '.join(others)}.")
        own = {entry.name for entry in dataclasses.fields(self)}
        if wrong := [name for name in self.settings if name in own]:
            raise ConfigError(f"{wrong[0]} is a setting of the run, not of {self.method}: give it beside the settings.")
        settings = self.method_settings(self.train_size)  # an upper bound: the task may have fewer examples
        given = {name: value for name, value in dataclasses.asdict(settings).items() if name in self.settings}
        object.__setattr__(self, "settings", {n: list(v) if isinstance(v, tuple) else v for n, v in given.items()})

    def method_settings(self, examples: int) -> MethodSettings:
        """The settings of the method with its defaults, for a run on so many training examples."""
        settings = method_settings(self.method, self.settings)
        if isinstance(settings, AdaLoraSettings) and settings.drops:
            steps, wanted = self.training().steps(examples), settings.total_steps
            if wanted is not None and wanted > steps:
                raise ConfigError(f"total_steps must be at most the {steps} steps of the run, got {wanted}.")
            settings = dataclasses.replace(settings, total_steps=wanted or steps)
        return settings

    def training(self) -> TrainingConfig:
        """The settings of the training loop."""
        names = [entry.name for entry in dataclasses.fields(TrainingConfig)]
        return TrainingConfig(**{name: getattr(self, name) for name in names})

    def to_dict(self) -> dict[str, Any]:
        """All settings, fit for JSON, in the order of the fields."""
        settings = dataclasses.asdict(self)
        return settings | {"targets": list(self.targets) if isinstance(self.targets, tuple) else self.targets}

    def digest(self) -> str:
        """SHA-256 of all settings: equal for equal runs."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def default_folder(self) -> Path:
        """Return where the run goes if no folder is named: runs/MODEL-TASK-METHOD-DIGEST."""
        model = Path(self.model).name.removeprefix("made:")
        return Path("runs") / f"{model}-{self.task}-{self.method}-{self.digest()[:8]}"


# Settings that decide an outcome and that the paper states; precision, places and what its tables compare are not.
PAPER_SETTINGS = tuple(entry.name for entry in dataclasses.fields(RunConfig) if entry.metadata["paper"])


def make_config(values: dict[str, Any]) -> RunConfig:
    """A `RunConfig` from names and values, as they stand in a file.

    Raises:
        ConfigError: a name is unknown, a setting that is needed is missing, or a value is out of range.
    """
    check_names(values, RunConfig)
    if missing := [name for name in ("model", "task", "learning_rate") if values.get(name) is None]:
        ratio, hint = values.get("ratio"), ""
        if missing == ["learning_rate"] and isinstance(ratio, float) and 0 < ratio <= 1:
            from rmbook.training.learning_rate import suggest_learning_rate  # which loads numpy

            hint = f" By the paper's law a mask of that ratio wants about {suggest_learning_rate(ratio):.0e}."
        raise ConfigError(f"{', '.join(missing)} must be given: {_EXAMPLE}{hint}")
    return RunConfig(**values)


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings in a YAML or JSON file, unchecked.

    Raises:
        ConfigError: the file is missing, or holds no settings.
    """
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold lines like 'task: RTE', got {shown(values)}.")
    return values
