"""Costs of the ways to compute a sampled product on a GPU, and the rule that chooses one of them.

The product has nnz entries, each a dot product of `tokens` numbers of `itemsize` bytes; `rmbook.engine.product_torch`
says what it is.

- **direct**: read both operands where they lie, tokens first. Neighbours of a column are a whole row apart, so every
  number costs a memory sector of 32 bytes: 64 * nnz * tokens bytes. Only for a handful of entries.
- **transposed**: copy both operands with the tokens last, 2 * (out + in) * tokens * itemsize bytes, after which an
  entry reads two contiguous vectors. A row of the gradient is read once and its repeats come from the cache next to
  the cores, so nnz + min(nnz, out) vectors of tokens * itemsize bytes are left.
- **dense**: a matrix product, 2 * out * in * tokens operations, then pick the entries. Tensor cores make it hard to
  beat in 16 bits: where the copies are small change, dense wins from the density 2 * GATHER / (itemsize * RATE) on,
  1 % in bfloat16 and 8 % in float32, whatever the shape. It wants operands whose sides are multiples of 8.

Rates are those of an H200, fitted to what `benchmarks/gpu_products.py` measured there (results/benchmarks holds the
record); only float64's is a guess. On another GPU the order of the ways near a border may differ, not their results.
"""

from functools import lru_cache

import torch

COPY = 3.6e12  # bytes a second, read plus written, of the two transposed copies
GATHER = 8e12  # bytes a second of scattered vectors, most of them from the second-level cache
SCATTER = 6e12  # bytes a second of scattered sectors
RATE = {  # operations a second of the dense product
    torch.bfloat16: 800e12,
    torch.float16: 800e12,
    torch.float32: 51e12,  # without TF32, which rounds the operands
    torch.float64: 50e12,
}
LAUNCH = 2.2e-6  # seconds a kernel costs beside its work
TOKEN = {"direct": 1e-9, "dense": 2.7e-9}  # seconds a token at least: one program's way through the tokens
SECTOR = 32  # bytes, the smallest piece of memory that is read
UNALIGNED = 4  # times the work of a dense product that a side costs which is no multiple of 8


def product_seconds(shape: tuple[int, int], tokens: int, nnz: int, dtype: torch.dtype) -> dict[str, float]:
    """Predict the seconds of each way on an H200.

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
    operations = 2 * out * width * tokens * (UNALIGNED if dtype.itemsize == 2 and (out % 8 or width % 8) else 1)
    return {
        "direct": 2 * LAUNCH + TOKEN["direct"] * tokens + 2 * SECTOR * nnz * tokens / SCATTER,
        "transposed": 3 * LAUNCH + 2 * (out + width) * vector / COPY + (nnz + min(nnz, out)) * vector / GATHER,
        "dense": 2 * LAUNCH
        + max(operations / RATE[dtype], TOKEN["dense"] * tokens)
        + (out * width * max(dtype.itemsize, 4) + nnz * SECTOR) / COPY,
    }


@lru_cache(1024)  # it is called in every backward pass of every layer
def cheapest_way(shape: tuple[int, int], tokens: int, nnz: int, dtype: torch.dtype) -> str:
    """Return the way that `product_seconds` finds cheapest. Sizes alone decide, so results do not depend on timing."""
    seconds = product_seconds(shape, tokens, nnz, dtype)
    return min(seconds, key=seconds.__getitem__)


def crossover_density(shape: tuple[int, int], tokens: int, dtype: torch.dtype) -> float:
    """Return the smallest density at which the dense product is cheapest, to one entry."""
    low, high = 0, shape[0] * shape[1]  # with no entry dense never wins; with all it always does
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if cheapest_way(shape, tokens, middle, dtype) == "dense" else (middle, high)
    return high / (shape[0] * shape[1])
