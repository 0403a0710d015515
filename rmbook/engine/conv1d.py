"""Linear layers that stand in for GPT-2's `Conv1D`, whose weight is (in, out), and are saved in its form."""

import torch
from torch import nn


def keep_as_conv1d(linear: nn.Linear) -> None:
    """Make `state_dict` and `load_state_dict` of a linear layer speak of its weight as (in, out), as `Conv1D` does."""
    linear.is_conv1d = True
    linear.register_state_dict_post_hook(_turn_saved)
    linear.register_load_state_dict_pre_hook(_turn_loaded)


def is_conv1d(module: nn.Module | None) -> bool:
    """Tell whether a module's `state_dict` holds its weight as (in, out)."""
    return getattr(module, "is_conv1d", False)


def _turn_saved(module, state_dict: dict[str, torch.Tensor], prefix: str, _) -> None:
    state_dict[prefix + "weight"] = state_dict[prefix + "weight"].t().contiguous()


def _turn_loaded(module, state_dict: dict[str, torch.Tensor], prefix: str, *_) -> None:
    if prefix + "weight" in state_dict:
        state_dict[prefix + "weight"] = state_dict[prefix + "weight"].t().contiguous()
