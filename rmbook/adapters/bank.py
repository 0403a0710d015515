"""Several adapters on one model: switch between them, or combine them, at a cost that does not depend on its size."""

import contextlib
import os
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from rmbook.adapters.adapter_file import read_adapter
from rmbook.adapters.base import base_fingerprint
from rmbook.engine.buffers import BufferSnapshot, write_buffers
from rmbook.engine.dequantise import quantisation
from rmbook.engine.shards import is_sharded
from rmbook.engine.targets import TargetError, check_targets, named_layers


class AdapterBank:
    """Adapters of one base model, of which any may be active; for inference.

    The model stays what it is, a model of plain linear layers: active adapters are added to its weights,

        W + sum over active adapters of strength * S,

    so entries that several adapters train get the sum of their changes. The sum is taken in the order of the adapters'
    names, in float32 (float64 for a float64 weight), and rounded once to W's dtype: it does not depend on the order of
    activation, and one adapter alone gives the weights of `RandomMask.merge` bit for bit. A switch writes the entries
    of the old and the new adapters and no others, and `activate()` restores W bit for bit.

    Args:
        model: the base model, without a mask. Do not change its weights while adapters are active.
    """

    def __init__(self, model: nn.Module):
        check_targets(model, {})
        self.model = model
        self.active: dict[str, float] = {}
        self._fingerprint = base_fingerprint(model)
        self._modules = named_layers(model)
        self._base_buffers = BufferSnapshot(model)
        self._buffers: dict[str, dict[str, torch.Tensor]] = {}  # adapter: buffers that training changed
        self._entries: dict[str, dict[str, tuple[torch.Tensor, torch.Tensor]]] = {}  # adapter: layer: positions, values
        self._originals: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # of what is active: layer: positions, W

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the adapters that were added."""
        return tuple(self._entries)

    def add(self, name: str, path: str | os.PathLike[str]) -> None:
        """Read an adapter file and keep it, inactive, under a name.

        Raises:
            ValueError: the name is taken.
            FileNotFoundError, AdapterError: as for `rmbook.adapters.adapter_file.read_adapter`;
                AdapterCorruptError for layers, shapes or values that do not fit the model, AdapterBaseError for
                another base.
            TargetError: one of its layers is no plain linear layer, is tied, quantised or sharded.
        """
        if name in self._entries:
            raise ValueError(f"there is an adapter {name!r} already; remove it first, or choose another name.")
        with self._inactive():  # the file is checked against W, not against what is active on it
            adapter = read_adapter(path, self.model, self._fingerprint)
        for layer in adapter.masks:
            if quantisation(self._modules[layer]) or is_sharded(self._modules[layer].weight):
                raise TargetError(
                    f"a bank writes into plain weights, and that of {layer!r} is quantised or sharded: use "
                    "load_adapter there."
                )
        self._buffers[name] = adapter.buffers
        self._entries[name] = {}
        for layer, mask in adapter.masks.items():
            weight = self._modules[layer].weight
            wide = torch.promote_types(weight.dtype, torch.float32)
            values = adapter.scale * adapter.values[layer].to(weight.device, wide)
            self._entries[name][layer] = mask.positions.to(weight.device, torch.int64), values

    def remove(self, name: str) -> None:
        """Forget an adapter; it must not be active."""
        self._check([name])
        if name in self.active:
            raise ValueError(f"the adapter {name!r} is active; activate others first.")
        del self._entries[name], self._buffers[name]

    @torch.no_grad()
    def activate(self, *names: str, strengths: Mapping[str, float] | None = None) -> None:
        """Make exactly these adapters active; none restores the base model.

        Args:
            names: of adapters; their order does not matter.
            strengths: by which an adapter's changes are multiplied; 1 for those not named.

        Raises:
            KeyError: an unknown name; nothing has changed then.
            ValueError: a strength that is not finite, sums that are not, or several adapters with running statistics of
                norm layers; nothing has changed then.
        """
        strengths = dict(strengths or {})
        self._check([*names, *strengths])
        if not all(abs(float(strength)) < float("inf") for strength in strengths.values()):
            raise ValueError(f"strengths must be finite, got {strengths}.")
        wanted, before = {name: float(strengths.get(name, 1.0)) for name in sorted(set(names))}, self.active
        if len(trained := [name for name in wanted if self._buffers[name]]) > 1:
            raise ValueError(
                f"{', '.join(map(repr, trained))} each bring running statistics of norm layers, which do not add up; "
                "activate one of them at a time."
            )
        try:
            self._write(wanted)
        except ValueError:
            self._write(before)
            raise

    def _write(self, wanted: dict[str, float]) -> None:
        for layer, (positions, original) in self._originals.items():
            self._modules[layer].weight.data.view(-1).index_copy_(0, positions, original)
        self._base_buffers.restore()
        self._originals, self.active = {}, wanted
        for layer in dict.fromkeys(layer for name in wanted for layer in self._entries[name]):
            parts = [(*self._entries[name][layer], wanted[name]) for name in wanted if layer in self._entries[name]]
            weight = self._modules[layer].weight.data.view(-1)
            positions, places = torch.unique(torch.cat([part[0] for part in parts]), return_inverse=True)
            change = parts[0][1].new_zeros(len(positions))
            for part_places, (_, values, strength) in zip(places.split([len(p[0]) for p in parts]), parts, strict=True):
                change[part_places] += values * strength  # an adapter has each position once
            original = weight.index_select(0, positions)
            changed = (original.to(change.dtype) + change).to(weight.dtype)
            if not (changed.isfinite() | ~original.isfinite()).all():
                raise ValueError(f"these strengths make weights of {layer!r} infinite; nothing was changed.")
            self._originals[layer] = positions, original
            weight.index_copy_(0, positions, changed)
        for name in wanted:
            write_buffers(self.model, self._buffers[name])

    @contextlib.contextmanager
    def _inactive(self) -> Iterator[None]:
        active = self.active
        with torch.no_grad():
            self._write({})
            try:
                yield
            finally:
                self._write(active)

    def _check(self, names: list[str]) -> None:
        if unknown := [name for name in names if name not in self._entries]:
            raise KeyError(
                f"no adapter {', '.join(map(repr, unknown))}; there are {', '.join(self._entries) or 'none'}."
            )
