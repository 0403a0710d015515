"""What the ways to compute a sampled product cost on a GPU, and the rule that chooses one of them.

The product has nnz entries, each a dot product of `tokens` numbers of `itemsize` bytes (see `rmbook.sampled`).

- **direct**: read both operands where they lie, tokens first. Neighbours of a column are a whole row apart, so every
  number costs a memory sector of 32 bytes: 64 * nnz * tokens bytes. Only for a handful of entries.
- **transposed**: copy both operands with the tokens last, 2 * (out + in) * tokens * itemsize bytes, after which an
  entry reads two contiguous vectors. A row of the gradient is read once and its repeats come from the cache next to
  the cores, so nnz + min(nnz, out) vectors of tokens * itemsize bytes are left.
- **dense**: a matrix product, 2 * out * in * tokens operations, then pick the entries. Tensor cores make it hard to
  beat in 16 bits: where the copies are small change, dense wins from the density 2 * GATHER / (itemsize * RATE) on,
  about 0.7 % in bfloat16 and 5 % in float32, whatever the shape.

Rates are an H200's. PREDICTED, NOT YET MEASURED, except the copy rate: `benchmarks/gpu_products.py` measures them.
"""

import torch

COPY = 4.3e12  # bytes a second, read plus written; measured on an H200 (4.8e12 by its data sheet)
GATHER = 4.5e12  # bytes a second of scattered vectors, from the second-level cache where they fit; predicted
RATE = {  # operations a second of one layer's dense product; predicted (an 8192-wide one was measured at 780e12)
    torch.bfloat16: 600e12,
    torch.float16: 600e12,
    torch.float32: 50e12,  # without TF32, which rounds the operands
    torch.float64: 50e12,
}
LAUNCH = 3e-6  # seconds a kernel costs beside its work; predicted
SECTOR = 32  # bytes, the smallest piece of memory that is read


def product_seconds(shape: tuple[int, int], tokens: int, nnz: int, dtype: torch.dtype) -> dict[str, float]:
    """Predicted seconds of each way on an H200.

    Args:
        shape: (out, in).
        tokens: length of each dot product.
        nnz: number of entries wanted.
        dtype: of the operands; of the wider one if they differ.

    Returns:
        Seconds by way: "direct", "transposed" and "dense".
    """
    out, width = shape
    vector = tokens * dtype.itemsize
    return {
        "direct": 2 * LAUNCH + 2 * SECTOR * nnz * tokens / GATHER,
        "transposed": 3 * LAUNCH + 2 * (out + width) * vector / COPY + (nnz + min(nnz, out)) * vector / GATHER,
        "dense": 2 * LAUNCH
        + 2 * out * width * tokens / RATE[dtype]
        + (out * width * dtype.itemsize + nnz * SECTOR) / COPY,
    }


def cheapest_way(shape: tuple[int, int], tokens: int, nnz: int, dtype: torch.dtype) -> str:
    """The way that `product_seconds` finds cheapest. Sizes alone decide, so results do not depend on timing."""
    seconds = product_seconds(shape, tokens, nnz, dtype)
    return min(seconds, key=seconds.get)


def crossover_density(shape: tuple[int, int], tokens: int, dtype: torch.dtype) -> float:
    """The smallest density at which the dense product is cheapest, to one entry."""
    low, high = 0, shape[0] * shape[1]  # with no entry dense never wins; with all it always does
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if cheapest_way(shape, tokens, middle, dtype) == "dense" else (middle, high)
    return high / (shape[0] * shape[1])
