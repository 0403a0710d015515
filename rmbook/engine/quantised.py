"""Masked layers on a quantised base: bitsandbytes (4 and 8 bits) and torchao. The quantised weight is never written.

For y = x (W + S)^T + b there are two exact ways, W being what the quantised numbers stand for:

- **merge**: dequantise W into a buffer that lives for this product alone, write W + S, multiply once; the backward pass
  does so again. bitsandbytes itself dequantises in each backward pass, so this adds the write of S alone.
- **add**: the base's own product for W, plus a sparse product for S. For a few tokens without gradients, where the
  base has a kernel that does not dequantise (torchao's int8); `cheapest_way` says from where on.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import nn

from rmbook.engine.dequantise import dequantise, quantisation
from rmbook.engine.layer import MaskedLinear
from rmbook.engine.product_torch import expand_rows
from rmbook.engine.reference import masked_linear_reference
from rmbook.engine.shards import read_entries, working_device
from rmbook.engine.tap import compute_product, overwrite, refuse_second_derivative
from rmbook.masks.sample import Mask

# Seconds on one core of a CPU, at widths 1024 and 2048, densities 1e-4 to 1e-2 and 1 to 64 tokens, of nf4 and of
# torchao's int8: rounded means of what benchmarks/quantised_rule.py has fitted to both (its record has them). There
# bitsandbytes dequantises in each product, so that merge is the cheaper way at every size. Not measured on a GPU.
WRITE = 1.5e-8  # an entry that merge scatters into a matrix that is not in the cache
ENTRY = 6.5e-8  # an entry of the sparse product, whatever the number of tokens
ADD = 7.5e-9  # an entry and token of the sparse product
CALL = 2e-4  # what the sparse product costs beside its work
DEQUANTISE = {"bitsandbytes": 0.0, "torchao": 1.5e-9}  # a number that merge dequantises and the base's product does not


def cheapest_way(shape: tuple[int, int], tokens: int, nnz: int, library: str) -> str:
    """Return "merge" or "add", whichever costs less without gradients. Sizes alone decide, never timing.

    Args:
        shape: (out, in).
        tokens: rows of the input.
        nnz: entries of S.
        library: "bitsandbytes" or "torchao".
    """
    merge = DEQUANTISE[library] * shape[0] * shape[1] + WRITE * nnz
    return "add" if CALL + (ENTRY + ADD * tokens) * nnz < merge else "merge"


class _MergedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, delta, layer):
        output = F.linear(input, layer.merged_copy(input.dtype, delta), layer.bias_in(input.dtype))
        kept = input if layer.touched is None else input.index_select(-1, layer.touched)
        ctx.save_for_backward(delta, kept)
        ctx.layer, ctx.dtype = layer, input.dtype
        return output

    @staticmethod
    def backward(ctx, grad_output):
        refuse_second_derivative()
        delta, kept = ctx.saved_tensors
        layer, grad_input, grad_delta = ctx.layer, None, None
        flat = grad_output.reshape(-1, grad_output.shape[-1])
        if ctx.needs_input_grad[0]:
            grad_input = (flat @ layer.merged_copy(ctx.dtype, delta)).view(*grad_output.shape[:-1], -1)
        if ctx.needs_input_grad[1]:
            operands = flat, kept.reshape(-1, kept.shape[-1]), layer.row_starts, layer.columns
            grad_delta = compute_product(*operands, layer.backend).to(delta.dtype)
        return grad_input, grad_delta, None


class QuantisedLinear(MaskedLinear):
    """A masked layer whose weight is quantised, and stays as it is.

    `original` holds W's entries at the mask's positions by the dtype in which they were needed.
    """

    resident = False

    @classmethod
    def attach(cls, linear: nn.Linear, mask: Mask, backend: str = "auto", scale: float = 1.0) -> "QuantisedLinear":
        """Turn a quantised layer into a masked one; see `MaskedLinear.attach`."""
        return super(QuantisedLinear, _class_for(linear.__class__)).attach(linear, mask, backend, scale)

    def check_removable(self, keep: bool) -> None:
        """Raise RuntimeError if W + S is to be kept: quantised, it would be another."""
        if keep:
            raise RuntimeError(
                "W + S cannot be merged into a quantised weight, which would round S away: save the adapter, and load "
                "it on the quantised base; or remove() the mask."
            )

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """y = x (W + S)^T + b; (..., in) to (..., out)."""
        delta, wanted = self.delta, self._compute_dtype(input)
        x = input.to(wanted)
        if self.dense_form:
            weight = dequantise(self, wanted)
            return masked_linear_reference(x, weight, self.bias_in(wanted), self.mask, delta).to(input.dtype)
        with torch.autocast(input.device.type, enabled=False):
            needs_gradient = torch.is_grad_enabled() and (delta.requires_grad or x.requires_grad)
            tokens = x.numel() // max(1, x.shape[-1])
            if not needs_gradient and tokens and self.has_own_product(wanted):
                if cheapest_way(self.mask.shape, tokens, self.mask.nnz, self._library) == "add":
                    return self._added(x, delta).to(input.dtype)
            return _MergedProduct.apply(x, delta, self).to(self._output_dtype(input))

    @torch.no_grad()
    def merged_copy(self, dtype: torch.dtype, delta: torch.Tensor) -> torch.Tensor:
        """Return W + S as a fresh dense matrix (out, in); rounded once."""
        dense = dequantise(self, dtype)
        if dtype not in self.original:
            self.original[dtype] = dense.view(-1).index_select(0, self.mask.positions)
        overwrite(dense, delta, self.original[dtype], self.mask.positions)
        return dense

    def bias_in(self, dtype: torch.dtype) -> torch.Tensor | None:
        """Return the bias in a dtype, if there is one."""
        return None if self.bias is None else self.bias.to(dtype)

    def _added(self, x: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
        # By the class's own forward: the base's product, for which this layer is one of the base's.
        output = self.plain_class.forward(self, x)
        flat, columns = x.reshape(-1, x.shape[-1]), self.mask.columns
        terms = flat.index_select(1, columns).to(delta.dtype) * delta.detach()
        rows = expand_rows(self.row_starts, self.mask.nnz)
        added = terms.new_zeros(flat.shape[0], self.mask.shape[0]).index_add_(1, rows, terms)
        return (output.to(added.dtype) + added.view(output.shape)).to(output.dtype)

    def _compute_dtype(self, input: torch.Tensor) -> torch.dtype:
        if torch.is_autocast_enabled(input.device.type) and input.dtype != torch.float64:
            return torch.get_autocast_dtype(input.device.type)
        return getattr(self, "compute_dtype", None) or input.dtype

    def _output_dtype(self, input: torch.Tensor) -> torch.dtype:
        autocast = torch.is_autocast_enabled(input.device.type) and input.dtype != torch.float64
        return torch.get_autocast_dtype(input.device.type) if autocast else input.dtype

    @property
    def _library(self) -> str:
        return "torchao" if self.plain_class is nn.Linear else "bitsandbytes"

    def has_own_product(self, dtype: torch.dtype) -> bool:
        """Tell whether the base multiplies inputs of a dtype by W as they are, exactly."""
        # LLM.int8 and torchao's dynamic modes quantise the input, too. bitsandbytes is wrong in float64.
        if self._library == "bitsandbytes":
            return type(self.weight).__name__ == "Params4bit" and dtype != torch.float64
        weight, modes = self.weight.data, ("act_quant_kwargs", "activation_quantization")
        dynamic = any(getattr(weight, mode, None) is not None for mode in modes)
        return dtype == weight.dtype and not dynamic and type(weight).__name__ != "LinearActivationQuantizedTensor"

    # -- state: W is not changed, so there is nothing to put back ----------------------------------------------------

    def _save_original(self) -> None:
        self.original = {}
        self.merged = self.merged_into = None

    get_extra_state, set_extra_state = nn.Module.get_extra_state, nn.Module.set_extra_state

    def check_weight(self) -> None:
        """Do nothing: W + S is in no memory of its own."""

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super(MaskedLinear, self)._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *args):
        super(MaskedLinear, self)._load_from_state_dict(*args)
        self.original = {}


@cache
def _class_for(plain: type[nn.Linear]) -> type[QuantisedLinear]:
    """The masked class of a quantised layer's class: its methods for state and moves still apply."""
    if plain is nn.Linear:
        return QuantisedLinear
    return type(f"Masked{plain.__name__}", (QuantisedLinear, plain), {"plain_class": plain, "__module__": __name__})


def masked_class(linear: nn.Module) -> type[MaskedLinear]:
    """Return the class that masks a linear layer."""
    return QuantisedLinear if quantisation(linear) else MaskedLinear


def base_entries(linear: nn.Linear, mask: Mask) -> torch.Tensor:
    """Return the entries of an unmasked layer's W at a mask's positions, (nnz,), in float32 if it is quantised."""
    if quantisation(linear):
        return dequantise(linear, torch.float32).view(-1).index_select(0, mask.positions.to(linear.weight.device))
    return read_entries(linear.weight.detach(), mask.to(working_device(linear.weight)))
