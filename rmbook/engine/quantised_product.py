"""The product with W + S where W is quantised, by bitsandbytes (4 and 8 bits) or torchao; W is never written.

For y = x (W + S)^T + b there are two exact ways, W being what the quantised numbers stand for:

- **merge**: dequantise W into a buffer that lives for this product alone, write W + S, multiply once.
- **add**: the base's own product for W, plus a sparse product for S: for few tokens, and for few entries where the base
  has a kernel that does not dequantise (torchao's int8); `cheapest_way` says from where on.

The forward pass takes the cheaper way, and the backward pass merges: bitsandbytes itself dequantises in each backward
pass, so that the write of S is all that comes on top.

Both forms of the masked layer compute here: `rmbook.engine.quantised`, and `rmbook.integrations.peft_layer`. Their
*operands* have `mask`, `row_starts`, `columns`, `touched` and `backend`, as `rmbook.engine.tap.tapped` wants them.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from rmbook.engine.borrowed import add_entries
from rmbook.engine.dequantise import dequantise
from rmbook.engine.maskable import refuse_partitioned
from rmbook.engine.sparse_product import cheapest_way, sparse_linear
from rmbook.engine.tap import compute_product, outside_graphs, refuse_second_derivative


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, delta, bias, layer, operands, way):
        if way == "add":
            output = added(input, layer, delta, operands)
        else:
            output = F.linear(input, merged_copy(layer, input.dtype, delta, operands), bias)
        kept = input if operands.touched is None else input.index_select(-1, operands.touched)
        ctx.save_for_backward(delta, kept)
        ctx.layer, ctx.operands, ctx.dtype = layer, operands, input.dtype
        return output

    @staticmethod
    def backward(ctx, grad_output):
        refuse_second_derivative()
        delta, kept = ctx.saved_tensors
        operands, grad_input, grad_delta = ctx.operands, None, None
        flat = grad_output.reshape(-1, grad_output.shape[-1])
        if ctx.needs_input_grad[0]:
            weight = merged_copy(ctx.layer, ctx.dtype, delta, operands)
            grad_input = (flat @ weight).view(*grad_output.shape[:-1], -1)
        if ctx.needs_input_grad[1]:
            given = flat, kept.reshape(-1, kept.shape[-1]), operands.row_starts, operands.columns
            grad_delta = compute_product(*given, operands.backend).to(delta.dtype)
        return grad_input, grad_delta, flat.sum(0) if ctx.needs_input_grad[2] else None, None, None, None


@outside_graphs  # the libraries' own products break a graph, too
def quantised_linear(input: torch.Tensor, layer: nn.Linear, delta: torch.Tensor, operands: Any) -> torch.Tensor:
    """y = x (W + S)^T + b, with gradients of x, S and b; the forward pass takes the cheaper way.

    Args:
        input: (..., in).
        layer: has the quantised weight, and the bias.
        delta: (nnz,) entries of S.
        operands: where; see above.

    Returns:
        (..., out), in the input's dtype, or autocast's. Differentiating twice raises RuntimeError.
    """
    refuse_partitioned(layer.weight)
    wanted, kind = compute_dtype(layer, input), input.device.type
    autocast = torch.is_autocast_enabled(kind) and input.dtype != torch.float64
    x, mask = input.to(wanted), operands.mask
    bias, tokens = None if layer.bias is None else layer.bias.to(wanted), x.numel() // max(1, x.shape[-1])
    own = tokens and has_own_product(layer, wanted)
    way = cheapest_way(mask.shape, tokens, mask.nnz, _library(layer)) if own else "merge"
    with torch.autocast(kind, enabled=False):
        return _Product.apply(x, delta, bias, layer, operands, way).to(wanted if autocast else input.dtype)


@torch.no_grad()
def merged_copy(layer: nn.Linear, dtype: torch.dtype, delta: torch.Tensor, operands: Any) -> torch.Tensor:
    """Return W + S as a fresh dense matrix (out, in); rounded once."""
    dense = dequantise(layer, dtype)
    add_entries(dense, operands.mask.positions, delta)
    return dense


def added(x: torch.Tensor, layer: nn.Linear, delta: torch.Tensor, operands: Any) -> torch.Tensor:
    """Return the base's own product of x (..., in), plus the sparse one; (..., out), without a gradient of S."""
    # By the class's own forward: the layer itself may be masked.
    output = _plain_class(layer).forward(layer, x)
    sparse = sparse_linear(x, delta, operands.mask.row_starts, operands.mask.columns)
    return (output.to(sparse.dtype) + sparse).to(output.dtype)


def compute_dtype(layer: nn.Linear, input: torch.Tensor) -> torch.dtype:
    """Return the dtype in which a layer computes: autocast's, bitsandbytes' `compute_dtype`, or the input's."""
    if torch.is_autocast_enabled(input.device.type) and input.dtype != torch.float64:
        return torch.get_autocast_dtype(input.device.type)
    return getattr(layer, "compute_dtype", None) or input.dtype


def _plain_class(layer: nn.Linear) -> type[nn.Linear]:
    return getattr(layer, "plain_class", type(layer))


def _library(layer: nn.Linear) -> str:
    return "torchao" if _plain_class(layer) is nn.Linear else "bitsandbytes"


def has_own_product(layer: nn.Linear, dtype: torch.dtype) -> bool:
    """Tell whether the base multiplies inputs of a dtype by W as they are, exactly."""
    # LLM.int8 and torchao's dynamic modes quantise the input, too. bitsandbytes is wrong in float64.
    if _library(layer) == "bitsandbytes":
        return type(layer.weight).__name__ == "Params4bit" and dtype != torch.float64
    weight, modes = layer.weight.data, ("act_quant_kwargs", "activation_quantization")
    dynamic = any(getattr(weight, mode, None) is not None for mode in modes)
    return dtype == weight.dtype and not dynamic and type(weight).__name__ != "LinearActivationQuantizedTensor"


def refuse_merge() -> None:
    """Raise RuntimeError: quantised, W + S would be another."""
    raise RuntimeError(
        "W + S cannot be merged into a quantised weight, which would round S away: save the adapter, and load it on "
        "the quantised base; or take the mask off (remove(); in peft unload())."
    )
