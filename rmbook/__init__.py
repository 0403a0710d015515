"""rmbook: random masks for parameter-efficient fine-tuning, and the book that teaches them."""

# ruff: noqa: F401 - the imports for editors

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:  # for editors; at run time a name is loaded when it is used, so that `rmbook --help` does not wait
    from rmbook.adapter import AdapterBaseError, AdapterCorruptError, AdapterError, load_adapter, save_adapter
    from rmbook.bank import AdapterBank
    from rmbook.layer import MaskedLinear, masked_linear_reference
    from rmbook.learning_rate import suggest_learning_rate
    from rmbook.masking import RandomMask, apply_masks, apply_random_mask
    from rmbook.masks import Mask, density_to_ratio, ratio_to_density, sample_mask
    from rmbook.targets import TargetError
    from rmbook.training import TrainingConfig, TrainingResult, evaluate, train

_HOMES = {
    "AdapterBank": "bank",
    "AdapterBaseError": "adapter",
    "AdapterCorruptError": "adapter",
    "AdapterError": "adapter",
    "Mask": "masks",
    "MaskedLinear": "layer",
    "RandomMask": "masking",
    "TargetError": "targets",
    "TrainingConfig": "training",
    "TrainingResult": "training",
    "apply_masks": "masking",
    "apply_random_mask": "masking",
    "density_to_ratio": "masks",
    "evaluate": "training",
    "load_adapter": "adapter",
    "masked_linear_reference": "layer",
    "ratio_to_density": "masks",
    "sample_mask": "masks",
    "save_adapter": "adapter",
    "suggest_learning_rate": "learning_rate",
    "train": "training",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"rmbook.{_HOMES[name]}"), name)
    return value
