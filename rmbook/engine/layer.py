"""The masked linear layer: y = x (W + S)^T + b, where S has the values that are trained and W never changes.

The design is *merged weight + tap*. The layer's own weight holds W + S, so the forward pass is the plain linear
layer and autograd's own frozen path gives the input's gradient. A tiny autograd function, the identity on y, adds
the gradient of the values by a sampled product. No dense copy of W is ever made, and no dense gradient of a large W.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from rmbook.engine import sharded
from rmbook.engine.backends import choose_backend
from rmbook.engine.dequantise import weight_shape
from rmbook.engine.maskable import change_class, check_maskable, check_same
from rmbook.engine.reference import masked_linear_reference
from rmbook.engine.shards import is_sharded, read_entries, working_device
from rmbook.engine.tap import compact_columns, merge, overwrite, tapped
from rmbook.masks.sample import Mask

OWN_ATTRIBUTES = (
    *("values", "mask", "row_starts", "columns", "touched", "original", "merged", "merged_into"),
    *("wanted_backend", "backend", "backend_reason", "scale", "writes", "up_to_date", "average"),
)


ENTRIES = "_extra_state"  # W's entries in a `state_dict`, by the one name that torch's checkpoints of shards know


def _values_dtype(weight: torch.Tensor) -> torch.dtype:
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


class MaskedLinear(nn.Linear):
    """A linear layer that trains only the entries of a mask: y = x (W + S)^T + b.

    Made from an existing `nn.Linear` by `MaskedLinear.attach`, which turns the module itself into this class: names,
    hooks and references to it stay valid. `detach` turns it back, with the original weight bit for bit.

    Attributes:
        weight: (out, in), frozen; holds W + S, brought up to date by each forward pass. `state_dict` holds it with
            the values and the original entries: a plain model that loads it has the trained weights.
        values: (nnz,) parameter, the entries of S / scale; float32, or float64 for a float64 weight.
        scale: S = scale * values; 1 unless asked for.
        backend: what computes the values' gradient (`rmbook.engine.backends`); backend_reason says why.
        mask: positions of S.
        original: (nnz,) entries of W at the mask's positions, in W's dtype.
        dense_form: whether forward is `masked_linear_reference` (slow, differentiable any number of times).
        writes: how often `weight` was, or on a GPU may have been, written.
        up_to_date: ids of values that need no merge in this forward pass; `rmbook.engine.merge` fills and empties it.
        resident: whether `weight` holds W + S between calls; else it holds W, and each call merges into a copy of it.
        sharded: whether FSDP2 has the weight, on the devices of `mesh`; see `rmbook.engine.sharded`.
    """

    values: nn.Parameter
    merged_into: tuple[torch.Tensor, ...] | None
    is_masked = True
    dense_form, resident, sharded, mesh = False, True, False, None
    average: Any = None  # a `rmbook.engine.sharded.GradientAverage`, which imports this module
    plain_class = nn.Linear  # what detach and bake turn the layer back into

    @classmethod
    def attach(cls, linear: nn.Linear, mask: Mask, backend: str = "auto", scale: float = 1.0) -> "MaskedLinear":
        """Turn `linear` into a masked layer, with values starting at zero (so the output does not change).

        Raises:
            ValueError, ImportError: the backend does not work here; see `rmbook.engine.backends.choose_backend`.
            TypeError: if it is not exactly an `nn.Linear`, or is masked already.
            ValueError: if its weight is on the meta device, offloaded, of an unsupported dtype or layout, or the mask
                has another shape.
        """
        check_maskable(linear)
        if weight_shape(linear) != mask.shape:
            raise ValueError(f"the mask has shape {mask.shape}, the weight {weight_shape(linear)}.")
        weight, device = linear.weight.requires_grad_(False), working_device(linear.weight)
        chosen = choose_backend(backend, weight)
        values = nn.Parameter(torch.zeros(mask.nnz, dtype=_values_dtype(weight), device=device))
        change_class(linear, cls)
        linear.wanted_backend, (linear.backend, linear.backend_reason) = backend, chosen
        linear.scale, linear.values = scale, values
        linear.writes, linear.up_to_date, linear.average = 0, frozenset(), None
        linear._set_mask(mask.to(device))
        linear._save_original()
        if is_sharded(weight):
            sharded.begin(linear)
        return cast(MaskedLinear, linear)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "weight" and not self.sharded and is_sharded(value):  # fully_shard does it so
            sharded.begin(self)

    def check_removable(self, keep: bool) -> None:
        """Raise RuntimeError if the layer cannot be turned back into a plain one, whose weight keeps W + S or not."""
        if is_sharded(self.values) or type(self).__name__.startswith("FSDP"):
            raise RuntimeError("FSDP holds the values or the layer: save the adapter, and load it in one process.")

    def detach(self) -> nn.Linear:
        """Turn the module back into a plain `nn.Linear` with the original weight, bit for bit."""
        self._restore()
        return self._forget()

    def bake(self) -> nn.Linear:
        """Turn the module back into a plain one whose weight keeps W + S."""
        self.refresh()
        if self.sharded:
            sharded.write_sum(self, self.weight)
        return self._forget()

    def refresh(self) -> None:
        """Bring the merged weight up to date with the values; does nothing when they have not changed.

        Values are compared, not version counters: fused optimisers, `.data` writes, `functional_call` and deepcopy
        change them without a new version.
        """
        self._merge(self.delta)

    @property
    def delta(self) -> torch.Tensor:
        """Entries of S, (nnz,): the values times the scale."""
        return self.values if self.scale == 1 else self.scale * self.values

    @torch.no_grad()
    def _merge(self, delta: torch.Tensor) -> None:
        if not self.resident:
            return
        self.check_weight()
        state = self.weight, self.merged, delta, self.original, self.mask.positions
        if torch.compiler.is_compiling():
            torch.ops.rmbook.merge_(*state)
        elif merge(*state):
            self.writes += 1

    def _merge_again(self, writes: int, delta: torch.Tensor) -> None:
        if self.writes != writes:  # before a backward pass: W + S of its forward pass, unless nothing was written since
            self._merge(delta)

    def check_weight(self) -> None:
        """Raise RuntimeError if `weight` is no longer the tensor that was masked."""
        if not torch.compiler.is_compiling():
            check_same(self.weight, *(self.merged_into or ()))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """y = x (W + S)^T + b; (..., in) to (..., out)."""
        values, weight, bias, delta = self.values, self.weight, self.bias, self.delta  # once: a look-up is not free
        if self.dense_form:
            return masked_linear_reference(input, weight, bias, self.mask, delta)
        compiling = torch.compiler.is_compiling()
        if self.sharded:
            merge_again = partial(sharded.write_gathered, self, weight)
            merge_again(delta)
        elif compiling or id(values) not in self.up_to_date:
            self._merge(delta)
        else:
            self.check_weight()
        rows = input
        if bias is not None and input.dim() > 2 and input.is_contiguous():
            rows = input.flatten(0, -2)  # F.linear does it, too, but the tap on a view would copy each gradient thrice
        output = F.linear(rows, weight, bias)
        if torch.is_grad_enabled() and (values.requires_grad or output.requires_grad):
            if not self.sharded:  # a compiled graph keeps its own W + S
                merge_again = None if compiling else partial(self._merge_again, self.writes)
            output = tapped(output, delta, rows, self, merge_again)
        return output if rows is input else output.view(*input.shape[:-1], output.shape[-1])

    def train(self, mode: bool = True) -> "MaskedLinear":
        """Set the mode; also refresh, for callers that read `weight` without calling the layer."""
        if not self.dense_form:
            self.refresh()
        super().train(mode)
        return self

    @property
    def product_shape(self) -> tuple[int, int]:
        """Shape (out, in) of the product that is sampled for the values' gradient; `in` counts kept columns."""
        return self.mask.shape[0], self.mask.shape[1] if self.touched is None else self.touched.numel()

    @property
    def operand_dtype(self) -> torch.dtype:
        """Dtype in which the layer computes, as far as it is known before it is called."""
        return self.weight.dtype if self.weight.dtype.is_floating_point else self.values.dtype

    def set_dense_form(self, dense_form: bool) -> None:
        """Switch between the fast layer and the reference form, in which `weight` is W; RuntimeError if sharded."""
        if self.sharded:
            raise RuntimeError("the dense form of a sharded layer is not supported: load its adapter in one process.")
        if dense_form:
            self._restore()
        self.dense_form = dense_form

    def extra_repr(self) -> str:
        """Return the sizes, as in `nn.Linear`, and how many entries are trained."""
        return f"{super().extra_repr()}, trained={self.mask.nnz} of {self.mask.numel}"

    # -- state: everything below keeps W, the values and the merged weight consistent --------------------------

    def _set_mask(self, mask: Mask) -> None:
        # Plain attributes, not buffers: DistributedDataParallel would broadcast buffers at every forward.
        self.mask, self.row_starts = mask, mask.row_starts
        self.columns, self.touched = compact_columns(mask)

    @torch.no_grad()
    def _save_original(self) -> None:
        if not self.weight.is_meta:
            self.original = read_entries(self.weight, self.mask)
        self.writes += 1
        if self.resident:
            self.merged = torch.zeros_like(self.values)  # W + 0 is what the weight holds now
            self.merged_into = (self.weight,)  # in a tuple, so that nn.Module does not register it a second time

    @torch.no_grad()
    def _restore(self) -> None:
        if self.resident:
            self.weight.view(-1).index_copy_(0, self.mask.positions.long(), self.original)
            self.merged.zero_()
            self.writes += 1

    def _forget(self) -> nn.Linear:
        for name in OWN_ATTRIBUTES:
            delattr(self, name)
        for name in ("dense_form", "resident", "sharded", "mesh"):
            self.__dict__.pop(name, None)
        change_class(self, self.plain_class)
        return self

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "MaskedLinear":
        # Moves and casts W, not W + S: the values keep their precision and are merged anew.
        self._restore()
        values = self._parameters.pop("values")
        try:
            super()._apply(fn, recurse)
        finally:
            self._parameters["values"] = values
        to = partial(torch.Tensor.to, device=working_device(self.weight), dtype=_values_dtype(self.weight))
        if self.weight.is_meta:  # accelerate does so before it shards, and loads the state afterwards
            self._parameters["values"] = nn.Parameter(to(values.data), values.requires_grad)
            return self
        for tensor in (values,) if values.grad is None else (values, values.grad):
            tensor.data = fn(tensor.data) if is_sharded(tensor) else to(tensor.data)
        self.backend, self.backend_reason = choose_backend(self.wanted_backend, self.weight)
        self._set_mask(self.mask.to(values.device))
        self._save_original()
        return self

    @torch.no_grad()
    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.weight.is_meta:
            del destination[prefix + ENTRIES]  # accelerate shards what is here
            return
        if self.sharded:
            destination[prefix + "weight"] = sharded.write_sum(self, self.weight.detach().clone())
        elif self.dense_form or not torch.equal(self.delta, self.merged):  # saving changes nothing: merge into a copy
            weight = destination[prefix + "weight"] = self.weight.detach().clone()
            overwrite(weight, self.delta, self.original, self.mask.positions)

    def get_extra_state(self) -> torch.Tensor:
        """Return W's entries at the mask's positions, (nnz,), for `state_dict`."""
        return self.original

    def set_extra_state(self, state: Any) -> None:
        """Do nothing: `_load_from_state_dict` has put them in their places."""

    @torch.no_grad()
    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        given, was_meta = state_dict.setdefault(prefix + ENTRIES, None), self.weight.is_meta
        original = given if isinstance(given, torch.Tensor) else None  # absent (to torch: an object) where it is W
        if original is not None and original.shape != self.original.shape:
            args[-1].append(f"{prefix}{ENTRIES} has {len(original)} entries, this mask has {len(self.original)}.")
            original = None
        self._restore()
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self.sharded:
            sharded.write_original(self, original, was_meta)
        elif original is not None:
            original = original.to(self.weight.device, self.weight.dtype)
            self.weight.view(-1).index_copy_(0, self.mask.positions.long(), original)
        self._save_original()
