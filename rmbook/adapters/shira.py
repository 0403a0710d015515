"""SHiRA adapters of `peft`, in both directions.

A SHiRA layer (Bhardwaj et al. 2024) is the layer of this book, W + S with a sparse S, and its files hold S's positions.
What differs is the count: one integer r gives every layer exactly r (in + out) entries, where a Bernoulli mask has any
number. A mask with fewer entries is written with zeros at further positions, which changes no output.
"""

import math
import os

import numpy as np
import torch
from torch import nn

from rmbook.adapters.base import base_fingerprint, check_base, check_sum
from rmbook.adapters.errors import AdapterBaseError, AdapterCorruptError
from rmbook.adapters.shira_folder import Origin, ShiraError, ShiraFolder, read_folder, write_folder
from rmbook.engine.conv1d import is_conv1d
from rmbook.engine.dequantise import weight_shape
from rmbook.engine.masking import RandomMask, apply_masks
from rmbook.engine.quantised import base_entries
from rmbook.engine.sharded import writing_once
from rmbook.engine.shards import whole
from rmbook.engine.targets import check_targets, named_layers
from rmbook.masks.sample import Mask, positions_dtype


def save_as_shira(masking: RandomMask, folder: str | os.PathLike[str]) -> int:
    """Write S as a SHiRA adapter for `peft.PeftModel.from_pretrained(base, folder)`: the same outputs without rmbook.

    r is the smallest that holds the fullest layer. Layers with fewer than r (in + out) entries get zeros at further
    random positions. Training that is continued in peft trains these too; `load_from_shira` leaves them out.

    Load the folder with `peft.PeftModel.from_pretrained`, not with transformers' own `model.load_adapter`, which drops
    SHiRA's positions: the adapter then fails at the model's first call (KeyError), rather than give other outputs.

    If the base model is sharded, all processes call it together.

    Args:
        masking: what `apply_random_mask` or `apply_masks` returned; it stays as it is.
        folder: a new or an empty folder, whose parent exists. It is written completely or not at all.

    Returns:
        SHiRA's r.

    Raises:
        ValueError: the mask was removed from its model already.
        ShiraError: a layer is too small for the r that another one needs, is GPT-2's Conv1D, which SHiRA in peft does
            not know, or has a value that is not finite; or training changed buffers, which SHiRA does not hold.
        FileExistsError: the folder has content, or is a file.
        FileNotFoundError: the folder's parent does not exist.
    """
    masking.check_savable()
    if conv1d := [name for name, layer in masking.layers.items() if is_conv1d(layer)]:
        raise ShiraError(
            f"{conv1d[0]!r} is a Conv1D in the model's own form, and SHiRA in peft has only linear layers: use "
            "save_adapter or save_merged."
        )
    if changed := list(masking.buffers.changed()):
        raise ShiraError(f"training changed {changed[0]!r}, which SHiRA cannot hold: use save_adapter or save_merged.")
    rank, entries = _common_rank(masking), {}
    for name, layer in masking.layers.items():
        out, columns = layer.mask.shape
        values = (layer.scale * whole(layer.values.detach())).cpu()
        if not values.isfinite().all():
            raise ShiraError(f"{name!r} has values that are not finite: its training diverged; nothing was written.")
        positions = _padded(layer.mask, rank * (out + columns))
        padding = values.new_zeros(positions.numel() - values.numel())
        entries[name] = torch.stack([positions // columns, positions % columns]), torch.cat([values, padding])
    # The origin lets load_from_shira give back the very mask, and refuse another base.
    counts = {name: layer.mask.nnz for name, layer in masking.layers.items()}
    origin = Origin(base_fingerprint(masking.model), masking.recipe, counts)
    contents = ShiraFolder(rank, frozenset(entries), True, entries, origin)
    with writing_once(masking.layers.values()) as writes:
        if writes:
            write_folder(folder, contents, base_model_name=getattr(masking.model, "name_or_path", None) or None)
    return rank


def load_from_shira(model: nn.Module, folder: str | os.PathLike[str]) -> RandomMask:
    """Apply a SHiRA adapter to `model`, in place: one that `peft` saved, or `save_as_shira`.

    A folder that peft saved knows of its base only names and shapes, and of the mask only the positions: the result
    has no recipe. A folder from `save_as_shira` gives back the recipe and the exact mask. A scale set in peft
    (`set_scale`) is in no file; peft itself loads with scale 1.

    Args:
        model: the plain base model, unmasked. On an error it is unchanged.
        folder: a local folder with adapter_config.json and adapter_model.safetensors; pickles are not read.

    Raises:
        FileNotFoundError: one of the two files does not exist.
        AdapterCorruptError: a file is truncated or altered.
        AdapterBaseError: `model` has other layers, shapes or weights than the base that the adapter is for.
        ShiraError: another kind of adapter, or one that changes more than entries of linear layers.
        TargetError: a layer cannot be masked: no plain `nn.Linear` (such as Conv1D), tied, or masked already.
    """
    contents = read_folder(folder)
    origin, entries = contents.origin, contents.entries
    if origin:
        check_base(origin.base_fingerprint, base_fingerprint(model), folder)
    modules = named_layers(model)
    meant = [name for name in modules if name and _is_target(name, contents.targets, contents.whole_names)]
    if differing := sorted(set(meant) ^ set(entries)):
        raise AdapterBaseError(
            f"{folder} holds entries of {len(entries)} layers, its target_modules mean {len(meant)} layers of this "
            f"model; they differ at {', '.join(name[:80] for name in differing[:3])}: load the base model that it was "
            "trained on."
        )
    layers = {name: modules[name] for name in meant}
    check_targets(model, layers)
    masks, values = {}, {}
    for name, layer in layers.items():
        shape = weight_shape(layer)
        positions = _positions(name, shape, contents.rank, *entries[name])
        count = origin.counts[name] if origin else positions.numel()  # what follows is save_as_shira's padding
        ordered, order = positions[:count].sort()
        masks[name], values[name] = Mask(shape, ordered), entries[name][1][:count][order]
        wide = torch.promote_types(layer.weight.dtype, torch.float32)
        check_sum(name, base_entries(layer, masks[name]), values[name].to(wide), folder)
    return apply_masks(model, masks, origin.recipe if origin else None, values=values)


def _common_rank(masking: RandomMask) -> int:
    masks = {name: layer.mask for name, layer in masking.layers.items()}
    needed = {name: max(1, math.ceil(mask.nnz / sum(mask.shape))) for name, mask in masks.items()}
    fullest = max(needed, key=needed.__getitem__)
    for name, mask in masks.items():
        if needed[fullest] * sum(mask.shape) > mask.numel:
            raise ShiraError(
                "SHiRA cannot express this mask. It trains r (in + out) entries in every layer, with one r: the "
                f"{masks[fullest].nnz} entries of {fullest!r} need r = {needed[fullest]}, for which {name!r} of shape "
                f"{mask.shape} is too small. Use save_adapter or save_merged, or mask with a lower density."
            )
    return needed[fullest]


def _padded(mask: Mask, count: int) -> torch.Tensor:
    # The mask's positions, then others of the same matrix up to `count`, drawn at random.
    own = mask.positions.cpu().long()
    drawn = np.random.default_rng(0).choice(mask.numel - mask.nnz, count - mask.nnz, replace=False)
    drawn = torch.from_numpy(drawn)  # the k-th free position is k + the number of own ones before it
    free_before = own - torch.arange(own.numel())
    return torch.cat([own, drawn + torch.searchsorted(free_before, drawn, right=True)])


def _is_target(name: str, targets: frozenset[str], whole_names: bool) -> bool:
    # peft's rule; that for lists, which hold endings of names, is also find_targets'.
    parts = name.split(".")
    return name in targets or (not whole_names and any(".".join(parts[i:]) in targets for i in range(1, len(parts))))


def _positions(
    name: str, shape: tuple[int, int], rank: int, indices: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    # Flat positions of a layer's entries in the file's order, or a refusal. peft checks no index: one outside of the
    # matrix is a write into other memory there.
    if weight.numel() != rank * sum(shape):
        raise AdapterBaseError(
            f"{name!r} has shape {shape}, so SHiRA with r = {rank} trains {rank * sum(shape)} of its entries, but the "
            f"file holds {weight.numel()}: it was altered, or is for a base model with other shapes."
        )
    rows, columns = indices.long()
    if ((rows < 0) | (rows >= shape[0]) | (columns < 0) | (columns >= shape[1])).any():
        raise AdapterBaseError(
            f"{name!r} has shape {shape}, but the file holds indices outside of it: it was altered, or is for a base "
            "model with other shapes."
        )
    positions = rows * shape[1] + columns
    if positions.unique().numel() != positions.numel():
        raise AdapterCorruptError(f"{name!r}: the file names an entry twice, which no mask does; fetch it again.")
    return positions.to(positions_dtype(math.prod(shape)))
