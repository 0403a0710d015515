"""The linear layers that can be masked, and the change of a layer's class."""

from types import MethodType

import torch
from torch import nn

from rmbook.engine.dequantise import can_dequantise
from rmbook.engine.shards import check_placements, is_sharded
from rmbook.tensor_files import FLOATS


def change_class(linear: nn.Linear, cls: type[nn.Linear]) -> None:
    """Turn a layer into one of another class, in place."""
    # accelerate's hooks (a device_map) keep the method `forward` of the class in the instance: it follows.
    for name in ("forward", "_old_forward"):
        if getattr(linear.__dict__.get(name), "__func__", None) is type(linear).forward:
            linear.__dict__[name] = MethodType(cls.forward, linear)
    linear.__class__ = cls


def check_maskable(linear: nn.Module) -> None:
    """Raise TypeError or ValueError if `linear` cannot be masked; see `rmbook.engine.layer.MaskedLinear.attach`."""
    kind = type(linear)
    if getattr(linear, "is_masked", False):
        raise TypeError("the layer is masked already; remove the first mask (RandomMask.remove) before adding another.")
    quantised = can_dequantise(linear)
    if kind.__name__.startswith("FSDP") and kind.__module__.startswith("torch.distributed.fsdp"):
        raise TypeError(
            "it was given to fully_shard itself, which gathers its weight only when this very layer is called: mask "
            "the model before fully_shard, or give fully_shard the block around the layer."
        )
    if kind is not nn.Linear and not quantised:
        raise TypeError(
            f"expected a plain torch.nn.Linear, or a quantised one of bitsandbytes or torchao that holds its numbers, "
            f"got {kind.__module__}.{kind.__qualname__}; other layers, such as embeddings and convolutions, are not "
            "supported: name targets that are linear layers."
        )
    inner = linear.__dict__.get("_old_forward", linear.__dict__.get("forward"))
    if "forward" in linear.__dict__ and getattr(inner, "__func__", None) is not kind.forward:
        raise TypeError(
            "its forward was replaced on this one instance, so the masked layer would never run; restore it first."
        )
    refuse_offloaded(linear)
    weight = linear.weight
    refuse_partitioned(weight, ValueError)
    if weight.is_meta:
        raise ValueError("its weight is on the meta device and holds no numbers; load the weights before masking.")
    if quantised:
        return
    if weight.dtype not in FLOATS:
        raise ValueError(f"its weight has dtype {weight.dtype}; float32, bfloat16, float16 or float64 is needed.")
    if is_sharded(weight):
        check_placements(weight)
    elif type(weight.data) is not torch.Tensor or weight.layout is not torch.strided or not weight.is_contiguous():
        raise ValueError("its weight is not a plain contiguous tensor (quantised or sparse); it is unsupported.")


def refuse_partitioned(weight: torch.Tensor, error: type[Exception] = RuntimeError) -> None:
    """Raise an error if DeepSpeed's ZeRO-3 has partitioned a weight: a mask cannot follow it."""
    if hasattr(weight, "ds_id"):
        raise error(
            "DeepSpeed's ZeRO-3 partitions its weight, which a masked layer does not support: use FSDP2 (fully_shard; "
            "in accelerate fsdp_version: 2), or ZeRO-2, which partitions no weights."
        )


def refuse_offloaded(layer: nn.Module) -> None:
    """Raise ValueError if accelerate keeps the weight of a layer on the CPU or the disk."""
    hook = getattr(layer, "_hf_hook", None)
    if any(getattr(one, "offload", False) for one in (hook, *getattr(hook, "hooks", ()))):
        raise ValueError(
            "accelerate offloads its weight to the CPU or the disk, and fetches a copy of it for each forward pass; "
            "load the model with a device_map that keeps this layer on a device."
        )


def check_same(weight: torch.Tensor, masked: torch.Tensor) -> None:
    """Raise RuntimeError if a layer's weight is no longer the tensor that was masked, whose memory holds W + S."""
    refuse_partitioned(weight)
    # FSDP1 and offloading hand the layer a rebuilt copy at each forward, in which a merge would be lost.
    if weight is not masked and (
        type(weight.data) is not torch.Tensor or weight.data_ptr() != masked.data_ptr() or weight.is_meta
    ):
        raise RuntimeError(
            f"the weight of this masked layer was replaced by another {type(weight.data).__name__}, but W + S "
            "lives in the memory of the weight that was masked. FSDP1 (FullyShardedDataParallel) does that: use "
            "FSDP2 (fully_shard; in accelerate fsdp_version: 2) or DistributedDataParallel. So does accelerate's "
            "offloading: keep masked layers on a device. Tensor parallelism is not supported. If you replaced it "
            "yourself, remove the mask first."
        )
