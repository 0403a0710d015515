"""Tensors that FSDP2 shards: what a process has of them, and the entries at a mask's positions.

What is called a collective here has to be called by all processes at the same time.
"""

import sys
from typing import Any

import torch
import torch.distributed as dist

from rmbook.masks.sample import Mask

FSDP1 = (
    "FSDP1 (FullyShardedDataParallel), which is not supported: use FSDP2 (fully_shard; in accelerate fsdp_version: 2) "
    "or DistributedDataParallel"
)


def is_flattened(tensor: Any) -> bool:
    """Tell whether FSDP1 has a tensor: as a parameter of its own, or as a view of its one flat parameter."""
    return getattr(tensor, "_fsdp_flattened", False) or getattr(getattr(tensor, "_base", None), "_is_flat_param", False)


def is_sharded(tensor: Any) -> bool:
    """Tell whether a tensor is a DTensor, of which this process holds a part."""
    library = sys.modules.get("torch.distributed.tensor")  # a second to import, and there is no DTensor without it
    return library is not None and isinstance(tensor, library.DTensor)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return all of a tensor, gathered if it is sharded; then a collective."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def spread(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return a tensor that all processes have whole, sharded as `like` is; then a collective."""
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(working_device(like)), like.device_mesh, like.placements).to(like.device)


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


def _local_entries(mask: Mask, weight: torch.Tensor, transposed: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Find which entries of a mask lie in this process's shard, (n,), and their flat places there, (n,)."""
    first, size = [0, 0], list(weight.shape)
    for number, placement in enumerate(weight.placements):
        if placement.is_shard():
            axis = placement.dim
            chunk = -(-weight.shape[axis] // weight.device_mesh.size(number))  # the rule of torch.chunk, and FSDP's
            first[axis] = min(weight.shape[axis], chunk * weight.device_mesh.get_local_rank(number))
            size[axis] = min(chunk, weight.shape[axis] - first[axis])
    rows, columns = (mask.columns, mask.rows) if transposed else (mask.rows, mask.columns)
    row, column = rows.long() - first[0], columns.long() - first[1]
    which = ((row >= 0) & (row < size[0]) & (column >= 0) & (column < size[1])).nonzero().squeeze(1)
    return which, row[which] * size[1] + column[which]


@torch.no_grad()
def read_entries(weight: torch.Tensor, mask: Mask, transposed: bool = False) -> torch.Tensor:
    """Return the entries of a matrix at a mask's positions, (nnz,); a collective if the matrix is sharded.

    `transposed`: the matrix is stored as (in, out), the mask's shape is (out, in) all the same.
    """
    if transposed and not is_sharded(weight):
        return weight[mask.columns.long().to(weight.device), mask.rows.long().to(weight.device)]
    if not is_sharded(weight):
        return weight.reshape(-1).index_select(0, mask.positions.to(weight.device))
    check_placements(weight)
    device = working_device(weight)
    which, places = _local_entries(mask, weight, transposed)
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
