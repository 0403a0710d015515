"""What `peft` calls to leave W + S in the weight of a layer for a while, or for good; W's entries are kept."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import nn

from rmbook.engine.borrowed import BorrowedMask, add_entries
from rmbook.engine.quantised_product import refuse_merge
from rmbook.engine.shards import is_sharded
from rmbook.engine.tap import write_entries


class MergingLayer(nn.Module, BaseTunerLayer):
    """A layer whose weight holds W between calls, and W + S while adapters are merged."""

    base_layer: Any
    quantised: bool
    rmbook_drawn: Mapping[str, Any]
    merged_adapters: list[str]
    _unmerged: tuple[torch.Tensor, torch.Tensor] | None  # while merged: positions, and W's entries there

    def delta(self, adapter_name: str) -> torch.Tensor:
        """Entries of S of one adapter, (nnz,)."""
        raise NotImplementedError

    def _borrowed(self, names: list[str]) -> BorrowedMask | None:
        raise NotImplementedError

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Leave W + S in the weight, for the adapters named or for the active ones.

        Several are summed in the order of their names, whatever the order of the calls, and rounded once.

        Raises:
            RuntimeError: the weight is sharded or quantised.
            ValueError: `safe_merge`, and the result would not be finite; nothing has changed then.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.rmbook_drawn]
        if not names:
            return
        if self.quantised:
            refuse_merge()
        if is_sharded(self.base_layer.weight):
            raise RuntimeError("FSDP holds the base model: save the adapter, and merge it in one process.")
        before, together = self.merged_adapters, sorted({*self.merged_adapters, *names})
        self._restore()
        weight, borrowed = self.base_layer.weight, self._borrowed(together)
        assert borrowed is not None  # merging is for layers that are loaded
        delta = borrowed.delta([self.delta(name) for name in together])
        positions = borrowed.positions
        self._unmerged = positions, add_entries(weight, positions, delta)
        self.merged_adapters = [*before, *(name for name in names if name not in before)]
        if safe_merge and not weight.data.view(-1)[positions].isfinite().all():
            self._restore()
            self.merged_adapters = []
            if before:
                self.merge(adapter_names=before)
            raise ValueError(f"NaNs detected in the merged weights. The adapter {', '.join(names)} seems to be broken")

    def unmerge(self) -> None:
        """Restore W bit for bit."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
        self._restore()
        self.merged_adapters = []

    def _restore(self) -> None:
        if self._unmerged is not None:
            write_entries(self.base_layer.weight, *self._unmerged)
            self._unmerged = None

    def unload_and_optionally_merge_module(self, merge: bool, safe_merge: bool, adapter_names) -> nn.Module:
        """Return the plain layer: with W + S if `merge`, otherwise with W bit for bit."""
        if merge:
            self.merge(safe_merge=safe_merge, adapter_names=adapter_names)
        else:
            self._restore()
        return self.base_layer
