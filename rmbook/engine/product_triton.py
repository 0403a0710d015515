"""The sampled product on a CUDA GPU, as Triton kernels: `rmbook.engine.product_torch` says what it computes.

Every output is owned by one program and summed in a fixed order: no atomics, so two runs give identical bytes. Nothing
is copied to the host, so the GPU is never waited for. Tiles are chosen by fixed rules, not by timing.

A program takes a few consecutive entries, whichever rows they lie in, and finds their rows by bisection in the CSR row
pointer. So all programs have equal work, however unequal the rows, without a schedule and without padding. Where there
are few entries, their tokens are cut into slices to occupy the GPU, and the slices' sums are added at the end.

Importing this module needs the package `triton`. With TRITON_INTERPRET=1 set before, it runs on the CPU (slowly), and
that is how it is tested where no GPU is. Speeds: see `rmbook.engine.product_costs`.
"""

import os
from functools import reduce

import torch
import triton
import triton.language as tl

from rmbook.engine.product_costs import cheapest_way, product_seconds

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
PROGRAMS = 1024  # wanted at least: about eight for each of an H200's 132 processors
MOST_SLICES = 8
# From how many entries on a program takes which tile: (entries, tokens, warps). More entries a program mean more reads
# in flight, but fewer programs. Measured on an H200: python benchmarks/gpu_products.py --tune
TILES = {16384: (32, 128, 8), 8192: (16, 256, 8), 2048: (4, 512, 8), 0: (1, 1024, 4)}
COPIED = 2**26  # most elements of the transposed copies: longer batches are taken in pieces
DENSE = 2**25  # most elements of the dense product that exist at once
TRANSPOSE_TILE = 64


def sampled_product(
    grad_output: torch.Tensor,
    input: torch.Tensor,
    row_starts: torch.Tensor,
    columns: torch.Tensor,
    way: str | None = None,
) -> torch.Tensor:
    """Compute entries of grad_output^T @ input at given positions.

    Args:
        grad_output: (tokens, out) on a GPU; float16, bfloat16, float32 or float64.
        input: (tokens, in), likewise; the two dtypes may differ.
        row_starts: (out + 1,) int32 CSR row pointer of the positions.
        columns: (nnz,) int32 input index of each position, row by row.
        way: "direct" or "transposed" (see `rmbook.engine.product_costs`); None takes the one predicted to be faster.

    Returns:
        (nnz,) float64 if both inputs are, float32 otherwise; accumulated in that dtype.

    Raises:
        RuntimeError: if the tensors are not on a GPU and Triton's interpreter is off.
        ValueError: if `way` is none of the above.
    """
    _check_device(grad_output)
    (tokens, out), width, nnz = grad_output.shape, input.shape[1], columns.numel()
    both_double = grad_output.dtype == input.dtype == torch.float64
    dtype = torch.float64 if both_double else torch.float32
    if nnz == 0 or tokens == 0:
        return torch.zeros(nnz, dtype=dtype, device=columns.device)
    if way is None:
        wider = torch.promote_types(grad_output.dtype, input.dtype)
        seconds = product_seconds((out, width), tokens, nnz, wider)
        way = "direct" if seconds["direct"] < seconds["transposed"] else "transposed"
    if way not in ("direct", "transposed"):
        raise ValueError(f"way must be 'direct', 'transposed' or None, got {way!r}.")
    piece = max(1024, COPIED // (out + width))
    if way == "transposed" and tokens > piece:
        pieces = zip(grad_output.split(piece), input.split(piece), strict=True)
        return reduce(torch.add, (sampled_product(g, x, row_starts, columns, way) for g, x in pieces))
    entries, block, warps = next(tile for least, tile in TILES.items() if nnz >= least)
    blocks, steps = triton.cdiv(nnz, entries), triton.cdiv(tokens, block)
    slice_steps = triton.cdiv(steps, max(1, min(MOST_SLICES, PROGRAMS // blocks)))
    slices = triton.cdiv(steps, slice_steps)
    sums = torch.empty(slices, nnz, dtype=dtype, device=columns.device)
    with torch.cuda.device_of(grad_output):
        if way == "direct":
            left, right, strides = grad_output, input, (*grad_output.stride(), *input.stride())
        else:
            left, right = _transpose(grad_output, input, steps * block)
            strides = (1, steps * block) * 2
        _product_kernel[blocks, slices](
            left, right, row_starts, columns, sums, nnz, out, (out - 1).bit_length(), tokens, slice_steps, *strides,
            MASKED=way == "direct", ENTRIES=entries, TOKENS=block, num_warps=warps,
        )  # fmt: skip
    return sums[0] if slices == 1 else sums.sum(0)


def dense_product(
    grad_output: torch.Tensor, input: torch.Tensor, row_starts: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor:
    """Compute `sampled_product` by matrix products of blocks of rows from which the entries are picked.

    Sums of 16-bit operands are kept in float32, as in the other ways. Unlike a gather with tensor indices, picking
    needs no list of rows and no sizes on the host.
    """
    _check_device(grad_output)
    common = torch.promote_types(grad_output.dtype, input.dtype)
    if grad_output.dtype != input.dtype:
        grad_output, input = grad_output.to(common), input.to(common)
    dtype = torch.float64 if common == torch.float64 else torch.float32
    wider = {"out_dtype": dtype} if common.itemsize == 2 and grad_output.is_cuda else {}  # torch has it for GPUs alone
    result = torch.empty(columns.numel(), dtype=dtype, device=columns.device)
    block = max(1, DENSE // input.shape[1])
    with torch.cuda.device_of(grad_output):
        for start in range(0, grad_output.shape[1], block):
            dense = torch.mm(grad_output[:, start : start + block].t(), input, **wider)  # (block, in)
            _pick_kernel[dense.shape[0],](dense, row_starts[start:], columns, result, dense.stride(0), BLOCK=128)
    return result


def cheapest_product(
    grad_output: torch.Tensor, input: torch.Tensor, row_starts: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor:
    """Compute `sampled_product` by the way that `product_costs` predicts to be fastest, the dense one included."""
    shape, wider = (grad_output.shape[1], input.shape[1]), torch.promote_types(grad_output.dtype, input.dtype)
    way = cheapest_way(shape, grad_output.shape[0], columns.numel(), wider)
    if way == "dense":
        return dense_product(grad_output, input, row_starts, columns)
    return sampled_product(grad_output, input, row_starts, columns, way)


def _check_device(tensor: torch.Tensor) -> None:
    if not (tensor.is_cuda or INTERPRETED):
        raise RuntimeError(
            f"the Triton kernels need tensors on a GPU, got {tensor.device}: use backend='torch' there. "
            "(For tests, TRITON_INTERPRET=1 in the environment before the import runs them on the CPU, slowly.)"
        )


def _transpose(grad_output, input, padded):
    """Copy both with the tokens last, (out, padded) and (in, padded), zero beyond the tokens: in one launch."""
    grad_output, input = grad_output.contiguous(), input.contiguous()
    (tokens, out), width = grad_output.shape, input.shape[1]
    left = torch.empty(out, padded, dtype=grad_output.dtype, device=input.device)
    right = torch.empty(width, padded, dtype=input.dtype, device=input.device)
    left_tiles = triton.cdiv(out, TRANSPOSE_TILE)
    _transpose_kernel[triton.cdiv(padded, TRANSPOSE_TILE), left_tiles + triton.cdiv(width, TRANSPOSE_TILE)](
        grad_output, input, left, right, tokens, padded, out, width, left_tiles, TILE=TRANSPOSE_TILE
    )
    return left, right


@triton.jit
def _transpose_kernel(left, right, left_out, right_out, tokens, padded, out, width, left_tiles, TILE: tl.constexpr):
    tile = tl.program_id(1)
    if tile < left_tiles:
        _transpose_tile(left, left_out, tokens, padded, out, tile, TILE)
    else:
        _transpose_tile(right, right_out, tokens, padded, width, tile - left_tiles, TILE)


@triton.jit
def _transpose_tile(source, target, tokens, padded, width, tile, TILE: tl.constexpr):
    token = tl.program_id(0) * TILE + tl.arange(0, TILE)
    column = tile * TILE + tl.arange(0, TILE)
    inside = (token < tokens)[:, None] & (column < width)[None, :]
    values = tl.load(source + token.to(tl.int64)[:, None] * width + column[None, :], mask=inside, other=0.0)
    where = target + column.to(tl.int64)[:, None] * padded + token[None, :]
    tl.store(where, tl.trans(values), mask=(column < width)[:, None] & (token < padded)[None, :])


@triton.jit(do_not_specialize=["nnz", "out", "bisections", "tokens", "slice_steps"])
def _product_kernel(
    left, right, row_starts, columns, sums, nnz, out, bisections, tokens, slice_steps,
    left_token, left_row, right_token, right_column,
    MASKED: tl.constexpr, ENTRIES: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    # Operands of any strides; unless MASKED, their tokens are padded with zeros to whole blocks.
    entry = tl.program_id(0) * ENTRIES + tl.arange(0, ENTRIES)
    inside = entry < nnz
    entry = tl.where(inside, entry, nnz - 1)  # beyond the end, repeat the last entry: its result is not stored
    low = tl.zeros_like(entry)  # bisection: row_starts[low] <= entry < row_starts[high]
    high = low + out
    for _ in range(bisections):
        middle = (low + high) // 2
        above = tl.load(row_starts + middle) <= entry
        low = tl.where(above, middle, low)
        high = tl.where(above, high, middle)
    left += low.to(tl.int64) * left_row
    right += tl.load(columns + entry).to(tl.int64) * right_column
    total = tl.zeros((ENTRIES, TOKENS), sums.dtype.element_ty)
    first = tl.program_id(1) * slice_steps
    for step in range(first, tl.minimum(first + slice_steps, tl.cdiv(tokens, TOKENS))):
        token = (step * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
        lefts = left[:, None] + token[None, :] * left_token
        rights = right[:, None] + token[None, :] * right_token
        if MASKED:
            exists = (token < tokens)[None, :]
            a, b = tl.load(lefts, mask=exists, other=0.0), tl.load(rights, mask=exists, other=0.0)
        else:
            a, b = tl.load(lefts), tl.load(rights)
        total += a.to(total.dtype) * b.to(total.dtype)
    tl.store(sums + tl.program_id(1).to(tl.int64) * nnz + entry, tl.sum(total, 1), mask=inside)


@triton.jit
def _pick_kernel(dense, row_starts, columns, result, width, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    stop = tl.load(row_starts + row + 1)
    for start in range(tl.load(row_starts + row), stop, BLOCK):
        entry = start + tl.arange(0, BLOCK)
        inside = entry < stop
        column = tl.load(columns + entry, mask=inside, other=0)
        picked = tl.load(dense + row.to(tl.int64) * width + column, mask=inside, other=0.0)
        tl.store(result + entry, picked.to(result.dtype.element_ty), mask=inside)
