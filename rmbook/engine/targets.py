"""Finding the layers that are meant by names, and checking that they can be masked."""

from collections.abc import Sequence

import torch
from torch import nn

from rmbook.engine.layer import MaskedLinear
from rmbook.engine.maskable import check_maskable
from rmbook.engine.shards import FSDP1, is_flattened, is_sharded
from rmbook.errors import RmbookError, closest

WRAPPERS = ("_orig_mod", "module", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")


class TargetError(RmbookError, ValueError):
    """The targets name no layer, or a layer that cannot be masked."""


def find_targets(model: nn.Module, targets: Sequence[str] | str) -> dict[str, nn.Module]:
    """Find the modules whose name is one of `targets` or ends with "." and one of them, in the model's order.

    Names are those of `named_layers`: what wrappers add to them does not count.

    Raises:
        TargetError: if a target matches nothing; the message lists names that are close.
    """
    targets = [targets] if isinstance(targets, str) else list(targets)
    if not targets or not all(isinstance(target, str) and target for target in targets):
        raise TargetError(f"targets must be module names such as ['q_proj', 'v_proj'], got {targets!r}.")
    modules = {name: module for name, module in named_layers(model).items() if name}
    for target in targets:
        if not any(_matches(name, target) for name in modules):
            linear = {name for name, module in modules.items() if isinstance(module, nn.Linear)}
            ends = {".".join(name.split(".")[-parts:]) for name in linear for parts in (1, 2, 3)}
            ends = sorted(end for end in ends if not any(part.isdigit() for part in end.split(".")[:-1]))
            raise TargetError(
                f"no layer matches the target {target!r}; "
                + (closest(target, ends) if linear else "the model has no linear layer.")
            )
    return {name: module for name, module in modules.items() if any(_matches(name, target) for target in targets)}


def plain_names(model: nn.Module) -> dict[str, str]:
    """Names of a model's modules without what wrappers add to them, by the names that `named_modules` gives.

    torch.compile, DistributedDataParallel, FSDP and checkpoint_wrapper put the module that they wrap under a name of
    their own. Masks, adapters and fingerprints leave it out, so that they are the same with and without a wrapper.
    """
    modules, plain = dict(model.named_modules()), {"": ""}
    for name in modules:
        if name:
            parent, _, last = name.rpartition(".")
            holder = modules[parent]
            own = [tensor for tensor in (*holder._parameters.values(), *holder._buffers.values()) if tensor is not None]
            wraps = last in WRAPPERS and len(holder._modules) == 1 and not own
            plain[name] = plain[parent] if wraps else f"{plain[parent]}.{last}".removeprefix(".")
    return plain


def plain_key(name: str, names: dict[str, str]) -> str:
    """Plain name of a parameter, a buffer or an entry of `state_dict`, by the `plain_names` of its model's modules."""
    owner, _, part = name.rpartition(".")
    return f"{names.get(owner, owner)}.{part}".removeprefix(".")


def named_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Modules of a model by their plain names; under the name of a wrapper stands the module that it wraps."""
    names = plain_names(model)
    return {names[name]: module for name, module in model.named_modules()}


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith("." + target)


def _memory(tensor: torch.Tensor) -> torch.Tensor:
    """Return the plain tensor that holds the numbers of one of another class: a shard, or quantised numbers."""
    while hasattr(tensor, "__tensor_flatten__"):
        tensor = getattr(tensor, tensor.__tensor_flatten__()[0][0])
    return tensor


def refuse_tied(model: nn.Module, layers: dict[str, nn.Module]) -> None:
    """Raise TargetError if another parameter or buffer shares memory with the weight of one of `layers`."""
    # Memory ranges, not storages: tensors of one memory-mapped checkpoint share a storage without overlapping.
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    parts = [(name, _memory(tensor)) for name, tensor in tensors]
    spans = [(t.device, t.data_ptr(), t.data_ptr() + t.numel() * t.element_size(), n) for n, t in parts if t.numel()]
    for name, layer in layers.items():
        weight = _memory(layer.weight)
        start, end = weight.data_ptr(), weight.data_ptr() + weight.numel() * weight.element_size()
        sharing = [n for device, first, last, n in spans if device == weight.device and first < end and start < last]
        if len(sharing) > 1:
            raise TargetError(
                f"the weight of {name!r} is tied: {', '.join(sharing)} share its memory, and merging the mask into one "
                "would change the others. Untie them (give the layer a copy of the weight) or choose other targets."
            )


def refuse_parallel(model: nn.Module, layers: dict[str, nn.Module]) -> None:
    """Raise TargetError if FSDP1 has the model, or anything but FSDP2 has sharded the weight of one of `layers`."""
    weights = {name: getattr(layer, "weight", None) for name, layer in layers.items()}
    flattened = any(is_flattened(weight) for weight in weights.values())
    if flattened or any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise TargetError(f"the model is wrapped in {FSDP1}.")
    if not any(is_sharded(weight) for weight in weights.values()):
        return
    from torch.distributed.fsdp import FSDPModule

    gathers = [module for module in model.modules() if isinstance(module, FSDPModule)]
    gathered = {id(inner) for module in gathers for inner in module.modules()}
    if others := [name for name in layers if is_sharded(weights[name]) and id(layers[name]) not in gathered]:
        raise TargetError(
            f"the weight of {others[0]!r} is sharded, and no module around it in this model was given to fully_shard "
            "(FSDP2): tensor parallelism (parallelize_module, tp_plan) is not supported. Under FSDP2, give the whole "
            "model."
        )


def check_targets(model: nn.Module, layers: dict[str, nn.Module]) -> None:
    """Raise TargetError unless every one of `layers` of `model` can be masked, and none is."""
    refuse_parallel(model, layers)
    for name, layer in layers.items():
        try:
            check_maskable(layer)
        except (TypeError, ValueError) as error:
            raise TargetError(f"cannot mask layer {name!r}: {error}") from None
    earlier = [name for name, module in model.named_modules() if isinstance(module, MaskedLinear)]
    if earlier:  # freezing the rest would silently stop the training of their values
        raise TargetError(
            f"the model is masked already, at {', '.join(earlier[:3])}; remove that mask first (RandomMask.remove), "
            "or name all targets in one call."
        )
    refuse_tied(model, layers)
