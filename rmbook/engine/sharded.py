"""Masked layers on a base that FSDP2 shards: torch's `fully_shard`, and accelerate's FSDP with version 2.

Each process keeps a shard of W, and FSDP gathers the whole of it for a forward or a backward pass. The layer writes
W + S into what was gathered, in its forward pass and again before its backward pass: shards hold W, always. The values
belong to one of two owners:

- FSDP, where it is given the masked model as it is (accelerate, `transformers.Trainer`): it shards them like any
  parameter, and reduces their gradient.
- nobody, where they are in its `ignored_params` or the mask came after `fully_shard`: every process holds all of
  them, in full precision, and one all-reduce at the end of the backward pass averages their gradients.

Training equals that in one process on the whole batch but for rounding: as with gradient accumulation, the parts of a
batch are summed apart. Two processes have the bits of an accumulation of two parts. In float32 a gradient that is
nearly zero may change by as much as it is, and Adam's quotient then moves its value by another part of the step size.
"""

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from rmbook.engine.backends import choose_backend
from rmbook.engine.shards import (
    check_placements,
    is_sharded,
    read_entries,
    spread,
    whole,
    working_device,
    write_entries,
)
from rmbook.engine.tap import overwrite


@torch.no_grad()
def begin(layer: Any) -> None:
    """Make a masked layer one of a sharded weight, which it has just been given."""
    weight, device = layer.weight, working_device(layer.weight)
    if not isinstance(layer.original, torch.Tensor):
        raise TypeError("FSDP cannot shard a quantised layer that is masked: keep it out by ignored_params.")
    check_placements(weight)
    layer.sharded, layer.resident, layer.mesh = True, False, weight.device_mesh
    layer.merged = layer.merged_into = None  # which would keep the whole weight alive
    layer._set_mask(layer.mask.to(device))
    layer.original = layer.original.to(device)
    if not weight.is_meta:
        write_entries(weight, layer.mask, layer.original)  # shards hold W
    if not (is_sharded(layer.values) or layer.values.is_meta):
        layer.values.data = layer.values.data.to(device)
    if layer.mask.nnz == 0:
        layer.values.requires_grad_(False)  # FSDP cannot reduce an empty gradient
    layer.backend, layer.backend_reason = choose_backend(layer.wanted_backend, weight)
    layer.average = layer.average or GradientAverage(None, [layer])  # None: of a copy, or masked on its own
    if layer.mask.nnz and not is_sharded(layer.values):
        announce(layer, layer.values)


def write_original(layer: Any, original: torch.Tensor | None, was_meta: bool) -> None:
    """Write W's entries, (nnz,), into shards that were just loaded and may hold W + S; then a collective.

    Args:
        layer: the masked layer.
        original: the entries in the state that was loaded; None if it had none.
        was_meta: the shards held no numbers before. accelerate loads them from the first process's state as it was
            before `fully_shard`: its weight is W + S, if values were not zero. The others may have had no base at all.
    """
    if original is None and was_meta:
        original = layer.original.to(layer.mask.positions.device).clone()
        dist.broadcast(original, 0)
        delta, loaded = whole(layer.values.detach()) * layer.scale, read_entries(layer.weight, layer.mask)
        merged = (original.to(torch.promote_types(original.dtype, delta.dtype)) + delta).to(original.dtype)
        original = original if torch.equal(loaded, merged) else None
    if original is not None:
        write_entries(layer.weight, layer.mask, whole(original).to(layer.mask.positions.device))


def write_gathered(layer: Any, weight: torch.Tensor, delta: torch.Tensor) -> None:
    """Make the gathered weight of a layer W + S; raises RuntimeError if it is not gathered."""
    if is_sharded(weight) or weight.untyped_storage().size() == 0:
        raise RuntimeError(
            "the weight of this masked layer is sharded and not gathered: call it through the module that was "
            "given to fully_shard, not on its own."
        )
    overwrite(weight, delta, layer.original, layer.mask.positions)


@torch.no_grad()
def write_sum(layer: Any, weight: torch.Tensor) -> torch.Tensor:
    """Make a sharded weight W + S, and return it; a collective if FSDP has the values."""
    delta = whole(layer.values.detach()).to(layer.original.device) * layer.scale
    wide = torch.promote_types(layer.original.dtype, delta.dtype)
    write_entries(weight, layer.mask, (layer.original.to(wide) + delta).to(layer.original.dtype))
    return weight


def reshard(model: nn.Module) -> None:
    """Drop what FSDP has gathered, which may hold W + S, so that it is gathered again when it is needed."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def spread_state(model: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Shard what is whole in a state that is about to be loaded; a hook, and a collective if there is such a tensor.

    After a forward pass without a backward pass some weights are still gathered. torch's `set_model_state_dict` takes
    them for whole ones, and loads whole tensors (or, for what the state does not have, the weights into themselves).
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    before = dict(model.named_parameters(remove_duplicate=False))
    model.state_dict()  # each weight is a shard then, also those of a module around this model
    for name, parameter in model.named_parameters(remove_duplicate=False):
        given = state_dict.get(prefix + name)
        if is_sharded(parameter) and isinstance(given, torch.Tensor) and not is_sharded(given):
            if given is before[name]:
                del state_dict[prefix + name]
            else:
                state_dict[prefix + name] = spread(given.detach(), parameter)


@contextlib.contextmanager
def writing_once(layers: Iterable[Any]) -> Iterator[bool]:
    """Give True to the process that is to write a file about these layers; all leave when it has done so.

    That is each process where nothing is sharded, and the first one where a layer is.
    """
    sharded = any(layer.sharded for layer in layers)
    try:
        yield not sharded or dist.get_rank() == 0
    finally:
        if sharded:
            dist.barrier()


def announce(layer: Any, values: torch.Tensor) -> None:
    """Have `layer.average` told whenever values get a gradient, unless it is; those that FSDP takes get none here."""
    if any(getattr(hook, "announces", False) for hook in (values._post_accumulate_grad_hooks or {}).values()):
        return
    found: Callable[[], Any] = weakref.ref(layer)  # the garbage collector does not see through hooks

    def arrived(_: torch.Tensor) -> None:
        if (owner := found()) is not None and owner.average is not None:
            owner.average.arrived()

    arrived.announces = True  # type: ignore[attr-defined]
    trained = values.requires_grad
    values.requires_grad_(True).register_post_accumulate_grad_hook(arrived)  # torch wants it so
    values.requires_grad_(trained)


def own_values(layer: Any) -> tuple[Any, Iterable[torch.Tensor]]:
    """Return the mesh of a masked layer's weight, None if it is not sharded, and the layer's values."""
    return layer.mesh, [layer.values]


class GradientAverage:
    """The average over all processes of the gradients of values that FSDP does not have.

    One all-reduce for all layers at the end of each backward pass. While FSDP does not reduce gradients either
    (`set_requires_gradient_sync(False)`, accelerate's `no_sync` and `accumulate`), there is none.

    Args:
        model: FSDP's; None if it is not known: then there is no waiting for FSDP.
        layers: its masked layers, to which more may be added.
        values_of: what `own_values` is for `MaskedLinear`.
    """

    def __init__(self, model: nn.Module | None, layers: list, values_of: Callable = own_values):
        self._model, self.layers, self._values_of = model, layers, values_of
        self._task, self._mesh = -1, None

    def __deepcopy__(self, memo):
        return None  # whoever copies one layer does not mean the model

    def __reduce__(self):
        return type(None), ()

    def arrived(self) -> None:
        """Take note that one of the values has got its gradient: the backward pass has begun."""
        task = torch._C._current_graph_task_id()  # not a flag: a backward pass that fails calls nothing back
        if task != self._task and dist.is_available() and dist.is_initialized():
            self._task = task
            torch.autograd.Variable._execution_engine.queue_callback(self._average)

    def _wanted(self) -> bool:
        # FSDP has no public way to ask. Where this way is gone, averages of averages are right, too, and cost more.
        for module in self._model.modules() if self._model is not None else ():
            state = getattr(module, "_get_fsdp_state", None)
            groups: Any = getattr(state and state(), "_fsdp_param_groups", None)
            if groups or (groups := [getattr(state and state(), "_fsdp_param_group", None)])[0]:
                return groups[0].reduce_grads
        return True

    @torch.no_grad()
    def _average(self) -> None:
        found = [self._values_of(layer) for layer in self.layers]
        mesh = self._mesh = next((mesh for mesh, _ in found if mesh is not None), self._mesh)
        values = [v for _, own in found for v in own if v.requires_grad and v.numel() and not is_sharded(v)]
        if mesh is None or not values or not self._wanted():
            return
        flat = torch.cat([v.new_zeros(v.numel()) if v.grad is None else v.grad for v in values])
        for number in range(mesh.ndim):
            dist.all_reduce(flat, group=mesh.get_group(number))
        flat /= mesh.size()
        for v, part in zip(values, flat.split([v.numel() for v in values]), strict=True):
            v.grad = part.to(v.dtype, copy=True)
