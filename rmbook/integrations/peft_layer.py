"""A linear layer with the masks of any number of adapters, as `peft` wants its layers.

The base layer's weight is W whenever nobody computes with it (`rmbook.engine.borrowed`), so `state_dict`, `deepcopy`,
`.to`, `disable_adapter`, `unload`, tied weights and sharding need nothing special. While adapters are merged the weight
is W + S, and W's entries are kept.
"""

import math
from dataclasses import replace

import torch
from peft.tuners._buffer_dict import BufferDict
from torch import nn
from transformers.pytorch_utils import Conv1D

from rmbook.engine.backends import choose_backend
from rmbook.engine.borrowed import BorrowedMask, masked_linear
from rmbook.engine.dequantise import quantisation
from rmbook.engine.quantised_product import quantised_linear
from rmbook.engine.sharded import GradientAverage
from rmbook.engine.shards import is_sharded
from rmbook.engine.tap import outside_graphs
from rmbook.integrations.peft_checks import (
    DIGEST_BYTES,
    KEPT,
    check_loaded,
    digest,
    entries_of,
    fill_in,
    leave_out,
    matrix_shape,
)
from rmbook.integrations.peft_merging import MergingLayer
from rmbook.integrations.peft_shards import average_gradients, check_gathered
from rmbook.integrations.peft_values import Drawn, Values


class RandomMaskLinear(MergingLayer):
    """y = x (W + sum over the active adapters of strength * scale * values)^T + b.

    By "Linear" in its name peft sees that "all-linear" of a further adapter means it, too.

    Args:
        base_layer: `nn.Linear`, also a quantised one, or GPT-2's `Conv1D`.
        name: of the layer in its model, for messages.

    Attributes:
        rmbook_values: of each adapter, `Values` whose weight (nnz,) is float32, or float64 for a float64 weight.
        rmbook_digest: (64,) bytes of each adapter, saved with it: SHA-256 of the positions, then of W there.
        rmbook_positions: (nnz,) positions once more, of adapters that save them.
        rmbook_drawn: what is drawn again when an adapter is loaded.
        rmbook_strength: of each adapter; 1 until `set_scale` changes it.
    """

    adapter_layer_names = ("rmbook_values",)
    other_param_names = ("rmbook_drawn", "rmbook_strength", "rmbook_digest", "rmbook_positions")

    def __init__(self, base_layer: nn.Module, name: str):
        super().__init__()
        self.base_layer, self.name = base_layer, name
        self.transposed, self.quantised = isinstance(base_layer, Conv1D), quantisation(base_layer) is not None
        self.out_features, self.in_features = matrix_shape(base_layer)
        self.rmbook_values = nn.ModuleDict()
        self.rmbook_digest, self.rmbook_positions = BufferDict(persistent=True), BufferDict(persistent=True)
        self.rmbook_drawn: dict[str, Drawn] = {}
        self.rmbook_strength: dict[str, float] = {}
        self._checked: dict[str, torch.Tensor] = {}  # digests that were compared; loading replaces a buffer or fills it
        self._together: BorrowedMask | None = None  # of the active adapters
        self._names: list[str] = []  # theirs, sorted
        self.frozen_peft_weight_names = {}
        self.average: GradientAverage | None = None
        self._unmerged = None
        self._disable_adapters, self.merged_adapters, self._active_adapter = False, [], []
        self.register_load_state_dict_pre_hook(fill_in)
        self.register_load_state_dict_post_hook(_check_loaded)
        self.register_state_dict_post_hook(leave_out)

    def add(self, adapter_name: str, drawn: Drawn, values: torch.Tensor, store_positions: bool, frozen: bool) -> None:
        """Give the layer one more adapter, with values (nnz,) to begin with."""
        weight = self.base_layer.weight
        choose_backend(drawn.backend, weight)
        self.rmbook_digest[adapter_name] = torch.zeros(DIGEST_BYTES, dtype=torch.uint8, device=weight.device)
        if store_positions:
            self.rmbook_positions[adapter_name] = drawn.mask.positions.to(weight.device)
        self.rmbook_strength[adapter_name] = 1.0
        self.set_mask(adapter_name, drawn, values)
        self.set_adapter(self.active_adapters or [adapter_name], inference_mode=frozen)

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        weight = self.base_layer.weight
        if self._shares(weight):  # of a process that got the model through torch.multiprocessing; tied weights stay so
            weight.data = weight.data.clone()
        average_gradients(self)  # a copied parameter has no hooks

    def set_mask(self, adapter_name: str, drawn: Drawn, values: torch.Tensor) -> None:
        """Set what an adapter has in this layer: where, and which values (nnz,)."""
        device = self.base_layer.weight.device
        self.rmbook_drawn[adapter_name] = replace(drawn, mask=drawn.mask.to(device))
        self.rmbook_values[adapter_name] = Values(values.to(device))
        # FSDP cannot reduce an empty gradient.
        self.frozen_peft_weight_names[adapter_name] = () if drawn.mask.nnz else ("rmbook_values",)
        entries = None if self.merged else entries_of(self.base_layer, drawn.mask)
        self.rmbook_digest[adapter_name].copy_(digest(drawn.mask, entries))
        self._checked[adapter_name] = self.rmbook_digest[adapter_name]

    def forward(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        """y = x (W + S)^T + b; (..., in) to (..., out)."""
        if self._disable_adapters and self.merged_adapters:
            self.unmerge()
        if self._disable_adapters or self.merged_adapters or self._together is None:
            return self.base_layer(x, *args, **kwargs)
        if not torch.compiler.is_compiling():
            check_gathered(self.base_layer.weight)
        for name in () if getattr(self, "_is_replica", False) else self._names:  # nn.DataParallel copies buffers
            if self.rmbook_digest[name] is not self._checked[name]:
                self.check(name)  # transformers puts tensors in their places without any call to the layer
        if self._together.positions.device != x.device:  # FSDP moves weights past the layer
            self._move_masks(x.device)
        delta = self._together.delta([self.delta(name) for name in self._names])
        product = quantised_linear if self.quantised else masked_linear
        return product(x, self.base_layer, delta, self._together)

    def delta(self, adapter_name: str) -> torch.Tensor:
        """Entries of S of one adapter, (nnz,)."""
        values, scale = self.rmbook_values[adapter_name].weight, self.rmbook_drawn[adapter_name].scale
        values, strength = values if scale == 1 else scale * values, self.rmbook_strength[adapter_name]
        return values if strength == 1 else strength * values

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """Return S as a dense matrix of the base weight's shape: for inspection, it costs O(out * in)."""
        mask, delta = self.rmbook_drawn[adapter].mask, self.delta(adapter)
        dense = delta.new_zeros(mask.numel).index_put((mask.positions.long(),), delta).view(mask.shape)
        return dense.t() if self.transposed else dense

    # -- switches --

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Make these adapters active and, unless `inference_mode`, trainable; others are neither."""
        super().set_adapter(adapter_names, inference_mode=inference_mode)
        self._plan()

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget an adapter; see `BaseTunerLayer.delete_adapter` for which one is active then."""
        if adapter_name in self.merged_adapters:
            self.unmerge()
        super().delete_adapter(adapter_name)
        self._checked.pop(adapter_name, None)
        self._plan()

    def set_scale(self, adapter: str, scale: float) -> None:
        """Set the strength of an adapter, as peft's other layers name it; for adapters that are not merged."""
        if not math.isfinite(scale):
            raise ValueError(f"the strength of an adapter must be finite, got {scale}.")
        if adapter in self.rmbook_strength:
            self.rmbook_strength[adapter] = float(scale)

    def train(self, mode: bool = True) -> "RandomMaskLinear":
        """Set the mode; on a quantised base, also make float32 again of values that trl has cast to bfloat16."""
        for values in self.rmbook_values.parameters() if self.quantised else ():  # small steps would be rounded away
            values.data = values.data.to(torch.promote_types(values.dtype, torch.float32))
        return super().train(mode)

    def _plan(self) -> None:
        self._names = sorted(name for name in self.active_adapters if name in self.rmbook_drawn)
        self._together = self._borrowed(self._names)
        average_gradients(self)

    def _borrowed(self, names: list[str]) -> BorrowedMask | None:
        weight, drawn = self.base_layer.weight, [self.rmbook_drawn[name] for name in names]
        if not drawn or weight.is_meta:
            return None
        with torch.inference_mode(False), torch.no_grad():  # tensors made in inference mode cannot be trained with
            masks = [each.mask for each in drawn]
            return BorrowedMask(masks, self.transposed, choose_backend(drawn[0].backend, weight)[0])

    # -- what moves, casts and loads --

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # peft also casts to the base layer's dtype here: bfloat16 would lose what was trained.
        device, own = device or self.base_layer.weight.device, self.rmbook_values
        if adapter_name in own and device not in (own[adapter_name].weight.device, torch.device("meta")):
            values = own[adapter_name].weight
            if not values.is_meta:
                own[adapter_name].weight = nn.Parameter(values.data.to(device), values.requires_grad)

    def _apply(self, fn, recurse=True):
        # Casts W. Values are moved, and cast to a higher precision only. What no state holds stays off the meta device.
        checked = [name for name in self._checked if self._checked[name] is self.rmbook_digest[name]]
        kept = {name: self._modules.pop(name) for name in ("rmbook_values", *KEPT)}
        try:
            super()._apply(fn, recurse)
        finally:
            self._modules.update(kept)
        if not self.base_layer.weight.is_meta:
            [kept[name]._apply(fn) for name in KEPT]

        def keep(tensor):
            moved = fn(tensor)
            return tensor.to(moved.device, torch.promote_types(tensor.dtype, moved.dtype), copy=moved is not tensor)

        self.rmbook_values._apply(keep)
        weight = self.base_layer.weight
        if self._shares(weight):
            raise RuntimeError(
                "a layer with a random mask writes to its weight while it computes, so processes cannot share the "
                "weight's memory (share_memory): merge the adapter first (merge_and_unload)."
            )
        if not weight.is_meta:
            self._move_masks(weight.device)
            if self._unmerged is not None:
                positions, original = self._unmerged
                self._unmerged = positions.to(weight.device), original.to(weight.device, weight.dtype)
        self._checked |= {name: self.rmbook_digest[name] for name in checked}
        self._plan()
        return self

    def _shares(self, weight: torch.Tensor) -> bool:
        return not self.quantised and weight.is_cpu and weight.is_shared()

    def _move_masks(self, device: torch.device) -> None:
        for values in self.rmbook_values.parameters():
            if values.device != device and not (is_sharded(values) or values.is_meta):
                values.data = values.data.to(device)  # they may be in FSDP's ignored_params
        moved = {name: replace(drawn, mask=drawn.mask.to(device)) for name, drawn in self.rmbook_drawn.items()}
        self.rmbook_drawn = moved  # a new one: replicas on other devices share the old one
        self._plan()

    @outside_graphs  # a whole graph (fullgraph=True) needs the model to be called once uncompiled
    def check(self, adapter_name: str) -> None:
        """Compare what was loaded with what was drawn here; see `rmbook.integrations.peft_checks.check_loaded`."""
        positions = self.rmbook_positions[adapter_name] if adapter_name in self.rmbook_positions else None
        drawn = self.rmbook_drawn[adapter_name]
        mask = check_loaded(self, adapter_name, drawn.mask, positions)
        if mask is not drawn.mask:
            self.rmbook_drawn[adapter_name] = replace(drawn, mask=mask.to(self.base_layer.weight.device))
            self._plan()
        average_gradients(self)
        self._checked[adapter_name] = self.rmbook_digest[adapter_name]

    def __repr__(self) -> str:
        return f"rmbook.{super().__repr__()}"


def _check_loaded(layer: RandomMaskLinear, incompatible_keys) -> None:
    for name in layer.rmbook_drawn:
        layer.check(name)
    layer._plan()  # there is none for weights on the meta device
