"""The base model of an adapter: its fingerprint, and the checks that an adapter fits it."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import nn

from rmbook.adapters.errors import AdapterBaseError, AdapterCorruptError
from rmbook.engine.buffers import running_statistics
from rmbook.engine.conv1d import is_conv1d
from rmbook.engine.dequantise import quantisation, weight_shape
from rmbook.engine.layer import ENTRIES, MaskedLinear
from rmbook.engine.shards import whole
from rmbook.engine.targets import named_layers, plain_key, plain_names
from rmbook.tensor_files import hash_tensor

ALTERED = "no training does that, so the file was altered; get it again from whoever made it."


def base_fingerprint(model: nn.Module, buffers: Mapping[str, torch.Tensor] | None = None) -> str:
    """Return the SHA-256 of names, dtypes, shapes and bytes of the whole base model.

    Values of masks do not count, nor do running statistics of norm layers, nor what wrappers add to names. Reads every
    weight once (about a second a gigabyte). A model loaded in another dtype is another base. Of a sharded model all
    processes ask for it at the same time, and all get it.

    Args:
        model: with or without a mask.
        buffers: by name, in place of the model's own: as they were before training changed them.
    """
    names, layers = plain_names(model), named_layers(model)
    tensors = {plain_key(key, names): tensor for key, tensor in model.state_dict().items()}
    masked = {f"{name}.".removeprefix("."): layer for name, layer in layers.items() if isinstance(layer, MaskedLinear)}
    originals = {prefix: tensors.pop(f"{prefix}{ENTRIES}", None) for prefix in masked}
    for name in {f"{prefix}values" for prefix in masked} | running_statistics(model):
        tensors.pop(name, None)
    tensors |= {n: value.to(tensors[n].dtype) for n, value in (buffers or {}).items() if n in tensors}
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        if not isinstance(tensor, torch.Tensor):
            continue
        tensor, prefix = whole(tensor), name.removesuffix("weight")  # one at a time: a model may outgrow one process
        if f"{prefix}weight" == name and is_conv1d(layers.get(prefix.removesuffix("."))):
            tensor = tensor.t().contiguous()
        if f"{prefix}weight" == name and originals.get(prefix) is not None:  # quantised weights have none, and hold W
            positions = masked[prefix].mask.positions.long()
            tensor = tensor.detach().clone().view(-1).index_copy_(0, positions, originals[prefix]).view_as(tensor)
        for part, inner in _flat(name, tensor):
            hash_tensor(digest, part, inner)
    return digest.hexdigest()


def _flat(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield a tensor, or the plain tensors that one of another class, such as torchao's, is made of."""
    if hasattr(tensor, "__tensor_flatten__"):
        for part in tensor.__tensor_flatten__()[0]:
            yield from _flat(f"{name}.{part}", getattr(tensor, part))
    else:
        yield name, tensor


def name_quantisation(model: nn.Module, layers: Iterable[str]) -> str:
    """Say how the weights of some layers are quantised; an empty string if they are not."""
    there = named_layers(model)
    return "; ".join(sorted({quantisation(there[name]) or "" for name in layers if name in there}))


def check_base(wanted: str, fingerprint: str, path: str | os.PathLike[str]) -> None:
    """Raise AdapterBaseError unless the base that an adapter was trained on is the one with this fingerprint."""
    if fingerprint != wanted:
        raise AdapterBaseError(
            f"{path} was trained on a base model with fingerprint {wanted[:12]}..., this model "
            f"has {fingerprint[:12]}...: load the same pretrained weights, in the same dtype, unchanged."
        )


def find_misfit(shapes: Mapping[str, tuple[int, int]], model: nn.Module) -> str | None:
    """Say in words which layer the model does not have as a linear layer of its shape (out, in); None if it has all."""
    layers = named_layers(model)
    for name, shape in shapes.items():
        layer = layers.get(name)
        if not isinstance(layer, nn.Linear):
            return f"is for a layer {name[:80]!r}, which this model does not have"
        if (own := weight_shape(layer)) != tuple(shape):
            return f"gives {name[:80]!r} the shape {tuple(shape)}, in the model it has {own}"
    return None


@torch.no_grad()
def check_sum(name: str, before: torch.Tensor, delta: torch.Tensor, path: str | os.PathLike[str]) -> None:
    """Raise AdapterCorruptError if W + S is not finite in the weight's dtype, where W is.

    Args:
        name: of the layer.
        before: (nnz,) entries of W where S has its own, in W's dtype.
        delta: (nnz,) entries of S, of at least the weight's precision.
        path: of the file, for the message.
    """
    wide = torch.promote_types(before.dtype, torch.float32)
    after = (before.to(wide) + delta.to(before.device, wide)).to(before.dtype)
    if not (after.isfinite() | ~before.isfinite()).all():
        raise AdapterCorruptError(f"{path} makes weights of {name[:80]!r} infinite in {before.dtype}: {ALTERED}")
