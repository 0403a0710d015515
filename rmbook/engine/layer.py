"""The masked linear layer: y = x (W + S)^T + b, where S has the values that are trained and W never changes.

The design is *merged weight + tap*. The layer's own weight holds W + S, so the forward pass is the plain linear
layer and autograd's own frozen path gives the input's gradient. A tiny autograd function, the identity on y, adds
the gradient of the values by a sampled product. No dense copy of W and no dense gradient of W is ever made.
"""

from functools import partial
from types import MethodType

import torch
import torch.nn.functional as F
from torch import nn

from rmbook.engine.backends import choose_backend
from rmbook.engine.reference import masked_linear_reference
from rmbook.engine.tap import Tap, compact_columns, merge
from rmbook.masks.sample import Mask

OWN_ATTRIBUTES = (
    *("values", "mask", "row_starts", "columns", "touched", "original", "merged", "merged_into"),
    *("wanted_backend", "backend", "backend_reason", "scale", "writes", "up_to_date"),
)


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
    """

    values: nn.Parameter
    dense_form = False

    @classmethod
    def attach(cls, linear: nn.Linear, mask: Mask, backend: str = "auto", scale: float = 1.0) -> "MaskedLinear":
        """Turn `linear` into a masked layer, with values starting at zero (so the output does not change).

        Raises:
            ValueError, ImportError: the backend does not work here; see `rmbook.engine.backends.choose_backend`.
            TypeError: if it is not exactly an `nn.Linear`, which covers quantised layers, or is masked already.
            ValueError: if its weight is on the meta device, of an unsupported dtype or layout, or the mask has
                another shape.
        """
        check_maskable(linear)
        if tuple(linear.weight.shape) != mask.shape:
            raise ValueError(f"the mask has shape {mask.shape}, the weight {tuple(linear.weight.shape)}.")
        chosen = choose_backend(backend, linear.weight)
        weight = linear.weight.requires_grad_(False)
        _change_class(linear, cls)
        linear.wanted_backend, (linear.backend, linear.backend_reason) = backend, chosen
        linear.scale = scale
        linear.writes, linear.up_to_date = 0, frozenset()
        linear._set_mask(mask.to(weight.device))
        linear.values = nn.Parameter(torch.zeros(mask.nnz, dtype=_values_dtype(weight), device=weight.device))
        linear._save_original()
        return linear

    def detach(self) -> nn.Linear:
        """Turn the module back into a plain `nn.Linear` with the original weight, bit for bit."""
        self._restore()
        return self._forget()

    def bake(self) -> nn.Linear:
        """Turn the module back into a plain `nn.Linear` whose weight keeps W + S."""
        self.refresh()
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
        self.check_weight()
        state = self.weight, self.merged, delta, self.original, self.mask.positions
        if torch.compiler.is_compiling():
            torch.ops.rmbook.merge_(*state)
        elif merge(*state):
            self.writes += 1

    def _merge_again(self, writes: int, delta: torch.Tensor) -> None:
        # Before a backward pass: W + S of its forward pass. Nothing to do where nothing was written since.
        if self.writes != writes:
            self._merge(delta)

    def check_weight(self) -> None:
        """Raise if `weight` is no longer the tensor that was masked.

        Raises:
            RuntimeError: it was replaced or sharded.
        """
        # FSDP shards the weight, and hands the layer a rebuilt copy at each forward, in which a merge would be lost.
        weight, (ours,) = self.weight, self.merged_into
        if weight is ours or torch.compiler.is_compiling():
            return
        if type(weight.data) is not torch.Tensor or weight.data_ptr() != ours.data_ptr():
            raise RuntimeError(
                f"the weight of this masked layer was replaced by another {type(weight.data).__name__}, but W + S "
                "lives in the memory of the weight that was masked. FSDP does that when it shards: use "
                "DistributedDataParallel instead. If you replaced it yourself, remove the mask first."
            )

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """y = x (W + S)^T + b; (..., in) to (..., out)."""
        values, weight, bias = self.values, self.weight, self.bias  # once: looking them up is not free in a module
        delta = self.delta
        if self.dense_form:
            return masked_linear_reference(input, weight, bias, self.mask, delta)
        compiling = torch.compiler.is_compiling()
        if compiling or id(values) not in self.up_to_date:
            self._merge(delta)
        else:
            self.check_weight()
        output = F.linear(input, weight, bias)
        if not (torch.is_grad_enabled() and (values.requires_grad or output.requires_grad)):
            return output
        if self.touched is not None:
            input = input.index_select(-1, self.touched)  # all that the backward pass needs
        # A compiled graph keeps its own W + S.
        merge_again = None if compiling else partial(self._merge_again, self.writes)
        return Tap.apply(output, delta, input.detach(), self.row_starts, self.columns, self.backend, merge_again)

    def train(self, mode: bool = True) -> "MaskedLinear":
        """Set the mode; also refresh, for callers that read `weight` without calling the layer."""
        if not self.dense_form:
            self.refresh()
        return super().train(mode)

    @property
    def product_shape(self) -> tuple[int, int]:
        """Shape (out, in) of the product that is sampled for the values' gradient; `in` counts kept columns."""
        return self.mask.shape[0], self.mask.shape[1] if self.touched is None else self.touched.numel()

    def set_dense_form(self, dense_form: bool) -> None:
        """Switch between the fast layer and the reference form, in which `weight` holds W instead of W + S."""
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
        self.original = self.weight.view(-1).index_select(0, self.mask.positions)
        self.merged = torch.zeros_like(self.values)  # W + 0 is what the weight holds now
        self.writes += 1
        self.merged_into = (self.weight,)  # in a tuple, so that nn.Module does not register it a second time

    @torch.no_grad()
    def _restore(self) -> None:
        self.weight.view(-1).index_copy_(0, self.mask.positions.long(), self.original)
        self.merged.zero_()
        self.writes += 1

    def _forget(self) -> nn.Linear:
        for name in OWN_ATTRIBUTES:
            delattr(self, name)
        self.__dict__.pop("dense_form", None)
        _change_class(self, nn.Linear)
        return self

    def _apply(self, fn, recurse=True):
        # Moves and casts W, not W + S: the values keep their precision and are merged anew.
        self._restore()
        values = self._parameters.pop("values")
        super()._apply(fn, recurse)
        for tensor in (values,) if values.grad is None else (values, values.grad):
            tensor.data = tensor.data.to(self.weight.device, _values_dtype(self.weight))
        self._parameters["values"] = values
        self.backend, self.backend_reason = choose_backend(self.wanted_backend, self.weight)
        self._set_mask(self.mask.to(self.weight.device))
        self._save_original()
        return self

    # A plain model that loads this state has the trained weights, W + S; a masked layer finds W in it as well.

    @torch.no_grad()
    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.dense_form or not torch.equal(self.delta, self.merged):  # saving changes nothing: merge into a copy
            weight = destination[prefix + "weight"] = self.weight.detach().clone()
            merge(weight, torch.full_like(self.merged, torch.nan), self.delta, self.original, self.mask.positions)
        destination[prefix + "original"] = self.original

    @torch.no_grad()
    def _load_from_state_dict(self, state_dict, prefix, *args):
        original = state_dict.pop(prefix + "original", None)  # absent where the weight is W
        if original is not None and original.shape != self.original.shape:
            args[-1].append(f"{prefix}original has {len(original)} entries, this mask has {len(self.original)}.")
            original = None
        self._restore()
        super()._load_from_state_dict(state_dict, prefix, *args)
        if original is not None:
            original = original.to(self.weight.device, self.weight.dtype)
            self.weight.view(-1).index_copy_(0, self.mask.positions.long(), original)
        self._save_original()


def _change_class(linear: nn.Linear, cls: type[nn.Linear]) -> None:
    # accelerate's hooks (a device_map) keep the method `forward` of the class in the instance: it follows.
    for name in ("forward", "_old_forward"):
        if getattr(linear.__dict__.get(name), "__func__", None) is type(linear).forward:
            linear.__dict__[name] = MethodType(cls.forward, linear)
    linear.__class__ = cls


def check_maskable(linear: nn.Module) -> None:
    """Raise if `linear` cannot be turned into a masked layer; see `MaskedLinear.attach`."""
    if isinstance(linear, MaskedLinear):
        raise TypeError("the layer is masked already; remove the first mask (RandomMask.remove) before adding another.")
    if type(linear) is not nn.Linear:
        raise TypeError(
            f"expected a plain torch.nn.Linear, got {type(linear).__module__}.{type(linear).__qualname__}; quantised, "
            "embedding, convolution and other layers are not supported: name targets that are linear layers."
        )
    inner = linear.__dict__.get("_old_forward", linear.__dict__.get("forward"))
    if "forward" in linear.__dict__ and getattr(inner, "__func__", None) is not nn.Linear.forward:
        raise TypeError(
            "its forward was replaced on this one instance, so the masked layer would never run; restore it first."
        )
    weight = linear.weight
    if weight.is_meta:
        raise ValueError("its weight is on the meta device and holds no numbers; load the weights before masking.")
    if weight.dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"its weight has dtype {weight.dtype}; float32, bfloat16, float16 or float64 is needed.")
    if type(weight.data) is not torch.Tensor or weight.layout is not torch.strided or not weight.is_contiguous():
        raise ValueError(
            "its weight is not a plain contiguous tensor (quantised, sharded or sparse); it is unsupported."
        )
