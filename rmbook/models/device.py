"""Where a model computes, and so wants what it is given."""

import torch
from torch import nn

from rmbook.engine.shards import working_device


def model_device(model: nn.Module) -> torch.device:
    """Device on which a model computes: that of its first parameter, whose shard FSDP may keep on the CPU."""
    return working_device(next(model.parameters()))
