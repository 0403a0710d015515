"""Layers of `peft` on a base that FSDP2 shards. The gathered weight is borrowed like any other, and shards hold W.

Who has the values is as in `rmbook.engine.sharded`: FSDP, or nobody where they are in its `ignored_params` or
`get_peft_model` came after `fully_shard`; then the same average of gradients is taken.
"""

from collections.abc import Iterable
from typing import Any

import torch

from rmbook.engine.sharded import GradientAverage, announce
from rmbook.engine.shards import FSDP1, is_flattened, is_sharded


def values_of(layer: Any) -> tuple[Any, Iterable[torch.Tensor]]:
    """Return the mesh of a layer's weight, None if it is not sharded now, and the values of its adapters."""
    weight = layer.base_layer.weight
    return weight.device_mesh if is_sharded(weight) else None, layer.rmbook_values.parameters()


def check_gathered(weight: torch.Tensor) -> None:
    """Raise RuntimeError if a weight is a shard in the forward pass, or FSDP1's."""
    if is_flattened(weight):
        raise RuntimeError(f"the weight of a layer with a random mask is held by {FSDP1}.")
    if is_sharded(weight):
        raise RuntimeError(
            "the weight of a layer with a random mask is sharded and not gathered: call the model through the module "
            "that was given to fully_shard, which must be no base_layer itself. Tensor parallelism is not supported."
        )


def average_gradients(layer: Any) -> None:
    """Have the gradients of a layer's values averaged over all processes if FSDP has the weight and not the values.

    Nothing tells a layer that its weight is sharded, so all values announce their gradients, and the average looks at
    the end of a backward pass, when weights are sharded again.
    """
    layer.average = layer.average or GradientAverage(None, [layer], values_of)  # None: of a copy
    for values in layer.rmbook_values.parameters():
        if values.is_leaf and not (is_sharded(values) or values.is_inference()):  # nn.DataParallel's are no leaves
            announce(layer, values)
