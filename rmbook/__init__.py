"""rmbook: random masks for parameter-efficient fine-tuning, and the book that teaches them.

The names below are the public surface. The folders are rooms, each named after something in the paper; the docstring
of a room's `__init__` says what comes in, what goes out, and which file to open for what. A room imports only those
above it in this list:

    masks      which entries are trained
    engine     layers that add a sparse matrix to a frozen weight, W + S
    adapters   trained values as files
    integrations  the same masks in peft, and in the trainers that build on it
    methods    the paper's eight methods, one call each
    models     loading models, and what they say to a prompt
    training   the loop
    tasks      the paper's sixteen tasks: examples, prompts, answers and their score
    offline    models and examples that need no network
    theory     masked linear regression (section 5)
    landscape  the Hessian of a model's loss
    paper      the paper's printed numbers
    runs       one fine-tuning run in one folder
    sweeps     many runs
    widgets    figures that a reader moves
    evidence   recorded results, and what they say of the paper's claims
    cli        the command `rmbook`
"""

# ruff: noqa: F401 - the imports for editors

import importlib
from typing import TYPE_CHECKING, Any

from rmbook.version import __version__

if TYPE_CHECKING:  # for editors; at run time a name is loaded when it is used, so that `rmbook --help` does not wait
    from rmbook.adapters.adapter_file import load_adapter, save_adapter
    from rmbook.adapters.bank import AdapterBank
    from rmbook.adapters.errors import AdapterBaseError, AdapterCorruptError, AdapterError
    from rmbook.adapters.merged import save_merged
    from rmbook.adapters.shira import load_from_shira, save_as_shira
    from rmbook.engine.layer import MaskedLinear
    from rmbook.engine.masking import RandomMask, apply_masks, apply_random_mask
    from rmbook.engine.reference import masked_linear_reference
    from rmbook.engine.targets import TargetError
    from rmbook.integrations.peft_config import RandomMaskConfig
    from rmbook.integrations.peft_folder import load_from_peft, save_as_peft
    from rmbook.masks.sample import Mask, density_to_ratio, ratio_to_density, sample_mask
    from rmbook.methods.apply import apply_method
    from rmbook.models.language import convert_checkpoint
    from rmbook.runs.config import RunConfig
    from rmbook.runs.run import resume_run, start_run
    from rmbook.training.config import TrainingConfig, TrainingResult
    from rmbook.training.evaluation import evaluate
    from rmbook.training.learning_rate import suggest_learning_rate
    from rmbook.training.train import train

_HOMES = {
    "AdapterBank": "adapters.bank",
    "AdapterBaseError": "adapters.errors",
    "AdapterCorruptError": "adapters.errors",
    "AdapterError": "adapters.errors",
    "Mask": "masks.sample",
    "MaskedLinear": "engine.layer",
    "RandomMask": "engine.masking",
    "RandomMaskConfig": "integrations.peft_config",
    "RunConfig": "runs.config",
    "TargetError": "engine.targets",
    "TrainingConfig": "training.config",
    "TrainingResult": "training.config",
    "apply_masks": "engine.masking",
    "apply_method": "methods.apply",
    "apply_random_mask": "engine.masking",
    "convert_checkpoint": "models.language",
    "density_to_ratio": "masks.sample",
    "evaluate": "training.evaluation",
    "load_adapter": "adapters.adapter_file",
    "load_from_peft": "integrations.peft_folder",
    "load_from_shira": "adapters.shira",
    "masked_linear_reference": "engine.reference",
    "ratio_to_density": "masks.sample",
    "resume_run": "runs.run",
    "sample_mask": "masks.sample",
    "save_adapter": "adapters.adapter_file",
    "save_as_peft": "integrations.peft_folder",
    "save_as_shira": "adapters.shira",
    "save_merged": "adapters.merged",
    "start_run": "runs.run",
    "suggest_learning_rate": "training.learning_rate",
    "train": "training.train",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"rmbook.{_HOMES[name]}"), name)
    return value
