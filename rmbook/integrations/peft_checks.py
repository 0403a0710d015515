"""Checks of layers that `peft` shall give a mask, and of values that it loads into them; what identifies the masks."""

import hashlib
import warnings

import torch
import torch.distributed as dist
from torch import nn
from transformers.pytorch_utils import Conv1D

from rmbook.adapters.adapter_header import plausible_count
from rmbook.adapters.errors import AdapterCorruptError, AdapterError
from rmbook.engine.dequantise import weight_shape
from rmbook.engine.maskable import check_maskable, refuse_offloaded, refuse_partitioned
from rmbook.engine.quantised import base_entries
from rmbook.engine.shards import is_sharded, working_device
from rmbook.engine.targets import TargetError
from rmbook.masks.recipe import MaskRecipe
from rmbook.masks.sample import Mask

VALUES = "rmbook_values.weight"  # as a file names them, after the name of their layer
KEPT = ("rmbook_digest", "rmbook_positions")  # buffers that stay off the meta device
HASH_BYTES = 32
DIGEST_BYTES = 2 * HASH_BYTES


class MaskMismatchError(AdapterError):
    """Values are for other positions or other layers than this model has: nothing may be computed with them."""


def matrix_shape(layer: nn.Module) -> tuple[int, int]:
    """Shape (out, in) of the matrix of a linear layer or a `Conv1D`."""
    shape = weight_shape(layer)
    return shape[::-1] if isinstance(layer, Conv1D) else shape


def check_target(layer: nn.Module, name: str) -> None:
    """Raise TargetError unless a layer is a plain or quantised `nn.Linear`, or a plain `Conv1D`, and holds numbers."""
    try:
        if type(layer) is not Conv1D:
            check_maskable(layer)
            return
        refuse_offloaded(layer)
        refuse_partitioned(layer.weight, ValueError)
        if layer.weight.is_meta or not layer.weight.is_contiguous() or not layer.weight.is_floating_point():
            raise ValueError("its weight is not a plain contiguous tensor of floats in memory.")
    except (TypeError, ValueError) as error:
        raise TargetError(f"cannot mask target module {name!r}: {error}") from None


def entries_of(layer: nn.Module, mask: Mask) -> torch.Tensor | None:
    """Entries of the layer's W at the mask's positions, (nnz,); a collective if sharded; None on meta."""
    return None if layer.weight.is_meta else base_entries(layer, mask, isinstance(layer, Conv1D))


def digest(mask: Mask, entries: torch.Tensor | None) -> torch.Tensor:
    """Return what identifies positions and base: SHA-256 of the positions, then of W there; (64,) uint8.

    Args:
        mask: the positions.
        entries: W there, (nnz,); None where it is not known. They are hashed in bfloat16, so that a base in float32 is
            the same as its cast; of one in float16 that is not true, and the second half is zero as for None.
    """
    base = bytes(HASH_BYTES)
    if entries is not None and entries.dtype != torch.float16:
        base = hashlib.sha256(entries.to(torch.bfloat16).cpu().view(torch.uint8).numpy().tobytes()).digest()
    return torch.frombuffer(bytearray(bytes.fromhex(mask.digest()) + base), dtype=torch.uint8)


def other_base(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Tell whether two digests are of different bases; not if one of them does not know."""
    left, right = left[HASH_BYTES:], right[HASH_BYTES:]
    return bool(left.any() and right.any()) and not torch.equal(left, right)


def check_stored(config, recipe: MaskRecipe, name: str, shape: tuple[int, int]) -> None:
    """Check that what a configuration from a file would draw is as large as the values that came with it.

    Raises:
        MaskMismatchError: the file has no values for the layer.
        AdapterCorruptError: it has another number of values.
    """
    layout = config.stored.get(name)
    if layout is None and not config.store_positions:
        raise MaskMismatchError(
            f"the adapter's file has no values for {name[:80]!r}: load the base model, and the version of "
            "transformers, that it was trained with."
        )
    given = layout is None or (config.store_positions and recipe.density == 0)  # positions will come from the file
    if not given and not (len(layout.shape) == 1 and plausible_count(layout.shape[0], shape, recipe)):
        raise AdapterCorruptError(
            f"{name[:80]}: the file has values of shape {layout.shape}, which is not what density {recipe.density:g} "
            f"draws in a matrix of shape {shape}; the adapter is for another model, or forged."
        )


def check_loaded(layer: nn.Module, adapter_name: str, mask: Mask, positions: torch.Tensor | None) -> Mask:
    """Return the mask of the values that a layer holds now, or raise.

    Args:
        layer: a `RandomMaskLinear`.
        adapter_name: of the adapter.
        mask: as drawn here.
        positions: as saved, if they were.

    Raises:
        MaskMismatchError: the values are for other positions.
        AdapterCorruptError: a value is not finite, or the positions are no mask.
    """
    values, saved = layer.rmbook_values[adapter_name].weight, layer.rmbook_digest[adapter_name].cpu()
    wanted = bytes(saved[:HASH_BYTES].tolist()).hex()
    if wanted != mask.digest() and positions is not None:
        mask = checked_mask(mask.shape, positions, layer.name)
    if wanted != mask.digest() or values.numel() != mask.nnz:
        raise MaskMismatchError(
            f"{layer.name}: the values of adapter {adapter_name!r} belong to other positions than its configuration "
            "draws for a layer of this name. Load it where seed, density, structure and module names are the same "
            "(another version of transformers may have renamed modules), or save it with store_positions=True."
        )
    if not values.is_meta and not values.isfinite().all():
        raise AdapterCorruptError(f"{layer.name}: adapter {adapter_name!r} has values that are not finite.")
    if not layer.merged and other_base(digest(mask, entries_of(layer.base_layer, mask)), saved):
        warnings.warn(
            f"adapter {adapter_name!r} was trained on a base model with other weights than this one has: its results "
            "are for that one.",
            stacklevel=2,
        )
    return mask


def checked_mask(shape: tuple[int, int], positions: torch.Tensor, name: str) -> Mask:
    """Return the mask at positions from a file, or raise AdapterCorruptError if they are none."""
    try:
        return Mask.checked(shape, positions.cpu())
    except ValueError as error:
        raise AdapterCorruptError(f"{name}: {error}") from None


# accelerate moves a model to the meta device, shards it, and loads the first process's parameters: it knows no buffers.


def leave_out(layer: nn.Module, state_dict: dict[str, torch.Tensor], prefix: str, _) -> None:
    """Take what identifies the masks of a layer on the meta device out of its state."""
    for key in _kept(layer, prefix):
        del state_dict[key]


def fill_in(layer: nn.Module, state_dict: dict[str, torch.Tensor], prefix: str, *_) -> None:
    """Give a layer on the meta device what identifies its masks, as the first process has it; then a collective."""
    weight = layer.base_layer.weight
    for key, buffer in _kept(layer, prefix).items():
        if key not in state_dict:
            state_dict[key] = buffer.to(working_device(weight)).clone()
            if is_sharded(weight):
                dist.broadcast(state_dict[key], 0)


def _kept(layer: nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    if not layer.base_layer.weight.is_meta:
        return {}
    buffers = {f"{prefix}{part}.{name}": buffer for part in KEPT for name, buffer in getattr(layer, part).items()}
    return {key: buffer for key, buffer in buffers.items() if not buffer.is_meta}
