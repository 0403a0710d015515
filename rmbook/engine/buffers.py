"""Buffers of a model that training changes, such as the running statistics of a batch norm.

They are no weights, and no method trains them, but a model in training mode writes them at each forward pass.
"""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from rmbook.engine.targets import named_layers

LARGEST = 2**20  # elements of a buffer that is kept: quantised layers hold whole weights as buffers


def running_statistics(model: nn.Module) -> set[str]:
    """Names of the buffers in which norm layers (batch norm, instance norm) keep statistics of what they were shown."""
    return {
        f"{name}.{buffer}".removeprefix(".")
        for name, module in named_layers(model).items()
        if isinstance(module, _NormBase)
        for buffer, value in module._buffers.items()
        if value is not None
    }


class BufferSnapshot:
    """The buffers of a model as they are now, up to a million elements each, without those that no file holds.

    Args:
        model: whose buffers; names are plain (`rmbook.engine.targets.named_layers`).
    """

    def __init__(self, model: nn.Module):
        self._model = model
        self.before = {name: buffer.detach().clone() for name, buffer in saved_buffers(model).items()}

    def changed(self) -> dict[str, torch.Tensor]:
        """Buffers that differ from what they were, by name: as they are now."""
        now = saved_buffers(self._model)
        there = {name: before for name, before in self.before.items() if name in now}
        return {name: now[name].detach() for name, before in there.items() if not _same(now[name], before)}

    def restore(self) -> None:
        """Make the buffers what they were."""
        write_buffers(self._model, self.before)


@torch.no_grad()
def write_buffers(model: nn.Module, values: dict[str, torch.Tensor]) -> None:
    """Copy values into buffers of these plain names."""
    buffers = saved_buffers(model)
    for name, value in values.items():
        if name in buffers:
            buffers[name].copy_(value)


def saved_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """Buffers that `state_dict` holds, up to a million elements each, by plain name."""
    return {
        f"{name}.{buffer}".removeprefix("."): value
        for name, module in named_layers(model).items()
        for buffer, value in module._buffers.items()
        if value is not None and buffer not in module._non_persistent_buffers_set and value.numel() <= LARGEST
        and not value.is_meta
    }  # fmt: skip


def _same(left: torch.Tensor, right: torch.Tensor) -> bool:
    # Bytes, so that NaN equals itself.
    left, right = (tensor.to("cpu", left.dtype).reshape(-1).view(torch.uint8) for tensor in (left, right))
    return torch.equal(left, right)
