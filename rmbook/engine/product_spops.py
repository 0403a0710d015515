"""The sampled product through spops, IST-DASLab's library of sparse operations (the kernels of RoSA).

For people who have it built; `rmbook.engine.product_torch` needs nothing beyond torch. The package of that name on
PyPI is another one, for astronomers: `check_spops` tells them apart.
"""

import importlib
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import find_spec
from types import ModuleType

import torch

from rmbook.engine.product_torch import transposed

TOKEN_CHUNK = 4096  # spops widens its operands to float32 as a whole, so it gets them in pieces
GET_IT = "It is built from source: follow the README of https://github.com/IST-DASLab/spops, with this torch installed"
COMPILED = {"cpu": "spops_backend_cpu", "cuda": "spops_backend"}


@cache  # a success; failures are looked at again
def check_spops(device_type: str = "cpu") -> ModuleType:
    """Return the module `spops` if it can multiply on this kind of device.

    Args:
        device_type: "cpu" or "cuda".

    Raises:
        ImportError: if no spops is installed, if it is another package of that name, or if it was built without the
            part for this kind of device.
        ValueError: for another kind of device.
    """
    if device_type not in COMPILED:
        raise ValueError(f"spops works on 'cpu' and 'cuda', not on {device_type!r}: use backend='torch' there.")
    spec = find_spec("spops")
    if spec is None:
        raise ImportError(f"backend='spops' needs IST-DASLab's spops, which is not installed. {GET_IT}.")
    # Looked for without importing anything: the other package fails at its own import where h5py is missing.
    if PathFinder.find_spec("spops.sddmm", spec.submodule_search_locations or []) is None:
        raise ImportError(
            f"the spops at {spec.origin} is not IST-DASLab's: it has no sddmm. The package named spops on PyPI is "
            f"about spinning black holes; remove it with `pip uninstall spops`. {GET_IT}."
        )
    if find_spec(COMPILED[device_type]) is None:
        raise ImportError(
            f"the spops at {spec.origin} was built without {COMPILED[device_type]}, its part for {device_type!r}. "
            f"{GET_IT}" + (" and a CUDA toolkit that matches it." if device_type == "cuda" else ".")
        )
    return importlib.import_module("spops")


def sampled_product(
    grad_output: torch.Tensor, input: torch.Tensor, row_starts: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor:
    """Compute entries of grad_output^T @ input at given positions, by `spops.sddmm`.

    Args:
        grad_output: (tokens, out) float32, bfloat16 or float16, on a CPU or a CUDA GPU.
        input: (tokens, in), likewise; the two dtypes may differ.
        row_starts: (out + 1,) int32 CSR row pointer of the positions.
        columns: (nnz,) int32 input index of each position, row by row.

    Returns:
        (nnz,) float32, accumulated in float32.

    Raises:
        ImportError: if spops is not there; see `check_spops`.
        TypeError: for float64, which spops would silently round to float32.
    """
    if torch.float64 in (grad_output.dtype, input.dtype):
        raise TypeError("spops computes in float32 and got float64: use backend='torch' for it.")
    on_gpu = columns.is_cuda
    spops = check_spops(columns.device.type)
    total = torch.zeros(columns.numel(), dtype=torch.float32, device=columns.device)
    if total.numel() == 0:
        return total
    # Its GPU kernel wants the rows by falling size, to balance its work; the CPU kernel does not look at them. Of its
    # two GPU kernels, "sputnik" is for masks without structure, and takes indices beyond 32767.
    by_size = row_starts.diff().argsort(descending=True, stable=True).int() if on_gpu else row_starts[1:]
    chunk = min(TOKEN_CHUNK, (2**31 - 1) // max(grad_output.shape[1], input.shape[1]))  # it counts elements in int32
    for left, right in zip(grad_output.detach().split(chunk), input.detach().split(chunk), strict=True):
        total += spops.sddmm(
            row_starts,
            by_size,
            columns,
            transposed(left, torch.float32),  # (out, chunk)
            transposed(right, torch.float32),  # (in, chunk)
            backend="sputnik" if on_gpu else "sddmm_v3",
        )
    return total
