"""What a run has trained, as one safetensors file: an rmbook adapter for masks, the trained parameters for the rest."""

import json
import os
from pathlib import Path

from torch import nn

from rmbook.adapters.adapter_file import (
    ADAPTER_FORMAT,
    AdapterBaseError,
    AdapterCorruptError,
    base_fingerprint,
    load_adapter,
    read_contents,
    save_adapter,
)
from rmbook.engine.masking import RandomMask
from rmbook.files import digest_tensors, write_safetensors
from rmbook.methods.applied_method import AppliedMethod
from rmbook.methods.apply import apply_method

FORMAT = "rmbook-method-1"


def save_trained(method: AppliedMethod, path: str | os.PathLike, fingerprint: str | None) -> None:
    """Write what `method` trained, completely or not at all.

    Args:
        method: on the model.
        path: the file.
        fingerprint: `base_fingerprint` of the model before the method was applied; not needed for masks.
    """
    if method.mask is not None:
        return save_adapter(method.mask, path)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in method.state().items()}
    about = {"method": method.name, "settings": method.settings, "base_fingerprint": fingerprint}
    text = json.dumps(about)
    metadata = {"format": FORMAT, "about": text, "content": digest_tensors(tensors, text)}
    write_safetensors(Path(path), tensors, metadata)


def load_trained(model: nn.Module, path: str | os.PathLike) -> AppliedMethod | RandomMask:
    """Put what a file holds on the base model that it was trained on, in place.

    Raises:
        FileNotFoundError: there is no such file.
        AdapterCorruptError: it is damaged, or of another kind.
        AdapterBaseError: it was trained on another base model.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no adapter file at {path}.")
    metadata, tensors = read_contents(path)
    if metadata.get("format") == ADAPTER_FORMAT:
        return load_adapter(model, path)
    if metadata.get("format") != FORMAT or digest_tensors(tensors, metadata["about"]) != metadata.get("content"):
        raise AdapterCorruptError(f"{path} is damaged, or not written by rmbook: its content hash does not fit.")
    about = json.loads(metadata["about"])
    if about["base_fingerprint"] != base_fingerprint(model):
        raise AdapterBaseError(f"{path} was trained on another base model: load the same weights, in the same dtype.")
    settings = {name: value for name, value in about["settings"].items() if value is not None}
    method = apply_method(model, about["method"], **settings)
    method.load_state(tensors)
    return method
