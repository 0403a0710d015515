"""The product with the sparse delta alone, x S^T, and the rule that says where it pays.

A layer that does not keep W + S has two exact ways to y = x (W + S)^T: write W + S for one product (*merge*), or add
x S^T to the product with W (*add*). A write touches every entry where the cache does not have it, for one token as for
a thousand. The sparse product costs next to nothing for a token, and more with each.
"""

import torch

# Seconds on one core of a CPU: rounded means of what benchmarks/sparse_product.py has fitted for the three kinds of
# weights, at widths 1024 and 2048, densities 1e-4 to 0.1 and 1 to 64 tokens (results/benchmarks has the record). Not
# measured on a GPU.
CALL = 2.3e-4  # what add costs beside its work
ENTRY = 2e-9  # an entry that add reads, whatever the number of tokens
ADD = 1e-10  # an entry and token
OUTPUT = 8e-9  # a number of the output, which add writes twice more
WRITE = 1e-8  # an entry that merge writes
MATRIX = {  # a number of the whole matrix: merge misses the cache in it, or dequantises it where the base does not
    "plain": 1.3e-10,
    "bitsandbytes": 1e-10,
    "torchao": 1.5e-9,
}


def cheapest_way(shape: tuple[int, int], tokens: int, nnz: int, weight: str) -> str:
    """Return "merge" or "add", whichever costs less without gradients. Sizes alone decide, never timing.

    Args:
        shape: (out, in).
        tokens: rows of the input.
        nnz: entries of S.
        weight: "plain", or the library that has quantised it: "bitsandbytes" or "torchao".
    """
    merge = MATRIX[weight] * shape[0] * shape[1] + WRITE * nnz
    return "add" if CALL + (ENTRY + ADD * tokens) * nnz + OUTPUT * tokens * shape[0] < merge else "merge"


def sparse_linear(
    input: torch.Tensor, delta: torch.Tensor, row_starts: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor:
    """Compute x S^T, without a gradient.

    Args:
        input: (..., in).
        delta: (nnz,) entries of S, float32 or float64.
        row_starts: (out + 1,) int32 CSR row pointer of their positions.
        columns: (nnz,) int32 input index of each position, row by row.

    Returns:
        (..., out), in the dtype of `delta`.
    """
    flat, out = input.detach().reshape(-1, input.shape[-1]).to(delta.dtype), len(row_starts) - 1
    given = row_starts, columns, delta.detach(), (out, flat.shape[1])
    sparse = torch.sparse_csr_tensor(*given, check_invariants=False)
    return (sparse @ flat.t()).t().reshape(*input.shape[:-1], out)
