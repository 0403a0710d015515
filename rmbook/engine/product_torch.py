"""The sampled dense-dense product: the gradient of a sparse delta's values, without a dense gradient.

For y = x (W + S)^T the gradient of entry k of S, at row r_k and column c_k, is

    grad_values[k] = sum_t grad_output[t, r_k] * input[t, c_k]

which is entry (r_k, c_k) of grad_output^T @ input. Computing the whole product and then picking entries costs
out * in; `sampled_product` computes the wanted entries only.
"""

import warnings
from functools import cache, lru_cache

import torch

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")

# Bytes of the input's copy for one sparse call: its rows are read in any order, from a cache of 512 kB.
OPERAND_IN_CACHE = 3 * 2**17
SHUFFLES = "fbgemm" in torch.backends.quantized.supported_engines  # the library that shuffles channels fast (x86)
GATHER_AT_ONCE = {"cpu": 2**16, "cuda": 2**24}  # numbers of a gathered operand: on a CPU it should stay in cache
# Entries for each row and column: with fewer, copying the operands costs more than gathering.
GATHER_BELOW = {torch.float64: 0.5, torch.float32: 0.5, torch.bfloat16: 0.15, torch.float16: 0.15}
DENSE_ABOVE = {torch.float64: 0.1, torch.float32: 0.12, torch.bfloat16: 0.04, torch.float16: 0.04}  # by density
SMALL = 2**15  # entries of a matrix, on a CPU: its dense product takes less time than the calls of the sparse one
# What a CPU must have to be fast in 16 bits; without, their dense products take 4 times as long as those in float32.
INSTRUCTIONS = {torch.bfloat16: ("amx_bf16", "avx512_bf16", "bf16"), torch.float16: ("amx_fp16", "avx512_fp16")}
ROWS_AT_ONCE = 512  # of a dense product on the CPU: it never holds a large (out, in) gradient whole
DENSE_AT_ONCE = 2**26  # entries of a dense product on a GPU, where splitting it would wait for the row bounds


def sampled_product_reference(
    grad_output: torch.Tensor, input: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor:
    """Compute `sampled_product` densely: for tests and teaching.

    Args:
        grad_output: (tokens, out).
        input: (tokens, in), same dtype.
        rows: (nnz,) output index of each entry.
        columns: (nnz,) input index of each entry.

    Returns:
        (nnz,) in the dtype of the inputs.
    """
    return (grad_output.T @ input)[rows.long(), columns.long()]


@lru_cache(1024)  # it is called in every backward pass of every layer
def cheapest_way(shape: tuple[int, int], nnz: int, dtype: torch.dtype, device_type: str) -> tuple[str, str]:
    """Choose how `sampled_product` computes, by fixed thresholds: results never depend on timing.

    Args:
        shape: (out, in) of the product.
        nnz: number of entries wanted.
        dtype: of grad_output.
        device_type: "cpu", "cuda", ...

    Returns:
        way: "gather", "sparse" or "dense".
        reason: in words.
    """
    density, above = nnz / (shape[0] * shape[1]), DENSE_ABOVE[_dense_dtype(dtype, device_type)]
    if density > above:
        return "dense", f"density {density:.3g} is above {above:g}, where a dense product is faster"
    if device_type not in ("cpu", "cuda"):
        return "dense", f"torch has no sparse kernel for {device_type}"
    few = int(GATHER_BELOW[dtype] * sum(shape))
    if nnz < few:
        return "gather", f"{nnz} entries are fewer than {few}: not worth a copy of the operands"
    if device_type == "cpu" and dtype.itemsize > 2 and shape[0] * shape[1] <= SMALL:
        return "dense", f"a matrix of {shape[0]} x {shape[1]} is so small that a dense product is faster"
    return "sparse", f"{nnz} entries at density {density:.3g}: torch.sparse.sampled_addmm"


def sampled_product(
    grad_output: torch.Tensor, input: torch.Tensor, row_starts: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor:
    """Compute entries of grad_output^T @ input at given positions, in O(tokens * nnz) where that pays.

    Args:
        grad_output: (tokens, out), any floating dtype.
        input: (tokens, in), any floating dtype.
        row_starts: (out + 1,) int32 CSR row pointer of the positions.
        columns: (nnz,) int32 input index of each position, row by row.

    Returns:
        (nnz,) float64 if both inputs are, float32 otherwise; products are accumulated in that dtype, except in the
        dense way where the processor is fast in 16 bits: each entry is rounded once to the inputs' dtype.
    """
    nnz, tokens = columns.numel(), grad_output.shape[0]
    if nnz == 0 or tokens == 0:
        return torch.zeros(nnz, dtype=_result_dtype(grad_output, input), device=columns.device)
    shape = (grad_output.shape[1], input.shape[1])
    way, _ = cheapest_way(shape, nnz, grad_output.dtype, columns.device.type)
    compute = {"gather": _gathered, "sparse": _sparse, "dense": dense_product}[way]
    return compute(grad_output, input, row_starts, columns)


def dense_product(
    grad_output: torch.Tensor, input: torch.Tensor, row_starts: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor:
    """Compute `sampled_product` by dense products of blocks of rows from which the entries are picked."""
    common = _dense_dtype(torch.promote_types(grad_output.dtype, input.dtype), columns.device.type)
    grad_output, input = grad_output.to(common), input.to(common)
    (out, width), nnz = (grad_output.shape[1], input.shape[1]), columns.numel()
    rows, dtype, parts = expand_rows(row_starts, nnz), _result_dtype(grad_output, input), []
    block = ROWS_AT_ONCE if columns.device.type == "cpu" else max(1, DENSE_AT_ONCE // width)
    bounds = [0, nnz] if out <= block else [*row_starts[::block].tolist(), nnz]
    for start, first, last in zip(range(0, out, block), bounds[:-1], bounds[1:], strict=False):
        dense = grad_output[:, start : start + block].t() @ input  # (block, in)
        # One index for both sides: torch picks by two of them many times more slowly.
        places = (rows[first:last] - start).mul_(width).add_(columns[first:last])
        parts.append(dense.view(-1).index_select(0, places).to(dtype))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


@cache
def _dense_dtype(dtype: torch.dtype, device_type: str) -> torch.dtype:
    """Return the dtype of the fastest dense product of operands in `dtype` that is at least as exact."""
    if device_type != "cpu" or dtype.itemsize > 2:
        return dtype
    has = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return dtype if any(has.get(instruction) for instruction in INSTRUCTIONS[dtype]) else torch.float32


def expand_rows(row_starts: torch.Tensor, nnz: int) -> torch.Tensor:
    """Return the row of each entry, (nnz,) int32, from a CSR row pointer (out + 1,)."""
    return torch.repeat_interleave(row_starts.diff(), output_size=nnz)


def _result_dtype(grad_output: torch.Tensor, input: torch.Tensor) -> torch.dtype:
    return torch.float64 if grad_output.dtype == input.dtype == torch.float64 else torch.float32


def _gathered(grad_output, input, row_starts, columns):
    nnz, dtype = columns.numel(), _result_dtype(grad_output, input)
    rows, total = expand_rows(row_starts, nnz), torch.zeros(nnz, dtype=dtype, device=columns.device)
    chunk = max(1, GATHER_AT_ONCE[input.device.type] // max(1, nnz))
    for start in range(0, len(input), chunk):
        some = slice(start, start + chunk)
        left, right = grad_output[some].index_select(1, rows), input[some].index_select(1, columns)  # (chunk, nnz)
        total += left.to(dtype).mul_(right.to(dtype)).sum(0)
    return total


def _sparse(grad_output, input, row_starts, columns):
    out, width, device = grad_output.shape[1], input.shape[1], columns.device
    dtype = _result_dtype(grad_output, input)
    values = torch.zeros(columns.numel(), dtype=dtype, device=device)
    total = torch.sparse_csr_tensor(row_starts, columns, values, (out, width), check_invariants=False)
    # Powers of two, 32 at least: dot products of other lengths take twice as long.
    chunk = 2 ** max(5, (OPERAND_IN_CACHE // (width * dtype.itemsize)).bit_length() - 1)
    for left, right in zip(grad_output.split(chunk), input.split(chunk), strict=True):  # (chunk, out), (chunk, in)
        # The kernel wants both operands with the tokens last in memory.
        torch.sparse.sampled_addmm(total, transposed(left, dtype), transposed(right, dtype).t(), out=total)
    return total.values()


def transposed(source: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a contiguous copy (width, tokens), in `dtype`, of `source` (tokens, width)."""
    tokens, width = source.shape
    if not (SHUFFLES and source.is_cpu and dtype == torch.float32 and source.numel()):
        return torch.empty((width, tokens), dtype=dtype, device=source.device).copy_(source.t())
    # Shuffling the channels of one pixel is a transposition, torch's only one with vector instructions: it takes a
    # tenth to a quarter of the time of other copies, which cost as much as the product itself.
    source, size = source.to(dtype).contiguous(), source.numel()
    pixel = source.as_strided((1, size, 1, 1), (size, 1, size, size))  # channels last
    return torch.native_channel_shuffle(pixel, tokens).view(width, tokens)
