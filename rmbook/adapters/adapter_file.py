"""Adapters: the trained values of a mask as one small safetensors file.

A position costs four bytes, as much as a value in float32. Masks that were drawn need not store theirs: they follow
from the seed, and a hash of each layer's positions proves on loading that this machine draws the same ones. For
OPT-13b at ratio 1e-5 (128,535 values) that makes 1.03 MB with positions and float32 values, 0.51 MB from the seed, and
0.26 MB from the seed with bfloat16 values.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from rmbook.adapters.adapter_header import (
    ADAPTER_FORMAT,
    BUFFERS,
    FIELDS,
    QUANTISED,
    AdapterHeader,
    read_adapter_header,
)
from rmbook.adapters.base import ALTERED, base_fingerprint, check_base, check_sum, find_misfit, name_quantisation
from rmbook.adapters.errors import AdapterBaseError, AdapterCorruptError, AdapterError
from rmbook.engine.buffers import running_statistics, saved_buffers, write_buffers
from rmbook.engine.masking import RandomMask, apply_masks
from rmbook.engine.quantised import base_entries
from rmbook.engine.sharded import writing_once
from rmbook.engine.shards import whole
from rmbook.engine.targets import check_targets, named_layers
from rmbook.files import UnreadableFileError
from rmbook.masks.recipe import MaskRecipe
from rmbook.masks.sample import Mask
from rmbook.tensor_files import FLOATS, digest_tensors, read_safetensors, write_safetensors
from rmbook.version import __version__


@dataclass(frozen=True)
class Adapter:
    """Content of an adapter file, checked; no model is changed yet.

    Attributes:
        masks: by layer name.
        values: (nnz,) by layer name, in the dtype in which they are stored; S = scale * values.
        scale: of the values.
        recipe: how the masks were drawn; None if they were given.
        buffers: of the model, by name, that training changed, such as a batch norm's running statistics.
    """

    masks: dict[str, Mask]
    values: dict[str, torch.Tensor]
    recipe: MaskRecipe | None
    scale: float
    buffers: dict[str, torch.Tensor]


def save_adapter(
    masking: RandomMask,
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    store_positions: bool = False,
) -> None:
    """Write the values of `masking` to a safetensors file, completely or not at all.

    Of a sharded model, all processes call it at the same time, and the first one writes; the file is as any other.

    Args:
        masking: what `apply_random_mask` or `apply_masks` returned.
        path: the file; its folder must exist. An older file is replaced in one step; through a symbolic link, the
            file that it points to. The file holds running statistics of norm layers, too.
        dtype: of the stored values, which are rounded to it; as they are if None. bfloat16 halves the file.
        store_positions: store the positions (int32) although the seed would do, for readers without rmbook. Masks
            without a recipe are always stored with their positions.

    Raises:
        ValueError: if the mask was removed from its model already, values are not finite (in `dtype`), or `dtype` is no
            floating type.
        FileNotFoundError: if the folder does not exist.
        OSError: if the path is a FIFO, a socket, a device or a folder, or writing fails (a full disk).

    Example:
        >>> import tempfile
        >>> from rmbook import apply_random_mask
        >>> model = nn.Sequential(nn.Linear(30, 20))
        >>> masking = apply_random_mask(model, ["0"], density=0.1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_adapter(masking, f"{folder}/adapter.safetensors")
        ...     plain = masking.remove()  # the base again
        ...     load_adapter(plain, f"{folder}/adapter.safetensors").targets
        ('0',)
    """
    masking.check_savable()
    if dtype is not None and dtype not in FLOATS:
        raise ValueError(f"dtype must be one of {', '.join(map(str, FLOATS))}, got {dtype!r}.")
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot save {path.name}: the folder {path.parent} does not exist; create it first.")
    tensors, layers = {}, {}
    for name, layer in masking.layers.items():
        values = whole(layer.values.detach()).cpu().to(dtype or layer.values.dtype).contiguous()
        if not values.isfinite().all():
            raise ValueError(
                f"the values of {name!r} are not all finite in {values.dtype}: the training diverged, or the type's "
                "range is too small; nothing was written."
            )
        tensors[f"{name}.values"] = values
        if store_positions or masking.recipe is None:
            tensors[f"{name}.positions"] = layer.mask.positions.cpu().contiguous()
        layers[name] = {"shape": layer.mask.shape, "digest": layer.mask.digest()}
    kept = running_statistics(masking.model)
    buffers = {name: buffer for name, buffer in saved_buffers(masking.model).items() if name in kept}
    buffers |= masking.buffers.changed()
    tensors |= {f"{BUFFERS}:{name}": buffer.detach().cpu().contiguous() for name, buffer in buffers.items()}
    metadata = {
        "format": ADAPTER_FORMAT,
        "rmbook_version": __version__,
        "base_fingerprint": base_fingerprint(masking.model, masking.buffers.before),
        "recipe": json.dumps(masking.recipe and asdict(masking.recipe)),
        "scale": json.dumps(next(iter(masking.layers.values())).scale),
        "layers": json.dumps(layers),
        **({BUFFERS: json.dumps(sorted(buffers))} if buffers else {}),
        **({QUANTISED: text} if (text := name_quantisation(masking.model, masking.layers)) else {}),
    }
    metadata["content"] = content_digest(tensors, metadata)
    with writing_once(masking.layers.values()) as writes:
        if writes:
            write_safetensors(path, tensors, metadata)


def load_adapter(model: nn.Module, path: str | os.PathLike[str], *, unused: str = "error") -> RandomMask:
    """Apply the masks and the values of an adapter file to `model`, in place.

    Args:
        model: the base model the adapter was trained on, unmasked, in the same dtype.
        path: a file of `save_adapter`, also a stranger's: it is checked before it is used.
        unused: for training that goes on; see `rmbook.apply_random_mask`.

    Returns:
        The `RandomMask`, with the stored values; training can go on. `remove` gives the model its own buffers back.

    Raises:
        FileNotFoundError, AdapterCorruptError, AdapterError, AdapterBaseError: as for `read_adapter`.
        TargetError: the model cannot be masked, for example because it is masked already.
    """
    adapter = read_adapter(path, model)
    scale, values = adapter.scale, adapter.values
    masking = apply_masks(model, adapter.masks, adapter.recipe, scale=scale, unused=unused, values=values)
    write_buffers(model, adapter.buffers)
    return masking


def read_adapter(
    path: str | os.PathLike[str], model: nn.Module | None = None, fingerprint: str | None = None
) -> Adapter:
    """Read and check an adapter file; masks that it does not hold are drawn again.

    Args:
        path: the file.
        model: the base model; stays as it is. The file's layers are compared with it before anything is read, drawn or
            allocated by them, so give it for every file that may be a stranger's.
        fingerprint: of the base model, if it is known.

    Raises:
        FileNotFoundError: there is no such file.
        AdapterCorruptError: the file is truncated, altered, forged or no rmbook adapter.
        AdapterBaseError: it was trained on another base model.
        AdapterError: this installation draws other positions from the seed than the one that wrote the file.
        TargetError: the model cannot be masked.
    """
    header = read_adapter_header(path)
    if model is not None:
        if (own := name_quantisation(model, header.shapes)) != header.quantised:
            raise AdapterBaseError(
                f"{path} was trained on {header.quantised or 'weights that are not quantised'}; this model's are "
                f"{own or 'not quantised'}: load the base as it was quantised then."
            )
        base = fingerprint or base_fingerprint(model)
        if misfit := find_misfit(header.shapes, model):
            check_base(header.base_fingerprint, base, path)
            raise AdapterCorruptError(f"{path} {misfit}, though it names this model as its base: {ALTERED}")
    tensors = _read_tensors(path, header)
    if model is not None:
        check_base(header.base_fingerprint, base, path)
        check_targets(model, {name: named_layers(model)[name] for name in header.shapes})
    values = {name: tensors[f"{name}.values"] for name in header.shapes}
    if header.positions:
        try:
            masks = {name: Mask.checked(header.shapes[name], tensors[f"{name}.positions"]) for name in values}
        except ValueError as error:
            raise AdapterCorruptError(f"{path} does not describe an adapter: {error}") from None
    else:
        assert header.recipe is not None  # read_adapter_header wants one of the two
        masks = header.recipe.draw(header.shapes)
    if any(mask.digest() != header.digests[name] for name, mask in masks.items()):
        if header.positions:
            raise AdapterCorruptError(f"{path} has positions that are not those of its masks; fetch it again.")
        raise AdapterError(
            f"{path}: this installation draws other mask positions from its seed than the one that wrote the file "
            f"(rmbook {header.metadata['rmbook_version']!r}); install that version to load it."
        )
    for name, mask in masks.items():
        if len(values[name]) != mask.nnz:
            raise AdapterCorruptError(f"{path} has {len(values[name])} values for {mask.nnz} entries of {name[:80]!r}.")
    buffers = {name: tensors[f"{BUFFERS}:{name}"] for name in header.buffers}
    adapter = Adapter(masks, values, header.recipe, header.scale, buffers)
    if model is not None:
        _check_numbers(adapter, model, path)
    return adapter


def _check_numbers(adapter: Adapter, model: nn.Module, path: str | os.PathLike[str]) -> None:
    layers, own = named_layers(model), saved_buffers(model)
    for name, mask in adapter.masks.items():
        wide = torch.promote_types(layers[name].weight.dtype, torch.float32)  # the dtype of a layer's values
        before = base_entries(layers[name], mask)
        check_sum(name, before, adapter.scale * adapter.values[name].to(wide), path)
    for name, buffer in adapter.buffers.items():
        if name not in own or own[name].shape != buffer.shape or own[name].dtype != buffer.dtype:
            raise AdapterCorruptError(f"{path} has a buffer {name[:80]!r}, which the model does not have so.")


def check_adapter(path: str | os.PathLike[str]) -> AdapterHeader:
    """Check all of an adapter file that can be checked without its model, and return its header.

    Raises:
        FileNotFoundError, AdapterCorruptError: as for `read_adapter`.
    """
    header = read_adapter_header(path)
    _read_tensors(path, header)
    return header


def _read_tensors(path: str | os.PathLike[str], header: AdapterHeader) -> dict[str, torch.Tensor]:
    _, tensors = read_contents(path)
    if content_digest(tensors, header.metadata) != header.metadata["content"]:
        raise AdapterCorruptError(f"{path} was altered after it was saved: its content hash differs; fetch it again.")
    if not all(tensor.isfinite().all() for name, tensor in tensors.items() if name.endswith(".values")):
        raise AdapterCorruptError(f"{path} has values that are not finite.")
    return tensors


def content_digest(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> str:
    """Return the SHA-256 of an adapter file's tensors and of the fields that describe them."""
    fields = (*FIELDS, *(field for field in (BUFFERS, QUANTISED) if field in metadata))
    return digest_tensors(tensors, json.dumps([metadata[field] for field in fields]))


def read_contents(path: str | os.PathLike[str]) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Read metadata and tensors of a safetensors file; raise AdapterCorruptError if it is none."""
    try:
        return read_safetensors(path)
    except UnreadableFileError as error:
        raise AdapterCorruptError(str(error)) from None
