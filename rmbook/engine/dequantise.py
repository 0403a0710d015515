"""Linear layers whose weight is quantised, by bitsandbytes or torchao: which these are, and their dense weight."""

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


def quantisation(layer: nn.Module) -> str | None:
    """Say how a linear layer's weight is quantised, such as "bitsandbytes nf4, blocks of 64"; None if it is not."""
    weight: Any = getattr(layer, "weight", None)
    kind = next((c.__name__ for c in type(layer).__mro__ if c.__module__.startswith("bitsandbytes.")), None)
    if kind == "Linear4bit" and (state := _state(layer)) is not None:
        double = ", scales quantised too" if state.nested else ""
        return f"bitsandbytes {state.quant_type}, blocks of {state.blocksize}{double}"
    if kind == "Linear8bitLt" and weight.dtype == torch.int8:
        return "bitsandbytes int8"
    own = type(getattr(weight, "data", None))
    if own.__module__.startswith("torchao.") and isinstance(layer, nn.Linear):
        about = {name: value for name, value in vars(weight.data).items() if "block" in name or "dtype" in name}
        return f"torchao {own.__name__} ({', '.join(f'{name}={value}' for name, value in sorted(about.items()))})"
    return None


def can_dequantise(layer: nn.Module) -> bool:
    """Tell whether this is a quantised layer whose class can be exchanged: exactly one of the libraries' own."""
    exact = type(layer) is nn.Linear or type(layer).__module__ == "bitsandbytes.nn.modules"
    return exact and quantisation(layer) is not None


def weight_shape(layer: nn.Linear) -> tuple[int, int]:
    """Shape (out, in) of a layer's weight, also of one that is packed."""
    packed = quantisation(layer) is not None
    return (layer.out_features, layer.in_features) if packed else tuple(layer.weight.shape)


def count_parameters(model: nn.Module, parameters: Iterable[nn.Parameter] | None = None) -> int:
    """Number of a model's parameters, or of some: tied ones counted once, and several in one byte as several."""
    packed = {id(m.weight): m.out_features * m.in_features for m in model.modules() if quantisation(m) is not None}
    return sum(packed.get(id(parameter), parameter.numel()) for parameter in parameters or model.parameters())


def _state(layer: nn.Module):
    return getattr(layer.weight, "quant_state", None) or getattr(layer, "quant_state", None)


@torch.no_grad()
def dequantise(layer: nn.Module, dtype: torch.dtype) -> torch.Tensor:
    """Return the weight of a quantised layer as a fresh dense matrix (out, in), which may be written into."""
    name = type(layer.weight).__name__
    if name == "Params4bit":
        import bitsandbytes

        weight, state = layer.weight, _state(layer)
        if getattr(state, "packing_format_for_cpu", False):  # by the library's own evaluation, on CPUs with AVX512-BF16
            undo = sys.modules["bitsandbytes.nn.modules"]._convert_weight_packed_for_cpu_inverse
            weight.data, weight.quant_state = undo(weight.data, state)
            state = weight.quant_state
        return bitsandbytes.functional.dequantize_4bit(weight.data, state).to(dtype)
    if name == "Int8Params":
        state = layer.state
        codes = next(c for c in (layer.weight.CB, state.CB, layer.weight.data) if c is not None)
        scales = next(s for s in (layer.weight.SCB, state.SCB) if s is not None)
        return codes.to(dtype, copy=True).mul_(scales.to(dtype).unsqueeze(1).mul(1 / 127.0))
    if not type(layer.weight.data).__module__.startswith("torchao."):
        raise TypeError(
            f"the quantised weight was replaced by a {name}: FSDP cannot shard a quantised layer that is masked, keep "
            "it out by ignored_params."
        )
    return layer.weight.dequantize().to(dtype).contiguous()
