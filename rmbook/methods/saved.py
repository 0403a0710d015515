"""One safetensors file for what a run has trained: an rmbook adapter for masks, the trained parameters for the rest."""

import json
import os
from pathlib import Path
from typing import Any

from torch import nn

from rmbook.adapters.adapter_file import load_adapter, read_contents, save_adapter
from rmbook.adapters.adapter_header import ADAPTER_FORMAT
from rmbook.adapters.base import base_fingerprint
from rmbook.adapters.errors import AdapterBaseError, AdapterCorruptError
from rmbook.engine.masking import RandomMask
from rmbook.files import UnreadableFileError
from rmbook.methods.applied_method import AppliedMethod
from rmbook.methods.apply import apply_method
from rmbook.tensor_files import digest_tensors, read_header, write_safetensors

FORMAT = "rmbook-method-1"
ABOUT = {"method": str, "settings": dict, "base_fingerprint": str}


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
    about = read_about(path)
    if about is None:
        return load_adapter(model, path)
    _, tensors = read_contents(path)
    if about["base_fingerprint"] != base_fingerprint(model):
        raise AdapterBaseError(f"{path} was trained on another base model: load the same weights, in the same dtype.")
    settings = {name: value for name, value in about["settings"].items() if value is not None}
    method = apply_method(model, about["method"], **settings)
    method.load_state(tensors)
    return method


def read_about(path: Path) -> dict[str, Any] | None:
    """Return what a file says of the method whose parameters it holds; None if it is the adapter of a mask.

    Returns:
        "method" (str), "settings" (dict) and "base_fingerprint" (str).

    Raises:
        FileNotFoundError: there is no such file.
        AdapterCorruptError: it is damaged, or of another kind.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no adapter file at {path}.")
    try:
        metadata, _ = read_header(path)
        if metadata.get("format") == ADAPTER_FORMAT:
            return None
        if metadata.get("format") != FORMAT:
            raise AdapterCorruptError(f"{path} is no adapter of rmbook: it names no format that is known.")
        about = json.loads(metadata["about"])
        sound = all(type(about[name]) is kind for name, kind in ABOUT.items())
    except UnreadableFileError as error:
        raise AdapterCorruptError(str(error)) from None
    except (KeyError, RecursionError, TypeError, ValueError):
        sound = False
    if not sound or digest_tensors(read_contents(path)[1], metadata["about"]) != metadata.get("content"):
        raise AdapterCorruptError(f"{path} is damaged, or not written by rmbook: its content hash does not fit.")
    return about
