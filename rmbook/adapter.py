"""Adapters: the trained values of a random mask as one small safetensors file.

Positions are not stored. They follow from the seed, the density and the parameters' names; a hash of each layer's
positions proves on loading that this machine draws the same ones.
"""

import hashlib
import json
import os
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

import rmbook
from rmbook.files import replacing
from rmbook.layer import MaskedLinear
from rmbook.masking import RandomMask, apply_random_mask

FORMAT = "rmbook-adapter-1"
FIELDS = ("format", "rmbook_version", "seed", "density", "targets", "base_fingerprint", "layers")


class AdapterError(Exception):
    """An adapter file cannot be used; the model is unchanged."""


class AdapterCorruptError(AdapterError):
    """The file is truncated, altered or no rmbook adapter."""


class AdapterBaseError(AdapterError):
    """The file is sound, but was trained on another base model."""


def base_fingerprint(model: nn.Module) -> str:
    """SHA-256 of names, dtypes, shapes and bytes of the whole base model; values of masks do not count.

    Reads every weight once (about a second a gigabyte). A model loaded in another dtype is another base.
    """
    own = {f"{name}.values" for name, module in model.named_modules() if isinstance(module, MaskedLinear)}
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name not in own and isinstance(tensor, torch.Tensor):
            tensor = tensor.detach().cpu().contiguous()
            digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def save_adapter(masking: RandomMask, path: str | os.PathLike) -> None:
    """Write the values of `masking` to a safetensors file, completely or not at all.

    Args:
        masking: what `apply_random_mask` returned.
        path: the file; its folder must exist. An older file is replaced in one step.

    Raises:
        ValueError: if the mask was removed from its model already.
        FileNotFoundError: if the folder does not exist.
    """
    if not masking.layers:
        raise ValueError("this mask was removed from its model; save the adapter before remove() or merge().")
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot save {path.name}: the folder {path.parent} does not exist; create it first.")
    tensors = {name: values.detach().cpu().contiguous() for name, values in masking.named_parameters()}
    metadata = {
        "format": FORMAT,
        "rmbook_version": rmbook.__version__,
        "seed": str(masking.seed),
        "density": repr(masking.density),
        "targets": json.dumps(masking.targets),
        "base_fingerprint": base_fingerprint(masking.model),
        "layers": json.dumps({name: layer.mask.digest() for name, layer in masking.layers.items()}),
    }
    metadata["content"] = _content_digest(tensors, metadata)
    with replacing(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, metadata)


def load_adapter(model: nn.Module, path: str | os.PathLike) -> RandomMask:
    """Apply the mask and the values of an adapter file to `model`, in place.

    Args:
        model: the base model the adapter was trained on, unmasked, in the same dtype.
        path: a file that `save_adapter` wrote.

    Returns:
        The `RandomMask`, with the stored values.

    Raises:
        FileNotFoundError: there is no such file.
        AdapterCorruptError: the file is truncated, altered or no rmbook adapter.
        AdapterBaseError: `model` is not the base that the adapter was trained on.
        TargetError: the model cannot be masked, for example because it is masked already.
    """
    metadata, tensors = _read(Path(path))
    found = base_fingerprint(model)
    if found != metadata["base_fingerprint"]:
        raise AdapterBaseError(
            f"{path} was trained on a base model with fingerprint {metadata['base_fingerprint'][:12]}..., this model "
            f"has {found[:12]}...: load the same pretrained weights, in the same dtype, unchanged."
        )
    masking = apply_random_mask(
        model, json.loads(metadata["targets"]), density=float(metadata["density"]), seed=int(metadata["seed"])
    )
    drawn = {name: layer.mask.digest() for name, layer in masking.layers.items()}
    if drawn != json.loads(metadata["layers"]):
        masking.remove()
        raise AdapterError(
            f"{path}: this installation draws other mask positions from seed {metadata['seed']} than the one that "
            f"wrote the file (rmbook {metadata['rmbook_version']}); install that version to load it."
        )
    with torch.no_grad():
        for name, values in masking.named_parameters():
            values.copy_(tensors[name])
    return masking


def _read(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no adapter file at {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise AdapterCorruptError(f"{path} is no readable safetensors file ({error}); fetch it again.") from None
    if metadata.get("format") != FORMAT or set(metadata) != {*FIELDS, "content"}:
        raise AdapterCorruptError(
            f"{path} is no rmbook adapter: its format is {metadata.get('format')!r}, expected {FORMAT!r}."
        )
    if _content_digest(tensors, metadata) != metadata["content"]:
        raise AdapterCorruptError(f"{path} was altered after it was saved: its content hash differs; fetch it again.")
    return metadata, tensors


def _content_digest(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps([metadata[field] for field in FIELDS]).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"|{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
