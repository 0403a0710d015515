"""The sampled dense-dense product: the gradient of a sparse delta's values, without a dense gradient.

For y = x (W + S)^T the gradient of entry k of S, at row r_k and column c_k, is

    grad_values[k] = sum_t grad_output[t, r_k] * input[t, c_k]

which is entry (r_k, c_k) of grad_output^T @ input. Computing the whole product and then picking entries costs
out * in; `sampled_product` computes the wanted entries only.
"""

import warnings

import torch

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")

TOKEN_CHUNK = 256  # tokens per sparse call: its buffers stay in cache, and low precision is widened in pieces
ROW_BLOCK = 512  # rows per dense call: the dense fallback never holds a whole (out, in) gradient
GATHER_BELOW = 256  # with fewer entries than this, starting a sparse kernel costs more than the work
DENSE_ABOVE = {torch.float64: 0.3, torch.float32: 0.3, torch.bfloat16: 0.08, torch.float16: 0.08}  # by density


def sampled_product_reference(
    grad_output: torch.Tensor, input: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor:
    """What `sampled_product` computes, written densely: for tests and teaching.

    Args:
        grad_output: (tokens, out).
        input: (tokens, in), same dtype.
        rows: (nnz,) output index of each entry.
        columns: (nnz,) input index of each entry.

    Returns:
        (nnz,) in the dtype of the inputs.
    """
    return (grad_output.T @ input)[rows.long(), columns.long()]


def sampled_product(
    grad_output: torch.Tensor, input: torch.Tensor, row_starts: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor:
    """Entries of grad_output^T @ input at given positions, in O(tokens * nnz) where that pays.

    Fixed thresholds choose between three ways, never a clock, so results do not depend on timing.

    Args:
        grad_output: (tokens, out), any floating dtype.
        input: (tokens, in), any floating dtype.
        row_starts: (out + 1,) int32 CSR row pointer of the positions.
        columns: (nnz,) int32 input index of each position, row by row.

    Returns:
        (nnz,) float64 if both inputs are, float32 otherwise; products are accumulated in that dtype, except in the
        dense fallback, which rounds each entry once to the inputs' dtype.
    """
    dtype = torch.float64 if grad_output.dtype == input.dtype == torch.float64 else torch.float32
    shape = (grad_output.shape[1], input.shape[1])
    nnz, tokens = columns.numel(), grad_output.shape[0]
    if nnz == 0 or tokens == 0:
        return torch.zeros(nnz, dtype=dtype, device=columns.device)
    no_sparse_kernel = columns.device.type not in ("cpu", "cuda")
    if no_sparse_kernel or nnz > DENSE_ABOVE[grad_output.dtype] * shape[0] * shape[1]:
        return _dense_by_row_blocks(grad_output, input, row_starts, columns, dtype)
    if nnz < GATHER_BELOW:
        rows = expand_rows(row_starts, nnz)
        total = torch.zeros(nnz, dtype=dtype, device=columns.device)
        for start in range(0, tokens, 4 * TOKEN_CHUNK):
            some = slice(start, start + 4 * TOKEN_CHUNK)
            left = grad_output[some].index_select(1, rows).to(dtype)  # (chunk, nnz)
            total += (left * input[some].index_select(1, columns).to(dtype)).sum(0)
        return total
    total = torch.sparse_csr_tensor(
        row_starts, columns, torch.zeros(nnz, dtype=dtype, device=columns.device), shape, check_invariants=False
    )
    for start in range(0, tokens, TOKEN_CHUNK):
        left = grad_output[start : start + TOKEN_CHUNK].to(dtype).t().contiguous()  # (out, chunk)
        right = input[start : start + TOKEN_CHUNK].to(dtype).contiguous()  # (chunk, in)
        torch.sparse.sampled_addmm(total, left, right, out=total)
    return total.values()


def expand_rows(row_starts: torch.Tensor, nnz: int) -> torch.Tensor:
    """Row of each entry, (nnz,) int32, from a CSR row pointer (out + 1,)."""
    rows = torch.arange(row_starts.numel() - 1, device=row_starts.device, dtype=torch.int32)
    return rows.repeat_interleave(row_starts.diff(), output_size=nnz)


def _dense_by_row_blocks(grad_output, input, row_starts, columns, dtype):
    common = torch.promote_types(grad_output.dtype, input.dtype)
    grad_output, input = grad_output.to(common), input.to(common)
    rows = expand_rows(row_starts, columns.numel())
    result = torch.empty(columns.numel(), dtype=dtype, device=columns.device)
    bounds = row_starts[::ROW_BLOCK].tolist() + [columns.numel()]
    for block, (first, last) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        start = block * ROW_BLOCK
        dense = grad_output[:, start : start + ROW_BLOCK].t() @ input  # (ROW_BLOCK, in)
        result[first:last] = dense[rows[first:last] - start, columns[first:last]].to(dtype)
    return result
