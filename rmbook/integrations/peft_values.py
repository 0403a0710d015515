"""What one adapter has in one layer: which entries, and their values."""

from dataclasses import dataclass

import torch
from torch import nn

from rmbook.masks.sample import Mask


@dataclass(frozen=True)
class Drawn:
    """The mask of one adapter in one layer.

    Attributes:
        mask: on the weight's device.
        scale: S = scale * values.
        backend: as asked for; see `rmbook.engine.backends`.
    """

    mask: Mask
    scale: float
    backend: str


class Values(nn.Module):
    """The values of one adapter in one layer: weight, (nnz,).

    They are a module because trl finds what to copy into a reference adapter by ".default." in a parameter's name.
    """

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def extra_repr(self) -> str:
        """Return how many entries are trained."""
        return f"trained={self.weight.numel()}"
