"""The methods that are compared, each as one call that decides which parameters of a model require a gradient."""

from collections.abc import Sequence

from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from rmbook.targets import find_targets


def full_finetuning(model: nn.Module, exclude: Sequence[str] = ()) -> nn.Module:
    """Train every parameter whose name contains none of the strings in `exclude`; in place."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(part in name for part in exclude))
    return model


def lora(model: nn.Module, targets: Sequence[str], rank: int = 8, alpha: float = 16) -> nn.Module:
    """Freeze `model` and add low-rank updates (alpha / rank) B A to the target layers, through `peft`; in place.

    The defaults are the paper's (rank 8, alpha 16). The factors A are drawn from torch's global random state.

    Raises:
        TargetError: if a target matches nothing.
    """
    find_targets(model, targets)  # peft's own message does not say which names would match
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=list(targets))
    return inject_adapter_in_model(config, model)
