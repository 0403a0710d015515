"""Random masking of a whole model: choose entries, freeze the rest, hand out the values to train."""

import contextlib
import difflib
from collections.abc import Iterator, Sequence

import pandas as pd
import torch
from torch import nn

from rmbook.layer import MaskedLinear, check_maskable
from rmbook.masks import check_density, check_seed, ratio_to_density, sample_mask


class TargetError(ValueError):
    """The targets name no layer, or a layer that cannot be masked."""


def find_targets(model: nn.Module, targets: Sequence[str] | str) -> dict[str, nn.Module]:
    """Modules whose name is one of `targets` or ends with "." and one of them, in the model's order.

    Raises:
        TargetError: if a target matches nothing; the message lists names that are close.
    """
    targets = [targets] if isinstance(targets, str) else list(targets)
    if not targets or not all(isinstance(target, str) and target for target in targets):
        raise TargetError(f"targets must be module names such as ['q_proj', 'v_proj'], got {targets!r}.")
    modules = {name: module for name, module in model.named_modules() if name}
    for target in targets:
        if not any(_matches(name, target) for name in modules):
            linear = {name for name, module in modules.items() if isinstance(module, nn.Linear)}
            suffixes = {".".join(name.split(".")[-parts:]) for name in linear for parts in (1, 2, 3)}
            close = difflib.get_close_matches(target, sorted(suffixes), n=5, cutoff=0.5)
            known = close or sorted({name.rsplit(".", 1)[-1] for name in linear})[:10]
            raise TargetError(
                f"no layer matches the target {target!r}; {'close names' if close else 'linear layers'}: "
                f"{', '.join(known) or 'none, the model has no linear layer'}."
            )
    return {name: module for name, module in modules.items() if any(_matches(name, target) for target in targets)}


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith("." + target)


def apply_random_mask(
    model: nn.Module,
    targets: Sequence[str] | str,
    *,
    ratio: float | None = None,
    density: float | None = None,
    seed: int = 0,
) -> "RandomMask":
    """Freeze `model` and make a random subset of the entries of some linear layers trainable, in place.

    This is the paper's method (section 3.1): W + S with S zero outside a Bernoulli mask and zero at the start.
    Afterwards the model's only parameters that require a gradient are one vector of values per target layer, so any
    optimiser and any training loop works, `transformers.Trainer` included. On an error the model is unchanged.

    Args:
        model: any `nn.Module` with `nn.Linear` layers.
        targets: names of the linear layers, matched at the end of a module's name: ["q_proj", "v_proj"].
        ratio: wanted trainable entries / all parameters of the model (the paper's "Params"). Give this or density.
        density: probability that an entry of a target matrix is trained. Give this or ratio.
        seed: of the masks; each layer's mask depends on it and on the parameter's name alone.

    Raises:
        TargetError: no layer matches, or a match is not a plain linear layer, shares its weight with another
            parameter (tied weights), is on the meta device or quantised; or the model is masked already.
        ValueError: ratio or density out of range, or both or neither given.
    """
    if (ratio is None) == (density is None):
        raise ValueError(
            f"give either ratio (share of all parameters) or density (probability inside a target matrix), "
            f"got ratio={ratio}, density={density}."
        )
    seed = check_seed(seed)
    layers = find_targets(model, targets)
    for name, layer in layers.items():
        try:
            check_maskable(layer)
        except (TypeError, ValueError) as error:
            raise TargetError(f"cannot mask layer {name!r}: {error}") from None
    earlier = [name for name, module in model.named_modules() if isinstance(module, MaskedLinear)]
    if earlier:  # freezing the rest would silently stop the training of their values
        raise TargetError(
            f"the model is masked already, at {', '.join(earlier[:3])}; remove that mask first (RandomMask.remove), "
            "or name all targets in one call."
        )
    _refuse_tied(model, layers)
    total = sum(parameter.numel() for parameter in model.parameters())
    held = sum(layer.weight.numel() for layer in layers.values())
    density = check_density(density) if ratio is None else ratio_to_density(ratio, total, held)
    # All draws come before the first change: nothing that can fail leaves a half-masked model.
    masks = {
        name: sample_mask(tuple(layer.weight.shape), density, seed, f"{name}.weight") for name, layer in layers.items()
    }
    were_trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)
    masked = {name: MaskedLinear.attach(layer, masks[name]) for name, layer in layers.items()}
    names = (targets,) if isinstance(targets, str) else tuple(targets)
    return RandomMask(model, masked, names, density, seed, were_trainable)


def _refuse_tied(model: nn.Module, layers: dict[str, nn.Module]) -> None:
    # Memory ranges, not storages: tensors of one memory-mapped checkpoint share a storage without overlapping.
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    spans = [(t.device, t.data_ptr(), t.data_ptr() + t.numel() * t.element_size(), n) for n, t in tensors if t.numel()]
    for name, layer in layers.items():
        weight = layer.weight
        start, end = weight.data_ptr(), weight.data_ptr() + weight.numel() * weight.element_size()
        sharing = [n for device, first, last, n in spans if device == weight.device and first < end and start < last]
        if len(sharing) > 1:
            raise TargetError(
                f"the weight of {name!r} is tied: {', '.join(sharing)} share its memory, and merging the mask into one "
                "would change the others. Untie them (give the layer a copy of the weight) or choose other targets."
            )


class RandomMask:
    """A model under a random mask: what `apply_random_mask` returns.

    Attributes:
        model: the model, changed in place.
        layers: masked layers by module name.
        targets: the target names.
        density: Bernoulli probability inside the target matrices.
        seed: of the masks.
    """

    def __init__(self, model, layers, targets, density, seed, were_trainable):
        self.model: nn.Module = model
        self.layers: dict[str, MaskedLinear] = layers
        self.targets: tuple[str, ...] = targets
        self.density: float = density
        self.seed: int = seed
        self._were_trainable: list[nn.Parameter] = were_trainable

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The values of each layer, (nnz,), with their names in the model."""
        for name, layer in self.layers.items():
            yield f"{name}.values", layer.values

    def parameters(self) -> Iterator[nn.Parameter]:
        """What to give to an optimiser: the values of each layer, (nnz,)."""
        return (values for _, values in self.named_parameters())

    @property
    def trainable(self) -> int:
        """Number of entries that are trained."""
        return sum(layer.mask.nnz for layer in self.layers.values())

    @property
    def total(self) -> int:
        """Number of parameters of the base model, tied ones counted once."""
        return sum(parameter.numel() for parameter in self.model.parameters()) - self.trainable

    @property
    def ratio(self) -> float:
        """Trained entries / all parameters of the base model."""
        return self.trainable / self.total

    def table(self) -> pd.DataFrame:
        """What is trained, one row a layer: shape, entries, trained entries, their share."""
        rows = [
            {
                "layer": name,
                "shape": layer.mask.shape,
                "entries": layer.mask.numel,
                "trained": layer.mask.nnz,
                "share": layer.mask.nnz / layer.mask.numel,
            }
            for name, layer in self.layers.items()
        ]
        return pd.DataFrame(rows).set_index("layer")

    @torch.no_grad()
    def distance(self) -> float:
        """Distance from the pretrained weights: the Frobenius norm of S over all layers."""
        return sum(float(values.double().square().sum()) for values in self.parameters()) ** 0.5

    @contextlib.contextmanager
    def dense_form(self) -> Iterator[None]:
        """Within this context the layers run as `masked_linear_reference`: slow, and differentiable twice.

        For Hessians and other curvature with respect to the values. Forward and backward pass both belong inside.
        """
        for layer in self.layers.values():
            layer.set_dense_form(True)
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.set_dense_form(False)

    def remove(self) -> nn.Module:
        """Take the mask off: plain linear layers again, original weights bit for bit, `requires_grad` as before."""
        return self._end(MaskedLinear.detach)

    def merge(self) -> nn.Module:
        """Keep the result: plain linear layers again whose weights hold W + S; for inference without rmbook."""
        return self._end(MaskedLinear.bake)

    def _end(self, how) -> nn.Module:
        for layer in self.layers.values():
            how(layer)
        for parameter in self._were_trainable:
            parameter.requires_grad_(True)
        self.layers = {}
        return self.model
