"""The loss as a function of what is trained: its value, its gradient and its Hessian-vector product.

A point is one flat vector of all the trainable entries, so that full fine-tuning, LoRA and random masks are all the
same to these tools. The model is called with the point's numbers in place of its own and is never changed.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from rmbook.checks import check_seed, check_size
from rmbook.engine.layer import MaskedLinear
from rmbook.training.objectives import Classification, Objective


class Landscape:
    """The mean loss over a data set as a function of the trainable entries of a model, in evaluation mode.

    The mean is the one that `rmbook.train` minimises: the sum of the examples' losses over the sum of their weights.
    AdaLoRA's penalty is not part of it. Batches are taken one after the other, so that memory does not grow with the
    data; `batch_size` changes rounding and memory alone.

    Attributes:
        size: number of trainable entries, n.
        dtype: of all vectors: float64 if asked for or if a trainable parameter has it, else float32.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Sequence,
        objective: Objective | None = None,
        *,
        batch_size: int = 64,
        double: bool = False,
    ):
        """Look at `model`; the parameters that require a gradient now are the point's entries.

        Args:
            model: under any method. Later changes of its trained values are seen.
            data: map-style data set.
            objective: what is minimised; `Classification()` if None.
            batch_size: examples in memory at once.
            double: compute in float64, with a copy of the model. Frozen weights are copied now. Language models of
                `transformers` still take their own loss from float32 logits.

        Raises:
            ValueError: nothing is trainable, the data set is empty or of zero weight, or the batch size is no size.
        """
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.model, self.names = model, tuple(parameters)
        self.size = sum(parameter.numel() for parameter in parameters.values())
        if self.size == 0:
            raise ValueError("the model has no trainable entries: apply a method first, or raise its density or ratio.")
        self.data, self.batch_size = data, check_size(batch_size, "batch_size")
        self.objective = objective or Classification()
        self.weight = sum(self.objective.weight(batch) for batch in self._batches())
        if not self.weight > 0:
            raise ValueError(f"the data set has {len(data)} examples of weight {self.weight:g}; give some that count.")
        self.double, wide = double, double or any(parameter.dtype == torch.float64 for parameter in parameters.values())
        self.dtype = torch.float64 if wide else torch.float32
        self.device = next(iter(parameters.values())).device
        self._call = _Call(_in_double(model) if double else model, self.objective)

    def point(self, state: Mapping[str, torch.Tensor] | None = None) -> torch.Tensor:
        """The trainable entries as one vector, (n,): the model's own, or those that a state holds under their names.

        Args:
            state: such as `AppliedMethod.state()` or `model.state_dict()`; what is not trainable in it is ignored.

        Raises:
            ValueError: a name is missing in the state, or a shape differs.
        """
        own = dict(self.model.named_parameters())
        state = own if state is None else state
        wrong = [name for name in self.names if name not in state or state[name].shape != own[name].shape]
        if wrong:
            raise ValueError(
                f"the state lacks {wrong[0]!r}, or has it in another shape than {tuple(own[wrong[0]].shape)}; "
                "give a state of the same method on the same model."
            )
        return torch.cat([state[name].detach().reshape(-1).to(self.device, self.dtype) for name in self.names])

    def random_vector(self, seed: int) -> torch.Tensor:
        """Standard normal numbers, (n,), that depend on the seed alone, not on the device."""
        generator = torch.Generator().manual_seed(check_seed(seed) % 2**63)
        return torch.randn(self.size, generator=generator, dtype=torch.float64).to(self.device, self.dtype)

    def loss(self, point: torch.Tensor | None = None) -> float:
        """The mean loss at a point (n,), the model's own if None."""
        point = self._checked(point)
        with undisturbed(self._call), torch.no_grad():
            return sum(self._batch_loss(point, batch).item() for batch in self._batches())

    def gradient(self, point: torch.Tensor | None = None) -> torch.Tensor:
        """The gradient of the mean loss at a point, (n,)."""
        return self._sum(self._batch_gradient, self._checked(point), twice=False)

    def hessian_product(self, vector: torch.Tensor, point: torch.Tensor | None = None) -> torch.Tensor:
        """The Hessian at a point times a vector, both (n,), by differentiating twice; some 3 to 5 gradients' time.

        Masked layers run in their dense form, and attention in the form that has a second derivative. A ReLU's kink
        has none: what the loss bends there is not in the Hessian, so differences of gradients show more than it does.
        """
        vector = self._checked(vector)
        return self._sum(lambda p, batch: self._batch_product(p, vector, batch), self._checked(point), twice=True)

    def _batches(self) -> Iterator[list]:
        for start in range(0, len(self.data), self.batch_size):
            yield [self.data[place] for place in range(start, min(start + self.batch_size, len(self.data)))]

    def _sum(self, of_batch: Callable, point: torch.Tensor, twice: bool) -> torch.Tensor:
        total = torch.zeros_like(point)
        with undisturbed(self._call, twice), torch.enable_grad():
            for batch in self._batches():
                total += of_batch(point.requires_grad_(), batch)  # a function of its own, so that no graph outlives it
        return total

    def _batch_loss(self, point, batch) -> torch.Tensor:
        own, values, start = dict(self.model.named_parameters()), {}, 0
        for name in self.names:
            like = own[name]
            piece = point[start : start + like.numel()].view(like.shape)
            values[f"model.{name}"] = piece.to(like.device, torch.float64 if self.double else like.dtype)
            start += like.numel()
        return torch.func.functional_call(self._call, values, (batch,)).to(self.dtype) / self.weight

    def _batch_gradient(self, point, batch, create_graph=False) -> torch.Tensor:
        loss = self._batch_loss(point, batch)
        if not loss.requires_grad:
            raise ValueError(
                "the objective's loss does not depend on the trainable parameters, or was cut off from them "
                "(no_grad, detach, item); return a scalar tensor that can be differentiated."
            )
        return torch.autograd.grad(loss, point, create_graph=create_graph)[0]

    def _batch_product(self, point, vector, batch) -> torch.Tensor:
        gradient = self._batch_gradient(point, batch, create_graph=True)
        if not gradient.requires_grad:  # the loss is linear
            return torch.zeros_like(vector)
        return torch.autograd.grad(gradient @ vector, point, materialize_grads=True)[0]

    def _checked(self, vector: torch.Tensor | None) -> torch.Tensor:
        if vector is None:
            return self.point()
        if not isinstance(vector, torch.Tensor) or vector.shape != (self.size,):
            got = tuple(vector.shape) if isinstance(vector, torch.Tensor) else type(vector).__name__
            raise ValueError(
                f"expected a tensor of shape ({self.size},), one number for each trainable entry, got {got}; "
                "Landscape.point makes one from a state."
            )
        return vector.detach().to(self.device, self.dtype, copy=True)


@contextlib.contextmanager
def undisturbed(model: nn.Module, twice: bool = False) -> Iterator[None]:
    """Keep a model in evaluation mode within this context, and open to calls with other values; then it is as before.

    Args:
        model: any; its masked layers are found.
        twice: make it differentiable twice.
    """
    modules = list(model.modules())
    modes = [module.training for module in modules]
    masked = [(m, m.resident and m.merged.clone()) for m in modules if isinstance(m, MaskedLinear) and not m.dense_form]
    try:
        for module, _ in masked if twice else ():
            module.set_dense_form(True)
        for module in modules:
            module.training = False  # not .eval(), which merges the values of masked layers
        with sdpa_kernel(SDPBackend.MATH) if twice else contextlib.nullcontext():
            yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        for layer, merged in masked:
            if twice:
                layer.set_dense_form(False)
            if layer.resident:
                layer._merge(merged)  # the same bits in the weight as before


class _Call(nn.Module):
    """The objective as a module, so that `functional_call` can give the model other values."""

    def __init__(self, model, objective):
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, examples):
        return self.objective.loss(self.model, examples)


def _in_double(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model).double()

    def widen(module, args, kwargs):
        def wide(x):
            return x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x

        return tuple(map(wide, args)), {name: wide(value) for name, value in kwargs.items()}

    model.register_forward_pre_hook(widen, with_kwargs=True)
    return model
