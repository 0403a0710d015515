"""Merging values into weights on a CUDA GPU without waiting for it: `rmbook.engine.tap.merge` as a Triton kernel.

`rmbook.engine.tap.merge` compares values before it writes, and on a GPU the host waits for the result at every forward
pass. Here each entry is compared on the GPU: those whose value has other bits than the one merged last are written, the
others only read. So the merge costs one launch, or, with `MergeLayers`, one for all layers.

Importing this module needs the package `triton`; TRITON_INTERPRET=1 in the environment runs it on the CPU, for tests.
"""

import os
from collections.abc import Iterable

import torch
import triton
import triton.language as tl

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
BLOCK = 1024  # entries a program
ELEMENT = {
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.int32: tl.int32,
    torch.int64: tl.int64,
}


def merge(
    weight: torch.Tensor, merged: torch.Tensor, values: torch.Tensor, original: torch.Tensor, positions: torch.Tensor
) -> None:
    """Make `weight` hold W + values, in place, as `rmbook.engine.tap.merge` does, without waiting for the GPU.

    Bits are compared, so NaN equals itself. Each written entry is overwritten from the original and rounded once. The
    one difference: a value that has stayed 0 leaves a weight of -0 alone, which `rmbook.engine.tap.merge` makes 0.

    Args:
        weight: (out, in), contiguous, on a GPU; holds W + merged.
        merged: (nnz,) values that `weight` holds now, float32 or float64; brought up to date.
        values: (nnz,) values that it shall hold, of the same dtype.
        original: (nnz,) entries of W at the positions, in the weight's dtype.
        positions: (nnz,) flat row-major positions, int32 or int64, unique.

    Raises:
        RuntimeError: if the tensors are not on a GPU and Triton's interpreter is off.
        TypeError: if `values` and `merged` differ in dtype.
    """
    _check((weight, merged, values, original, positions))
    if values.numel():
        with torch.cuda.device_of(weight):
            _merge_kernel[triton.cdiv(values.numel(), BLOCK),](
                weight.data, merged, values.data, original, positions, values.numel(), BLOCK=BLOCK
            )


class MergeLayers:
    """`merge` for many layers in one launch, as often as it is called.

    Args:
        layers: of each the arguments of `merge`: weight, merged, values, original, positions. All layers must be on one
            GPU and agree in the dtypes of their weights, values and positions. Weights and values may change their
            memory between calls (`values.data = ...`), the others may not.

    Raises:
        RuntimeError: if the tensors are not on a GPU and Triton's interpreter is off.
        TypeError: if dtypes or devices differ.
    """

    def __init__(self, layers: Iterable[tuple[torch.Tensor, ...]]):
        self._layers = [layer for layer in layers if layer[2].numel()]
        kinds = {(w.dtype, v.dtype, p.dtype, w.device) for w, _, v, _, p in self._layers}
        if len(kinds) > 1:
            raise TypeError(f"layers merged in one launch must agree in dtypes and device, got {kinds}: group them.")
        for layer in self._layers:
            _check(layer)
        self._movable = [tensor for weight, _, values, _, _ in self._layers for tensor in (weight, values)]
        self._addresses: list[int] | None = None
        self._table = self._starts = None

    def __call__(self) -> None:
        """Merge every layer."""
        if not self._layers:
            return
        weight, _, values, _, positions = self._layers[0]
        addresses = [tensor.data_ptr() for tensor in self._movable]
        if addresses != self._addresses:
            rows, starts = [], [0]
            for layer in self._layers:
                rows.append([*(tensor.data_ptr() for tensor in layer), layer[2].numel()])
                starts.append(starts[-1] + triton.cdiv(rows[-1][-1], BLOCK))
            self._table = torch.tensor(rows).to(weight.device, non_blocking=True)
            self._starts = torch.tensor(starts, dtype=torch.int32).to(weight.device, non_blocking=True)
            self._addresses, self._blocks = addresses, starts[-1]
        with torch.cuda.device_of(weight):
            _merge_layers_kernel[self._blocks,](
                self._table, self._starts, len(self._layers), (len(self._layers) - 1).bit_length(),
                WEIGHT=ELEMENT[weight.dtype], VALUE=ELEMENT[values.dtype], POSITION=ELEMENT[positions.dtype],
                BLOCK=BLOCK,
            )  # fmt: skip


def _check(tensors):
    weight, merged, values, _, _ = tensors
    if not (weight.is_cuda or INTERPRETED):
        raise RuntimeError(
            f"the Triton merge needs tensors on a GPU, got {weight.device}: use rmbook.engine.tap.merge there."
        )
    if values.dtype != merged.dtype:
        raise TypeError(f"values have dtype {values.dtype}, the values merged last {merged.dtype}: they must agree.")


@triton.jit
def _merge_block(weight, merged, values, original, positions, nnz, block, BLOCK: tl.constexpr):
    entry = block * BLOCK + tl.arange(0, BLOCK)
    inside = entry < nnz
    value = tl.load(values + entry, mask=inside, other=0.0)
    last = tl.load(merged + entry, mask=inside, other=0.0)
    if value.dtype == tl.float64:
        changed = inside & (value.to(tl.int64, bitcast=True) != last.to(tl.int64, bitcast=True))
    else:
        changed = inside & (value.to(tl.int32, bitcast=True) != last.to(tl.int32, bitcast=True))
    base = tl.load(original + entry, mask=changed, other=0.0).to(value.dtype)
    position = tl.load(positions + entry, mask=changed, other=0).to(tl.int64)
    tl.store(weight + position, (base + value).to(weight.dtype.element_ty), mask=changed)
    tl.store(merged + entry, value, mask=changed)


@triton.jit(do_not_specialize=["nnz"])
def _merge_kernel(weight, merged, values, original, positions, nnz, BLOCK: tl.constexpr):
    _merge_block(weight, merged, values, original, positions, nnz, tl.program_id(0), BLOCK)


@triton.jit(do_not_specialize=["layers", "bisections"])
def _merge_layers_kernel(
    table, starts, layers, bisections,
    WEIGHT: tl.constexpr, VALUE: tl.constexpr, POSITION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    low = block * 0  # bisection: starts[low] <= block < starts[high]
    high = low + layers
    for _ in range(bisections):
        middle = (low + high) // 2
        above = tl.load(starts + middle) <= block
        low = tl.where(above, middle, low)
        high = tl.where(above, high, middle)
    row = table + low.to(tl.int64) * 6
    _merge_block(
        tl.load(row).to(tl.pointer_type(WEIGHT)),
        tl.load(row + 1).to(tl.pointer_type(VALUE)),
        tl.load(row + 2).to(tl.pointer_type(VALUE)),
        tl.load(row + 3).to(tl.pointer_type(WEIGHT)),
        tl.load(row + 4).to(tl.pointer_type(POSITION)),
        tl.load(row + 5),
        block - tl.load(starts + low),
        BLOCK,
    )
