"""rmbook: random masks for parameter-efficient fine-tuning, and the book that teaches them."""

__version__ = "0.1.0"

from rmbook.adapter import AdapterBaseError, AdapterCorruptError, AdapterError, load_adapter, save_adapter
from rmbook.bank import AdapterBank
from rmbook.layer import MaskedLinear, masked_linear_reference
from rmbook.masking import RandomMask, apply_masks, apply_random_mask
from rmbook.masks import Mask, density_to_ratio, ratio_to_density, sample_mask
from rmbook.targets import TargetError
from rmbook.training import TrainingConfig, TrainingResult, evaluate, train

__all__ = [
    "AdapterBank",
    "AdapterBaseError",
    "AdapterCorruptError",
    "AdapterError",
    "Mask",
    "MaskedLinear",
    "RandomMask",
    "TargetError",
    "TrainingConfig",
    "TrainingResult",
    "apply_masks",
    "apply_random_mask",
    "density_to_ratio",
    "evaluate",
    "load_adapter",
    "masked_linear_reference",
    "ratio_to_density",
    "sample_mask",
    "save_adapter",
    "train",
]
