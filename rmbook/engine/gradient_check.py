"""The checks that masked layers train: one that does not would stay as it is, and nobody would notice."""

import warnings
import weakref
from collections.abc import Iterable, Mapping
from functools import partial

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from rmbook.engine.layer import MaskedLinear
from rmbook.engine.shards import is_sharded
from rmbook.engine.targets import TargetError

REACTIONS = ("error", "warn")
# One hook on all optimisers for the whole process: torch walks over its hooks while they run, so none may go then.
_PENDING: "weakref.WeakSet[GradientCheck]" = weakref.WeakSet()  # which keeps no model alive
_PENDING_HOOK: list = []


class GradientCheck:
    """Wait for the first backward pass, and then look once which layers it has not reached.

    It looks at the next step of an optimiser of torch, or at the start of the model's next forward pass, not at the end
    of the backward pass: a checkpointed model runs several backward passes inside one another. Until then it costs one
    call of Python a layer and backward pass, afterwards nothing.

    Args:
        layers: masked layers by name; those without an entry to train are not waited for.
        unused: one of REACTIONS, what to do about layers without a gradient.
    """

    def __init__(self, layers: Mapping[str, MaskedLinear], unused: str):
        self._unused, self._began, self._done = unused, False, False
        # Weakly: the values hold this check by their hooks, and the garbage collector does not see through those.
        self._layers = weakref.WeakValueDictionary({name: layer for name, layer in layers.items() if layer.mask.nnz})
        self._waiting = set(self._layers)
        self._hooks = [
            layer.values.register_post_accumulate_grad_hook(partial(self._arrived, name))
            for name, layer in self._layers.items()
        ]
        if not _PENDING_HOOK:
            _PENDING_HOOK.append(register_optimizer_step_pre_hook(_look))
        _PENDING.add(self)

    def __reduce__(self):
        return type(None), ()  # nor has one that was written to a file and read again

    def __deepcopy__(self, memo):
        return None  # a copied model has other values, which have no hooks

    def _arrived(self, name: str, values: torch.Tensor) -> None:
        self._began = True
        if values.grad is not None:  # a compiled graph announces those, too, that it has no gradient for
            self._waiting.discard(name)

    def _masked(self) -> dict[str, MaskedLinear]:
        return {name: layer for name, layer in self._layers.items() if isinstance(layer, MaskedLinear)}

    def finished(self) -> bool:
        """Tell whether there is no more to wait for.

        Raises:
            TargetError: a backward pass has not reached some layers, which are named, and "error" was asked for.
        """
        if self._done:
            return True
        if torch._C._current_graph_task_id() != -1:  # inside a backward pass: a recomputation
            return False
        layers = self._masked()
        for name, layer in layers.items():
            if is_sharded(layer.values) and layer.values.grad is not None:  # FSDP calls no hooks of values it has
                self._arrived(name, layer.values)
        if not self._began:
            return False
        missing = [name for name, layer in layers.items() if name in self._waiting and layer.values.requires_grad]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            message = (
                f"no gradient reached the masked layers {', '.join(missing[:3])}{more} in the first backward pass, so "
                "they do not train: the model reads their weight without calling them, or the loss does not depend on "
                "them. Choose other targets; if other batches may use them, mask with unused='warn'."
            )
            if self._unused == "error":
                raise TargetError(message)
            warnings.warn(message, stacklevel=2)
        self.remove()
        return True

    def remove(self) -> None:
        """Take the hooks off the values, and listen to optimisers no more."""
        self._done = True
        _PENDING.discard(self)
        for hook in self._hooks:
            hook.remove()


def tell_frozen(model: nn.Module, layers: Iterable[nn.Module]) -> bool:
    """Warn if something else in a model trains, and the values of none of its masked layers; tell whether it did."""
    values = [layer.values for layer in layers if isinstance(layer, MaskedLinear) and layer.mask.nnz]
    frozen = model.training and values and not any(one.requires_grad for one in values)
    if not frozen or not any(parameter.requires_grad for parameter in model.parameters()):
        return False
    warnings.warn(
        "the values of this model's random mask do not train: their requires_grad was switched off. peft does so when "
        "it puts LoRA or another of its methods on a masked model. If the mask is to train as well, switch them on "
        "again: for values in masking.parameters(): values.requires_grad_(True).",
        stacklevel=2,
    )
    return True


def _look(optimizer: torch.optim.Optimizer, *_: object) -> None:
    for check in list(_PENDING):
        own = {id(layer.values) for layer in check._masked().values()}
        if any(id(value) in own for group in optimizer.param_groups for value in group["params"]):
            check.finished()
