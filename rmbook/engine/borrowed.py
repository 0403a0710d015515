"""The masked layer in the form that borrows its weight: W + S is there for one product, W at any other time.

`MaskedLinear` keeps W + S in the weight, which is the fastest. But other libraries read the weights of a base model
past the layer (`named_parameters`, sharding, tied layers) and must find W. Here W + S is written for one matrix
product, in the forward pass and again for the input's gradient, and W is restored bit for bit. That costs two writes of
nnz entries a product. The gradient of the values is the tap's in both forms, and so are all results, bit for bit, but
for one case: sequences of one token, as in generating, are cheaper as x W^T + x S^T (`cheapest_way`).
"""

import threading
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from rmbook.engine.maskable import refuse_partitioned
from rmbook.engine.sparse_product import cheapest_way, sparse_linear
from rmbook.engine.tap import compact_columns, tapped, write_entries
from rmbook.masks.sample import Mask

_locks: dict[int, threading.Lock] = {}  # by a weight's address: two threads must not borrow it at once


class BorrowedMask:
    """Positions of one mask, or of several together, and what the products need of them.

    Args:
        masks: of one layer, on the weight's device; positions that several have are one position of their union.
        transposed: the weight is stored as (in, out), as in GPT-2's `Conv1D`.
        backend: what computes the values' gradient; not "auto".

    Attributes:
        mask: of one layer; the union of several.
        nnz: number of positions.
        positions: (nnz,) int64 flat positions in the weight's memory.
    """

    def __init__(self, masks: Sequence[Mask], transposed: bool, backend: str):
        mask, self._places = masks[0], None
        if len(masks) > 1:
            union, places = torch.unique(torch.cat([mask.positions for mask in masks]), return_inverse=True)
            mask, self._places = Mask(mask.shape, union), places.split([mask.nnz for mask in masks])
        self.mask, self.nnz, self.transposed, self.backend = mask, mask.nnz, transposed, backend
        self.row_starts = mask.row_starts
        self.columns, self.touched = compact_columns(mask)
        self.positions = mask.columns.long() * mask.shape[0] + mask.rows if transposed else mask.positions.long()

    def delta(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Entries of S at `positions`, (nnz,): the sum over the masks, in their order, of entries (nnz of one,)."""
        if self._places is None:
            return parts[0]
        total = parts[0].new_zeros(self.nnz)
        for places, part in zip(self._places, parts, strict=True):
            total = total.index_add(0, places, part.to(total.dtype))
        return total


def masked_linear(input: torch.Tensor, layer: nn.Module, delta: torch.Tensor, mask: BorrowedMask) -> torch.Tensor:
    """y = x (W + S)^T + b, with gradients of x, of S, and of W and b should they be trained.

    Args:
        input: (..., in).
        layer: has the weight (out, in), or (in, out) if the mask is transposed, contiguous, and the bias (out,) or
            None. The weight holds W again on return.
        delta: (nnz,) entries of S, at least of the weight's precision.
        mask: where.

    Returns:
        (..., out). Differentiating twice raises RuntimeError.

    Raises:
        RuntimeError: the weight holds no numbers, or is partitioned.
    """
    weight, bias = layer.weight, layer.bias
    refuse_partitioned(weight)
    if weight.is_meta and not input.is_meta:
        raise RuntimeError(
            "the weight of a layer with a random mask is on the meta device: accelerate offloads it, or it was never "
            "loaded. Keep masked layers on a device (device_map)."
        )
    compiling, graph = torch.compiler.is_compiling(), torch.is_grad_enabled()
    if compiling and torch.is_autocast_enabled(input.device.type):  # eager products are cast inside
        input = input.to(torch.get_autocast_dtype(input.device.type))
    product = torch.ops.rmbook.borrowed_linear if compiling else _BorrowedLinear.apply if graph else forward
    where = mask.positions, mask.row_starts, mask.mask.columns
    output = product(input, weight, bias, delta.detach(), *where, mask.transposed)
    if not (graph and delta.requires_grad):
        return output
    return tapped(output, delta, input, mask)


def add_entries(weight: torch.Tensor, positions: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """Write W + S into a weight, rounded once, and return W's entries (nnz,) for `write_entries` to restore."""
    original = weight.data.view(-1).index_select(0, positions)
    changed = (original + delta).to(original.dtype)  # added in the higher of the two precisions
    write_entries(weight, positions, changed)
    return original


def _lock(weight: torch.Tensor) -> threading.Lock:
    return _locks.get(weight.data_ptr()) or _locks.setdefault(weight.data_ptr(), threading.Lock())


@torch.no_grad()
def _borrow(weight, positions, delta, compute: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    # compute(weight) while the weight holds W + S. It gets no parameter: autocast keeps casts of those, of W + S here.
    weight = weight.detach()
    with _lock(weight):
        original = add_entries(weight, positions, delta)
        try:
            return compute(weight)
        finally:
            write_entries(weight, positions, original)


def forward(input, weight, bias, delta, positions, row_starts, columns, transposed, way=None):
    """Compute `masked_linear` without its gradients, in the cheaper way or in a `way` of `cheapest_way`."""

    def compute(weight):
        same = weight.dtype == input.dtype or torch.is_autocast_enabled(input.device.type)
        cast = weight if same else weight.to(input.dtype)  # differs in a compiled graph under autocast alone
        own_bias = bias if same or bias is None else bias.to(input.dtype)
        if not transposed:
            return F.linear(input, cast, own_bias)
        output = _flat(input) @ cast if bias is None else torch.addmm(own_bias, _flat(input), cast)  # as `Conv1D` does
        return output.view(*input.shape[:-1], weight.shape[1])

    # In 16 bits W + S is rounded, which x W^T + x S^T is not: no pass may compute what another one does not.
    alike = input.dtype == weight.dtype == delta.dtype and weight.itemsize > 2 and not torch.is_autocast_enabled("cpu")
    if way is None and input.is_cpu and alike and input.numel() and input.shape[-2:-1] in ((), (1,)):
        tokens = input.numel() // input.shape[-1]
        way = cheapest_way((len(row_starts) - 1, input.shape[-1]), tokens, len(delta), "plain")
    if way == "add":
        with _lock(weight):  # nobody writes into it meanwhile
            output = compute(weight.detach())
        output.add_(sparse_linear(input, delta, row_starts, columns))
    else:
        output = _borrow(weight, positions, delta, compute)
    if output._is_view():  # which autograd lets nobody change, of a custom function
        output = torch.ops.aten._unsafe_view.default(output, output.shape)
    return output


def _input_gradient(grad_output, weight, delta, positions, transposed):
    def compute(weight):
        weight = weight.to(grad_output.dtype)  # differs under autocast
        return grad_output @ (weight.t() if transposed else weight)

    return _borrow(weight, positions, delta, compute)


def _setup_context(ctx, inputs, output):
    input, weight, _, delta, positions, _, _, ctx.transposed = inputs
    trains_weight = ctx.needs_input_grad[1]
    ctx.save_for_backward(weight, delta, positions, input if trains_weight else None)
    ctx.input_dtype = input.dtype


def _backward(ctx, grad_output):
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            "this form of a random mask cannot be differentiated twice (create_graph=True): use "
            "rmbook.apply_random_mask and its dense_form() for curvature."
        )
    weight, delta, positions, input = ctx.saved_tensors
    grad_input = grad_weight = grad_bias = None
    if ctx.needs_input_grad[0]:
        compute = torch.ops.rmbook.borrowed_input_gradient if ctx.compiled else _input_gradient
        grad_input = compute(grad_output.contiguous(), weight, delta, positions, ctx.transposed).to(ctx.input_dtype)
    if ctx.needs_input_grad[1]:
        dense = _flat(grad_output).t() @ _flat(input).to(grad_output.dtype)
        grad_weight = (dense.t() if ctx.transposed else dense).to(weight.dtype)
    if ctx.needs_input_grad[2]:
        grad_bias = _flat(grad_output).sum(0)
    return grad_input, grad_weight, grad_bias, None, None, None, None, None


class _BorrowedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *inputs):
        ctx.compiled = False
        _setup_context(ctx, inputs, None)
        return forward(*inputs)

    backward = staticmethod(_backward)


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1, tensor.shape[-1])


# The same as operations that torch.compile keeps whole; W is back when they end, so to a graph they change nothing.


@torch.library.custom_op("rmbook::borrowed_linear", mutates_args=())
def _linear_op(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    delta: torch.Tensor,
    positions: torch.Tensor,
    row_starts: torch.Tensor,
    columns: torch.Tensor,
    transposed: bool,
) -> torch.Tensor:
    return forward(input, weight, bias, delta, positions, row_starts, columns, transposed)


@_linear_op.register_fake
def _(input, weight, bias, delta, positions, row_starts, columns, transposed):
    return input.new_empty(*input.shape[:-1], weight.shape[1 if transposed else 0])


@torch.library.custom_op("rmbook::borrowed_input_gradient", mutates_args=())
def _input_gradient_op(
    grad_output: torch.Tensor, weight: torch.Tensor, delta: torch.Tensor, positions: torch.Tensor, transposed: bool
) -> torch.Tensor:
    return _input_gradient(grad_output, weight, delta, positions, transposed)


@_input_gradient_op.register_fake
def _(grad_output, weight, delta, positions, transposed):
    return grad_output.new_empty(*grad_output.shape[:-1], weight.shape[0 if transposed else 1])


def _setup_compiled(ctx, inputs, output):
    ctx.compiled = True
    _setup_context(ctx, inputs, output)


_linear_op.register_autograd(_backward, setup_context=_setup_compiled)
