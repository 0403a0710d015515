"""Bringing all masked layers of a model up to date at once, at the start of its forward pass.

A layer that is called on its own merges its values itself. Called by its model, it finds them merged: on a GPU that is
one launch for the whole model, where each layer would need one of its own.
"""

from collections.abc import Iterable

import torch
from torch import nn

from rmbook.layer import MaskedLinear
from rmbook.tap import HAS_TRITON


class Refresh:
    """Merges the values of a model's masked layers whenever the model is called, until `remove`.

    Args:
        model: whose call it waits for.
        layers: masked layers of the model. While the model runs they trust this merge, and do not look for themselves.
    """

    def __init__(self, model: nn.Module, layers: Iterable[MaskedLinear]):
        self._layers = list(layers)
        self._up_to_date: set[int] = set()  # shared with the layers
        self._together: dict[tuple, object] = {}  # one launch for each combination of dtypes and device
        self._scaled: dict[MaskedLinear, torch.Tensor] = {}  # S of layers whose scale is not 1
        for layer in self._layers:
            layer.up_to_date = self._up_to_date
        self._hooks = (
            model.register_forward_pre_hook(self._open),
            model.register_forward_hook(self._close, always_call=True),  # also when the forward pass fails
        )

    def remove(self) -> None:
        """Take the hooks off the model."""
        self._up_to_date.clear()
        for hook in self._hooks:
            hook.remove()

    @torch.no_grad()
    def _open(self, *_) -> None:
        if torch.compiler.is_compiling():  # a compiled graph holds the merge of each layer
            return
        layers = [layer for layer in self._layers if isinstance(layer, MaskedLinear) and not layer.dense_form]
        apart = [layer for layer in layers if not (HAS_TRITON and layer.weight.is_cuda)]
        for layer in apart:
            layer.refresh()
        if len(apart) < len(layers):
            self._merge_together([layer for layer in layers if HAS_TRITON and layer.weight.is_cuda])
        self._up_to_date.update(id(layer.values) for layer in layers)

    def _close(self, *_) -> None:
        self._up_to_date.clear()

    def _merge_together(self, layers: list[MaskedLinear]) -> None:
        from rmbook.triton_merge import MergeLayers

        groups: dict[tuple, list] = {}
        for layer in layers:
            layer.check_weight()
            kind = layer.weight.device, layer.weight.dtype, layer.values.dtype, layer.mask.positions.dtype
            groups.setdefault(kind, []).append(layer)
        for kind, group in groups.items():
            deltas = [self._delta(layer) for layer in group]
            self._together.setdefault(kind, MergeLayers())(
                [(m.weight, m.merged, s, m.original, m.mask.positions) for m, s in zip(group, deltas, strict=True)]
            )
            for layer in group:
                layer.writes += 1

    def _delta(self, layer: MaskedLinear) -> torch.Tensor:
        # In memory of its own where it is not the values themselves: a table of addresses is kept.
        if layer.scale == 1:
            return layer.values
        kept = self._scaled.get(layer)
        if kept is None or (kept.dtype, kept.device) != (layer.values.dtype, layer.values.device):
            kept = self._scaled[layer] = torch.empty_like(layer.values)
        return torch.mul(layer.values, layer.scale, out=kept)
