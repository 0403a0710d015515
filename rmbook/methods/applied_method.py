"""A method on a model: the trained parameters, their state, and the way back."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from rmbook.engine.dequantise import count_parameters
from rmbook.engine.masking import RandomMask
from rmbook.engine.shards import spread, whole
from rmbook.methods.adalora import AdaLora
from rmbook.methods.settings import MethodError


class AppliedMethod:
    """A model under a method: what `apply_method` returns.

    Attributes:
        model: the model, changed in place.
        name: of the method.
        settings: all of them, defaults included.
        total: number of parameters of the model before, tied ones counted once.
        mask: the `RandomMask` of the masking methods, else None.
        budget: the `AdaLora` of that method, else None.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str,
        settings: dict[str, Any],
        base: Sequence[nn.Parameter],
        undo: Callable[[], object] | None,
        mask: RandomMask | None = None,
        budget: AdaLora | None = None,
    ) -> None:
        self.model, self.name, self.settings = model, name, settings
        self.total = count_parameters(model, base)
        self.mask, self.budget, self._undo = mask, budget, undo
        known = {id(parameter) for parameter in base}
        # The model's own parameters that will be overwritten: few, except in full fine-tuning, which keeps no copy.
        self._before = {n: p.detach().clone() for n, p in self.named_parameters() if undo and id(p) in known}

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The trained parameters with their names in the model."""
        return ((name, parameter) for name, parameter in self.model.named_parameters() if parameter.requires_grad)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Parameters to give to an optimiser."""
        return (parameter for _, parameter in self.named_parameters())

    @property
    def trainable(self) -> int:
        """Number of trained entries."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def ratio(self) -> float:
        """Trained entries / all parameters of the model before: the paper's "Params"."""
        return self.trainable / self.total

    @property
    def distance(self) -> float | None:
        """How far a mask has moved the weights, in l2 norm (figure 4c of the paper); None for other methods."""
        return None if self.mask is None else self.mask.distance()

    def penalty(self) -> torch.Tensor | float:
        """Return what the method adds to the loss: AdaLoRA's orthogonality penalty, a scalar; 0.0 for all others."""
        return self.budget.penalty() if self.budget else 0.0

    def after_step(self, step: int) -> None:
        """Do what follows each `optimizer.step()`, before `zero_grad()`; only AdaLoRA does something.

        Args:
            step: optimiser steps taken so far, this one included.
        """
        if self.budget:
            self.budget.after_step(step)

    def state(self) -> dict[str, torch.Tensor]:
        """Copies on the CPU of all that training changes, by name: for the best epoch, for files, to go on later."""
        state = {name: whole(p.detach()).to("cpu", copy=True) for name, p in self.named_parameters()}
        return state | ({f"adalora:{n}": t for n, t in self.budget.state().items()} if self.budget else {})

    @torch.no_grad()
    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Take up what `state` gave for the same method on the same model; on an error nothing is changed.

        Raises:
            MethodError: a name is missing or unknown, or a shape differs.
        """
        own = dict(self.named_parameters())
        extra = {n.removeprefix("adalora:"): t for n, t in state.items() if n.startswith("adalora:")}
        values = {n: t for n, t in state.items() if not n.startswith("adalora:")}
        wrong = sorted(own.keys() ^ values.keys()) or [n for n in own if own[n].shape != values[n].shape]
        if wrong:
            raise MethodError(
                f"the state does not belong to {self.name} on this model: names or shapes differ, at "
                f"{', '.join(wrong[:3])}{' and others' if len(wrong) > 3 else ''}; give the same settings and model."
            )
        for name, parameter in own.items():
            parameter.copy_(spread(values[name], parameter))
        if self.budget:
            self.budget.load_state(extra)

    @torch.no_grad()
    def remove(self) -> nn.Module:
        """Undo the method: the model's own parameters bit for bit, `requires_grad` as before.

        Raises:
            MethodError: after full fine-tuning, which keeps no copy of the weights that it changes; or twice.
        """
        if self._undo is None:
            raise MethodError(f"{self.name} cannot be undone (full fine-tuning, or removed already): reload the model.")
        self._undo()
        own = dict(self.model.named_parameters())
        for name, value in self._before.items():
            own[name].copy_(value)
        for name, flag in self.model._rmbook_method.items():
            own[name].requires_grad_(flag)
        del self.model._rmbook_method
        self._undo, self.mask, self.budget = None, None, None
        return self.model
