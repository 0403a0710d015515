"""The two mechanisms of the masked layer: the tap on the gradient of its output, and the merge into its weight.

Both are also registered as operations of torch (`torch.ops.rmbook`), so that torch.compile keeps them whole.
"""

import functools
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
import torch.distributed as dist
from torch._compile import _disable_dynamo

from rmbook.engine import backends
from rmbook.masks.sample import Mask

HAS_TRITON = find_spec("triton") is not None
COMPACT_BELOW = 0.3  # keep only the touched columns of the input when they are at most this share of all columns


class Tap(torch.autograd.Function):
    """Identity on `output`; its backward adds the gradient of `values`.

    It runs just before the linear layer's own backward, so it is also the place to make sure that the merged weight
    still holds the values of this forward pass, in case another forward with other values came between.

    The fast path drops terms of the second derivative (the merged weight is a constant to autograd), so building a
    graph of the gradient raises at once, instead of giving a wrong Hessian later. `once_differentiable` is not
    enough: with `allow_unused=True` its error node is never reached and the Hessian would silently be zero.
    """

    @staticmethod
    def forward(ctx, output, values, input, row_starts, columns, backend, merge_again):
        """Return `output` (..., out); `merge_again(values)` is called before the backward pass, if not None."""
        ctx.save_for_backward(values, input, row_starts, columns)  # values: autograd refuses if they change in place
        ctx.backend, ctx.merge_again = backend, merge_again
        # The output itself, not a view of it: autograd forbids to change a custom function's view in place, which
        # models do to a linear layer's output (ReLU(inplace=True), clamp_, +=).
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx, grad_output):
        """Pass the gradient (..., out) on, and give `values` (nnz,) theirs."""
        refuse_second_derivative()
        values, input, row_starts, columns = ctx.saved_tensors
        if ctx.merge_again is not None:
            ctx.merge_again(values)
        grad_values = None
        if ctx.needs_input_grad[1]:
            grad_values = compute_product(
                grad_output.reshape(-1, grad_output.shape[-1]),
                input.reshape(-1, input.shape[-1]),
                row_starts,
                columns,
                ctx.backend,
            ).to(values.dtype)
        return grad_output, grad_values, None, None, None, None, None


def tapped(
    output: torch.Tensor, delta: torch.Tensor, input: torch.Tensor, layer: Any, merge_again: Callable | None = None
) -> torch.Tensor:
    """Put a `Tap` on an output (..., out), which is best no view: of one, autograd copies each gradient three times.

    Args:
        output: of the linear layer.
        delta: (nnz,) entries of S.
        input: (..., in) of the linear layer.
        layer: has `touched`, `columns`, `row_starts` and `backend`.
        merge_again: as of `Tap.forward`.
    """
    kept = input.detach()
    if layer.touched is not None:
        kept = kept.index_select(-1, layer.touched)  # all that the backward pass needs
    return Tap.apply(output, delta, kept, layer.row_starts, layer.columns, layer.backend, merge_again)


def compact_columns(mask: Mask) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Choose the columns of the input that are kept for the backward pass.

    Returns:
        columns: (nnz,) int32, input index of each position among the kept columns.
        touched: the columns that are kept; None where that would be most of them, so that all are.
    """
    touched, compact = torch.unique(mask.columns, return_inverse=True)
    if 0 < touched.numel() <= COMPACT_BELOW * mask.shape[1]:
        return compact.to(torch.int32), touched
    return mask.columns, None


def refuse_second_derivative() -> None:
    """Raise RuntimeError in a backward pass that builds a graph of the gradient."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            "a MaskedLinear layer cannot be differentiated twice (create_graph=True): its fast path would lose "
            "terms of the Hessian. Run the forward pass inside RandomMask.dense_form() for curvature."
        )


def compute_product(*operands) -> torch.Tensor:
    """Compute the sampled product; operands as of `rmbook.engine.product_torch.sampled_product`, and the backend."""
    # The registered operation costs 0.1 ms a call: only a compiled graph needs it.
    return (torch.ops.rmbook.sampled_product if torch.compiler.is_compiling() else _sampled_product)(*operands)


def _sampled_product(
    grad_output: torch.Tensor, input: torch.Tensor, row_starts: torch.Tensor, columns: torch.Tensor, backend: str
) -> torch.Tensor:
    return backends.product(backend, columns.device.type)(grad_output, input, row_starts, columns)


# Opaque to torch.compile, which would otherwise break the graph at the sparse tensor.
_sampled_product_op = torch.library.custom_op("rmbook::sampled_product", mutates_args=())(_sampled_product)


@_sampled_product_op.register_fake
def _(grad_output, input, row_starts, columns, backend):
    both_double = grad_output.dtype == input.dtype == torch.float64
    return columns.new_empty(columns.shape, dtype=torch.float64 if both_double else torch.float32)


@torch.library.custom_op("rmbook::merge_", mutates_args=("weight", "merged"))
def _merge_op(
    weight: torch.Tensor, merged: torch.Tensor, values: torch.Tensor, original: torch.Tensor, positions: torch.Tensor
) -> None:
    # The same merge as a mutating op, so that a compiled graph keeps it and its order.
    merge(weight, merged, values, original, positions)


def _same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    # Bits, not numbers: NaN must equal itself here, or a diverged layer would be rewritten at every forward.
    integer = torch.int64 if left.dtype == torch.float64 else torch.int32
    return torch.equal(left.view(integer), right.view(integer))


def merge(weight, merged, values, original, positions) -> bool:
    """Make `weight` hold W + values, unless it does, in O(nnz). Returns whether it was (on a GPU: may be) written."""
    if weight.is_cuda:
        # Whether anything changed is a question that the host would wait for at every forward pass. Triton's kernel
        # asks it on the GPU; without triton, everything is written again.
        if HAS_TRITON:
            from rmbook.engine import merge_triton

            merge_triton.merge(weight, merged, values, original, positions)
            return True
    elif _same_bits(values, merged):
        return False
    overwrite(weight, values, original, positions)
    merged.copy_(values)
    return True


@torch.no_grad()
def overwrite(weight, values, original, positions) -> None:
    """Make the entries of `weight` at `positions` original + values, in O(nnz)."""
    # From the saved originals, added in the higher of the two precisions and rounded once: nothing accumulates, so
    # nothing drifts or is lost in bf16.
    write_entries(weight, positions, (original + values).to(weight.dtype))


def outside_graphs(function: Callable) -> Callable:
    """Return a function that torch.compile leaves out of its graphs, as `torch.compiler.disable` does.

    That one loads the compiler at once, which takes half a second of every start; torch's own decorator waits.
    """
    left_out = _disable_dynamo(function)

    @functools.wraps(function)
    def call(*arguments):
        return (left_out if torch.compiler.is_compiling() else function)(*arguments)

    return call


def write_entries(weight: torch.Tensor, positions: torch.Tensor, entries: torch.Tensor) -> None:
    """Write entries (nnz,) at flat positions of a contiguous weight, unseen by autograd, in O(nnz)."""
    # .data: the write must not invalidate earlier forward passes as a change would; Tap.backward looks after them.
    flat = weight.data.view(-1)
    several = dist.is_available() and dist.is_initialized()  # FSDP could not free a storage that NumPy has seen
    if several or not flat.is_cpu:
        if flat.element_size() == 2 and flat.is_cpu:
            flat.index_put_((positions,), entries)
        else:
            flat.scatter_(0, positions.long(), entries)
        return
    # NumPy does it in two thirds of the time of torch's scatter_, which in 16 bits even costs out * in.
    if flat.element_size() == 2:
        flat, entries = flat.view(torch.int16), entries.view(torch.int16)  # NumPy has no bfloat16: the same bits
    flat.numpy()[positions.numpy()] = entries.numpy()
