"""Adapters: the trained values of a mask as one small safetensors file.

A position costs four bytes, as much as a value in float32. Masks that were drawn need not store theirs: they follow
from the seed, and a hash of each layer's positions proves on loading that this machine draws the same ones. For
OPT-13b at ratio 1e-5 (128,535 values) that makes 1.03 MB with positions and float32 values, 0.51 MB from the seed, and
0.26 MB from the seed with bfloat16 values.
"""

import hashlib
import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from rmbook.engine.layer import MaskedLinear
from rmbook.engine.masking import MaskRecipe, RandomMask, apply_masks
from rmbook.errors import RmbookError
from rmbook.files import UnreadableFileError, digest_tensors, hash_tensor, read_safetensors, write_safetensors
from rmbook.masks.sample import Mask
from rmbook.version import __version__

ADAPTER_FORMAT = "rmbook-adapter-3"
FIELDS = ("format", "rmbook_version", "base_fingerprint", "recipe", "scale", "layers")
VALUES_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class AdapterError(RmbookError):
    """An adapter file cannot be used; the model is unchanged."""


class AdapterCorruptError(AdapterError):
    """The file is truncated, altered or no rmbook adapter."""


class AdapterBaseError(AdapterError):
    """The file is sound, but was trained on another base model."""


@dataclass(frozen=True)
class Adapter:
    """The content of an adapter file, checked; belongs to no model yet.

    Attributes:
        masks: by layer name.
        values: (nnz,) by layer name, in the dtype in which they are stored; S = scale * values.
        scale: of the values.
        recipe: how the masks were drawn; None if they were given.
        base_fingerprint: of the model that it was trained on; see `base_fingerprint`.
    """

    masks: dict[str, Mask]
    values: dict[str, torch.Tensor]
    recipe: MaskRecipe | None
    base_fingerprint: str
    scale: float = 1.0


def base_fingerprint(model: nn.Module) -> str:
    """SHA-256 of names, dtypes, shapes and bytes of the whole base model; values of masks do not count.

    Reads every weight once (about a second a gigabyte). A model loaded in another dtype is another base.
    """
    own = {f"{name}.values" for name, module in model.named_modules() if isinstance(module, MaskedLinear)}
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name not in own and isinstance(tensor, torch.Tensor):
            hash_tensor(digest, name, tensor)
    return digest.hexdigest()


def save_adapter(
    masking: RandomMask, path: str | os.PathLike, *, dtype: torch.dtype | None = None, store_positions: bool = False
) -> None:
    """Write the values of `masking` to a safetensors file, completely or not at all.

    Args:
        masking: what `apply_random_mask` or `apply_masks` returned.
        path: the file; its folder must exist. An older file is replaced in one step.
        dtype: of the stored values, which are rounded to it; as they are if None. bfloat16 halves the file.
        store_positions: store the positions (int32) although the seed would do, for readers without rmbook. Masks
            without a recipe are always stored with their positions.

    Raises:
        ValueError: if the mask was removed from its model already, values are not finite (in `dtype`), or `dtype` is no
            floating type.
        FileNotFoundError: if the folder does not exist.
    """
    if not masking.layers:
        raise ValueError("this mask was removed from its model; save the adapter before remove() or merge().")
    if dtype is not None and dtype not in VALUES_DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(str, VALUES_DTYPES))}, got {dtype!r}.")
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot save {path.name}: the folder {path.parent} does not exist; create it first.")
    tensors, layers = {}, {}
    for name, layer in masking.layers.items():
        values = layer.values.detach().cpu().to(dtype or layer.values.dtype).contiguous()
        if not values.isfinite().all():
            raise ValueError(
                f"the values of {name!r} are not all finite in {values.dtype}: the training diverged, or the type's "
                "range is too small; nothing was written."
            )
        tensors[f"{name}.values"] = values
        if store_positions or masking.recipe is None:
            tensors[f"{name}.positions"] = layer.mask.positions.cpu().contiguous()
        layers[name] = {"shape": layer.mask.shape, "digest": layer.mask.digest()}
    metadata = {
        "format": ADAPTER_FORMAT,
        "rmbook_version": __version__,
        "base_fingerprint": base_fingerprint(masking.model),
        "recipe": json.dumps(masking.recipe and asdict(masking.recipe)),
        "scale": json.dumps(next(iter(masking.layers.values())).scale),
        "layers": json.dumps(layers),
    }
    metadata["content"] = _content_digest(tensors, metadata)
    write_safetensors(path, tensors, metadata)


def load_adapter(model: nn.Module, path: str | os.PathLike) -> RandomMask:
    """Apply the masks and the values of an adapter file to `model`, in place.

    Args:
        model: the base model the adapter was trained on, unmasked, in the same dtype.
        path: a file that `save_adapter` wrote.

    Returns:
        The `RandomMask`, with the stored values; training can go on.

    Raises:
        FileNotFoundError, AdapterCorruptError, AdapterError: as for `read_adapter`.
        AdapterBaseError: `model` is not the base that the adapter was trained on.
        TargetError: the model cannot be masked, for example because it is masked already.
    """
    adapter = read_adapter(path)
    check_base(adapter, base_fingerprint(model), path)
    masking = apply_masks(model, adapter.masks, adapter.recipe, scale=adapter.scale)
    with torch.no_grad():
        for name, layer in masking.layers.items():
            layer.values.copy_(adapter.values[name])
    return masking


def check_base(adapter: Adapter, fingerprint: str, path: str | os.PathLike) -> None:
    """Raise AdapterBaseError unless the adapter was trained on the base with this fingerprint."""
    if fingerprint != adapter.base_fingerprint:
        raise AdapterBaseError(
            f"{path} was trained on a base model with fingerprint {adapter.base_fingerprint[:12]}..., this model "
            f"has {fingerprint[:12]}...: load the same pretrained weights, in the same dtype, unchanged."
        )


def read_adapter(path: str | os.PathLike) -> Adapter:
    """Read and check an adapter file; masks that it does not hold are drawn again.

    Raises:
        FileNotFoundError: there is no such file.
        AdapterCorruptError: the file is truncated, altered or no rmbook adapter.
        AdapterError: this installation draws other positions from the seed than the one that wrote the file.
    """
    path = Path(path)
    metadata, tensors = _read(path)
    recipe, scale, layers = (json.loads(metadata[field]) for field in ("recipe", "scale", "layers"))
    try:
        recipe = recipe and MaskRecipe(**recipe | {"targets": tuple(recipe["targets"])})
        shapes = {name: tuple(layer["shape"]) for name, layer in layers.items()}
        stored = {name: tensors[f"{name}.positions"] for name in layers if f"{name}.positions" in tensors}
        masks = (
            {name: Mask.checked(shapes[name], positions) for name, positions in stored.items()}
            if stored.keys() == layers.keys()
            else recipe.draw(shapes)
        )
        values = {name: tensors[f"{name}.values"] for name in layers}
        sound = all(
            values[name].shape == (mask.nnz,) and values[name].dtype in VALUES_DTYPES and values[name].isfinite().all()
            for name, mask in masks.items()
        )
        sound = sound and isinstance(scale, float) and 0 < scale < math.inf
        same = all(mask.digest() == layers[name]["digest"] for name, mask in masks.items())
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # made to deceive: its hash is right
        raise AdapterCorruptError(f"{path} does not describe an adapter: {error!r}.") from None
    if not same:
        raise AdapterError(
            f"{path}: this installation draws other mask positions from its seed than the one that wrote the file "
            f"(rmbook {metadata['rmbook_version']}); install that version to load it."
        )
    if not sound:
        raise AdapterCorruptError(f"{path} has values that do not fit its masks or are not finite.")
    return Adapter(masks, values, recipe, metadata["base_fingerprint"], scale)


def _read(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no adapter file at {path}.")
    metadata, tensors = read_contents(path)
    if metadata.get("format") != ADAPTER_FORMAT or set(metadata) != {*FIELDS, "content"}:
        raise AdapterCorruptError(
            f"{path} is no rmbook adapter: its format is {metadata.get('format')!r}, expected {ADAPTER_FORMAT!r}."
        )
    if _content_digest(tensors, metadata) != metadata["content"]:
        raise AdapterCorruptError(f"{path} was altered after it was saved: its content hash differs; fetch it again.")
    return metadata, tensors


def _content_digest(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> str:
    return digest_tensors(tensors, json.dumps([metadata[field] for field in FIELDS]))


def read_contents(path: str | os.PathLike) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Read metadata and tensors of a safetensors file; raise AdapterCorruptError if it is none."""
    try:
        return read_safetensors(path)
    except UnreadableFileError as error:
        raise AdapterCorruptError(str(error)) from None
