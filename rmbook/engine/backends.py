"""The choice of a backend, which computes the sampled product, and the reason for the choice."""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

import torch

from rmbook.engine import product_costs, product_torch
from rmbook.engine.shards import working_device

Product = Callable[..., torch.Tensor]  # with the signature of `rmbook.engine.product_torch.sampled_product`


def _triton(device_type: str) -> Product:
    from rmbook.engine import product_triton

    return product_triton.cheapest_product


def _spops(device_type: str) -> Product:
    from rmbook.engine import product_spops

    return product_spops.sampled_product


def _dense(device_type: str) -> Product:
    if device_type != "cuda" or not find_spec("triton"):
        return product_torch.dense_product
    from rmbook.engine import product_triton

    return product_triton.dense_product


PRODUCTS: dict[str, Callable[[str], Product]] = {  # by the type of the device
    "torch": lambda device_type: product_torch.sampled_product,
    "triton": _triton,
    "spops": _spops,
    "dense": _dense,
}
BACKENDS = ("auto", *PRODUCTS)


def choose_backend(wanted: str, weight: torch.Tensor) -> tuple[str, str]:
    """Choose the backend that serves a layer, and say why.

    Args:
        wanted: "torch" (any device), "triton" (CUDA GPUs), "spops" (IST-DASLab's library, where it was built), "dense"
            (a dense gradient by blocks of rows: a baseline) or "auto".
        weight: of the layer; its device and dtype matter.

    Returns:
        backend: one of BACKENDS, but not "auto".
        reason: in words.

    Raises:
        ValueError: an unknown backend, or one that does not work on this device or in this dtype.
        ImportError: the backend's library is missing; the message says how to get it.
    """
    if wanted not in ("auto", *PRODUCTS):
        raise ValueError(f"backend must be one of auto, {', '.join(PRODUCTS)}, got {wanted!r}.")
    device, has_triton = working_device(weight), find_spec("triton") is not None
    if wanted == "auto":
        if device.type == "cuda" and has_triton:
            return "triton", "a CUDA GPU, and triton is installed"
        missing = " without the package triton" if device.type == "cuda" else ""
        return "torch", f"a device of type {device.type}{missing}: torch's own kernels"
    if wanted == "triton":
        if device.type != "cuda":
            raise ValueError(f"backend 'triton' needs a CUDA GPU, the weight is on {device}: use 'auto' or 'torch'.")
        if not has_triton:
            raise ImportError("backend 'triton' needs the package triton: pip install triton, or use 'torch'.")
    if wanted == "spops":
        from rmbook.engine.product_spops import check_spops

        check_spops(device.type)
        if weight.dtype == torch.float64:
            raise ValueError("backend 'spops' computes in float32, the weight is float64: use 'auto' or 'torch'.")
    return wanted, "asked for"


@cache  # it is looked up in every backward pass of every layer
def product(backend: str, device_type: str) -> Product:
    """Return the function of a backend."""
    return PRODUCTS[backend](device_type)


def explain_way(backend: str, shape: tuple[int, int], nnz: int, dtype: torch.dtype, device: torch.device) -> str:
    """Say in words how a backend computes a product of these sizes."""
    if backend == "torch":
        way, reason = product_torch.cheapest_way(shape, nnz, dtype, device.type)
        return f"{way}: {reason}"
    if backend == "triton":
        way = product_costs.cheapest_way(shape, 4096, nnz, dtype)
        return f"{way}: the fastest for 4,096 tokens at an H200's rates (rmbook.engine.product_costs)"
    known = {"spops": "spops.sddmm", "dense": "dense: by blocks of rows, at every density"}
    return known.get(backend, backend)
