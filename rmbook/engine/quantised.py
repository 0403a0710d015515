"""Masked layers on a quantised base: bitsandbytes (4 and 8 bits) and torchao. The quantised weight is never written.

Their product is that of `rmbook.engine.quantised_product`.
"""

from functools import cache

import torch
from torch import nn

from rmbook.engine.dequantise import dequantise, quantisation
from rmbook.engine.layer import MaskedLinear
from rmbook.engine.quantised_product import compute_dtype, quantised_linear, refuse_merge
from rmbook.engine.reference import masked_linear_reference
from rmbook.engine.shards import read_entries, working_device
from rmbook.masks.sample import Mask


class QuantisedLinear(MaskedLinear):
    """A masked layer whose weight is quantised, and stays as it is: there is no W to keep the entries of."""

    resident = False

    @classmethod
    def attach(cls, linear: nn.Linear, mask: Mask, backend: str = "auto", scale: float = 1.0) -> "QuantisedLinear":
        """Turn a quantised layer into a masked one; see `MaskedLinear.attach`."""
        return super(QuantisedLinear, _class_for(linear.__class__)).attach(linear, mask, backend, scale)

    def check_removable(self, keep: bool) -> None:
        """Raise RuntimeError if W + S is to be kept: quantised, it would be another."""
        if keep:
            refuse_merge()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """y = x (W + S)^T + b; (..., in) to (..., out)."""
        delta = self.delta
        if not self.dense_form:
            return quantised_linear(input, self, delta, self)
        wanted = compute_dtype(self, input)
        weight, bias = dequantise(self, wanted), None if self.bias is None else self.bias.to(wanted)
        return masked_linear_reference(input.to(wanted), weight, bias, self.mask, delta).to(input.dtype)

    # -- state: W is not changed, so there is nothing to put back ----------------------------------------------------

    def _save_original(self) -> None:
        self.original = self.merged = self.merged_into = None

    get_extra_state, set_extra_state = nn.Module.get_extra_state, nn.Module.set_extra_state

    def check_weight(self) -> None:
        """Do nothing: W + S is in no memory of its own."""

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super(MaskedLinear, self)._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *args):
        super(MaskedLinear, self)._load_from_state_dict(*args)


@cache
def _class_for(plain: type[nn.Linear]) -> type[QuantisedLinear]:
    """The masked class of a quantised layer's class: its methods for state and moves still apply."""
    if plain is nn.Linear:
        return QuantisedLinear
    return type(f"Masked{plain.__name__}", (QuantisedLinear, plain), {"plain_class": plain, "__module__": __name__})


def masked_class(linear: nn.Module) -> type[MaskedLinear]:
    """Return the class that masks a linear layer."""
    return QuantisedLinear if quantisation(linear) else MaskedLinear


def base_entries(layer: nn.Module, mask: Mask, transposed: bool = False) -> torch.Tensor:
    """Return the entries of W at a mask's positions, (nnz,), in float32 if it is quantised.

    Args:
        layer: unmasked, or masked on a quantised base; of any other masked layer, `original` has them.
        mask: where.
        transposed: as of `rmbook.engine.shards.read_entries`, whose collective this is if W is sharded.
    """
    if quantisation(layer):
        return dequantise(layer, torch.float32).view(-1).index_select(0, mask.positions.to(layer.weight.device))
    return read_entries(layer.weight.detach(), mask.to(working_device(layer.weight)), transposed)
