"""Masked layers on a base that FSDP2 shards: torch's `fully_shard`, and accelerate's FSDP with version 2.

Each process keeps a shard of W, and FSDP gathers the whole of it for the length of a forward or backward pass. The layer
writes W + S into what was gathered, in its forward pass and again before its backward pass: shards hold W, always. The
values belong to one of two owners:

- FSDP, where it is given the masked model as it is (accelerate, `transformers.Trainer`): it shards them like any
  parameter, and reduces their gradient.
- nobody, where they are in its `ignored_params` or the mask came after `fully_shard`: every process holds all of
  them, in full precision, and one all-reduce at the end of the backward pass averages their gradients.

What is called a collective here has to be called by all processes at the same time.
"""

import contextlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from rmbook.masks.sample import Mask


def is_sharded(tensor: Any) -> bool:
    """Tell whether a tensor is a DTensor, of which this process holds a part."""
    library = sys.modules.get("torch.distributed.tensor")  # a second to import, and there is no DTensor without it
    return library is not None and isinstance(tensor, library.DTensor)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return all of a tensor, gathered if it is sharded; then a collective."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return this process's part of a tensor: memory, not a copy."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def working_device(tensor: torch.Tensor) -> torch.device:
    """Device on which a tensor takes part in computations; FSDP may keep its shard on the CPU."""
    if not is_sharded(tensor):
        return tensor.device
    kind = tensor.device_mesh.device_type
    return torch.device("cpu") if kind == "cpu" else torch.device(kind, torch.get_device_module(kind).current_device())


def check_placements(weight: torch.Tensor) -> None:
    """Raise ValueError unless a DTensor is sharded in one dimension at most, and replicated in the others."""
    from torch.distributed.tensor import Replicate, Shard

    placed = [placement for placement in weight.placements if not isinstance(placement, Replicate)]
    if len(placed) > 1 or any(type(placement) is not Shard for placement in placed):
        raise ValueError(
            f"its weight is sharded as {weight.placements}; FSDP2 alone, or with replicas (HSDP), is supported, tensor "
            "parallelism is not."
        )


def _local_entries(mask: Mask, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Find which entries of a mask lie in this process's shard, (n,), and their flat places there, (n,)."""
    first, size = [0, 0], list(weight.shape)
    for number, placement in enumerate(weight.placements):
        if placement.is_shard():
            axis = placement.dim
            chunk = -(-weight.shape[axis] // weight.device_mesh.size(number))  # the rule of torch.chunk, and FSDP's
            first[axis] = min(weight.shape[axis], chunk * weight.device_mesh.get_local_rank(number))
            size[axis] = min(chunk, weight.shape[axis] - first[axis])
    row, column = mask.rows.long() - first[0], mask.columns.long() - first[1]
    which = ((row >= 0) & (row < size[0]) & (column >= 0) & (column < size[1])).nonzero().squeeze(1)
    return which, row[which] * size[1] + column[which]


@torch.no_grad()
def read_entries(weight: torch.Tensor, mask: Mask) -> torch.Tensor:
    """Return the entries of a matrix at a mask's positions, (nnz,); a collective if the matrix is sharded."""
    if not is_sharded(weight):
        return weight.reshape(-1).index_select(0, mask.positions.to(weight.device))
    check_placements(weight)
    device = working_device(weight)
    which, places = _local_entries(mask, weight)
    exact = torch.float64 if weight.dtype == torch.float64 else torch.float32
    found = torch.zeros(mask.nnz, dtype=exact, device=device)  # all terms but one are zero: the sum is exact
    found[which.to(device)] = local(weight).reshape(-1)[places.to(weight.device)].to(device, exact)
    for number, placement in enumerate(weight.placements):
        if placement.is_shard():
            dist.all_reduce(found, group=weight.device_mesh.get_group(number))
    return found.to(weight.dtype)


@torch.no_grad()
def write_entries(weight: torch.Tensor, mask: Mask, entries: torch.Tensor) -> None:
    """Make `entries`, (nnz,), those of a sharded matrix at a mask's positions: each process writes into its shard."""
    which, places = _local_entries(mask, weight)
    if which.numel():
        local(weight).view(-1)[places.to(weight.device)] = entries[which].to(weight.device, weight.dtype)


def reshard(model: nn.Module) -> None:
    """Drop what FSDP has gathered, which may hold W + S, so that it is gathered again when it is needed."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@contextlib.contextmanager
def writing_once(layers: Iterable[Any]) -> Iterator[bool]:
    """Give True to the process that is to write a file about these layers; all leave when it has done so.

    That is each process where nothing is sharded, and the first one where a layer is.
    """
    sharded = any(layer.sharded for layer in layers)
    try:
        yield not sharded or dist.get_rank() == 0
    finally:
        if sharded:
            dist.barrier()


class GradientAverage:
    """The average over all processes of the gradients of values that FSDP does not have.

    One all-reduce for all layers at the end of each backward pass. While FSDP does not reduce gradients either
    (`set_requires_gradient_sync(False)`, accelerate's `no_sync` and `accumulate`), there is none.

    Args:
        model: FSDP's.
        layers: its masked layers.
    """

    def __init__(self, model: nn.Module, layers: list):
        self._model, self._layers, self._queued = model, layers, False

    def watch(self, layer) -> None:
        """Wait for the gradient of a layer whose weight was sharded. If FSDP takes its values, none will come here."""
        if layer.mask.nnz and not is_sharded(layer.values):
            layer.values.register_post_accumulate_grad_hook(self._arrived)

    def _arrived(self, _) -> None:
        if not self._queued and self._wanted():
            self._queued = True
            torch.autograd.Variable._execution_engine.queue_callback(self._average)

    def _wanted(self) -> bool:
        # FSDP has no public way to ask. Where this way is gone, averages of averages are right, too, and cost more.
        for module in self._model.modules():
            state = getattr(module, "_get_fsdp_state", None)
            groups = getattr(state and state(), "_fsdp_param_groups", None)
            if groups or (groups := [getattr(state and state(), "_fsdp_param_group", None)])[0]:
                return groups[0].reduce_grads
        return True

    @torch.no_grad()
    def _average(self) -> None:
        self._queued = False
        layers = [layer for layer in self._layers if layer.sharded and layer.mask.nnz and not is_sharded(layer.values)]
        values = [layer.values for layer in layers]
        flat = torch.cat([v.new_zeros(v.numel()) if v.grad is None else v.grad for v in values])
        mesh = layers[0].mesh
        for number in range(mesh.ndim):
            dist.all_reduce(flat, group=mesh.get_group(number))
        flat /= mesh.size()
        for v, part in zip(values, flat.split([v.numel() for v in values]), strict=True):
            v.grad = part.to(v.dtype, copy=True)
