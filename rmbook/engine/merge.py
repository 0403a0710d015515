"""The update of all masked layers of a model at once, at the start of its forward pass.

A layer that is called on its own merges its values itself. Called by its model, it finds them merged: on a GPU that is
one launch for the whole model, where each layer would need one of its own.
"""

from collections.abc import Iterable

import torch
from torch import nn

from rmbook.engine.gradient_check import GradientCheck, tell_frozen
from rmbook.engine.layer import MaskedLinear
from rmbook.engine.sharded import spread_state
from rmbook.engine.tap import HAS_TRITON


class Refresh:
    """Merges the values of a model's masked layers whenever the model is called, until `remove`.

    Args:
        model: whose call it waits for.
        layers: masked layers of the model. While the model runs they trust this merge, and do not look for themselves.
        check: looked at on each call until it has finished.
    """

    def __init__(self, model: nn.Module, layers: Iterable[MaskedLinear], check: GradientCheck | None = None):
        self._layers = list(layers)
        self._check, self._told = check, False
        self._up_to_date: set[int] = set()  # shared with the layers
        self._state: list[tuple] | None = None  # of the layers when they were arranged
        for layer in self._layers:
            layer.up_to_date = self._up_to_date
        self._hooks = (
            model.register_forward_pre_hook(self._open),
            model.register_forward_hook(self._close, always_call=True),  # also when the forward pass fails
            model.register_load_state_dict_pre_hook(spread_state),
        )

    def remove(self) -> None:
        """Take the hooks off the model."""
        self._up_to_date.clear()
        if self._check is not None:
            self._check.remove()
        for hook in self._hooks:
            hook.remove()

    @torch.no_grad()
    def _open(self, model: nn.Module, *_) -> None:
        if torch.compiler.is_compiling():  # a compiled graph holds the merge of each layer
            return
        if self._check is not None and self._check.finished():
            self._check = None
        first = self._layers[0]._parameters.get("values")
        if not self._told and first is not None and not first.requires_grad:
            self._told = tell_frozen(model, self._layers)
        state = [_state(layer) for layer in self._layers]
        if state != self._state:
            self._arrange()
            self._state = state
        for layer in self._one_by_one:
            layer.refresh()
        for layer, delta in self._scaled:
            torch.mul(layer.values, layer.scale, out=delta)
        for merge, layers in self._together:
            merge()
            for layer in layers:
                layer.__dict__["writes"] += 1  # past nn.Module's own bookkeeping, which costs more than all the rest
        self._up_to_date.update(self._ids)

    def _close(self, *_) -> None:
        self._up_to_date.clear()

    def _arrange(self) -> None:
        """Sort the layers into those of one launch, by dtypes and device, and those that merge one by one."""
        layers = [layer for layer in self._layers if isinstance(layer, MaskedLinear)]
        layers = [layer for layer in layers if layer.resident and not layer.dense_form]
        self._ids = [id(layer.values) for layer in layers]
        self._one_by_one, self._scaled, groups = [], [], {}
        for layer in layers:
            layer.check_weight()
            if not _can_join(layer):
                self._one_by_one.append(layer)
                continue
            delta = layer.values
            if layer.scale != 1:  # S in memory of its own: its address is kept
                delta = torch.empty_like(delta)
                self._scaled.append((layer, delta))
            tensors = layer.weight, layer.merged, delta, layer.original, layer.mask.positions
            kind = (layer.weight.device, *(tensor.dtype for tensor in tensors))
            groups.setdefault(kind, []).append((layer, tensors))
        self._together = []
        if groups:
            from rmbook.engine.merge_triton import MergeLayers
        for group in groups.values():
            members, tensors = zip(*group, strict=True)
            self._together.append((MergeLayers(tensors), members))


def _can_join(layer: MaskedLinear) -> bool:
    return HAS_TRITON and layer.weight.is_cuda


def _state(layer: nn.Module) -> tuple:
    # Changes whenever the layers must be arranged anew: `.to`, functional_call, dense_form, detach. Looked up in the
    # module's dictionaries, many times faster than as attributes. The arrangement keeps the tensors, so that no other
    # one gets their ids.
    own, parameters = layer.__dict__, layer._parameters
    return own.get("dense_form"), id(own.get("merged")), id(parameters.get("values")), id(parameters.get("weight"))
