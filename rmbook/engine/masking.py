"""Random masking of a whole model: choose entries, freeze the rest, hand out the values to train."""

import contextlib
import math
from collections.abc import Iterator, Sequence

import pandas as pd
import torch
from torch import nn

from rmbook.checks import check_density, check_seed, scale_factor
from rmbook.engine.backends import choose_backend, explain_way
from rmbook.engine.buffers import BufferSnapshot
from rmbook.engine.dequantise import count_parameters, weight_shape
from rmbook.engine.gradient_check import REACTIONS, GradientCheck
from rmbook.engine.layer import MaskedLinear
from rmbook.engine.merge import Refresh
from rmbook.engine.quantised import masked_class
from rmbook.engine.sharded import GradientAverage, reshard
from rmbook.engine.shards import whole
from rmbook.engine.targets import TargetError, check_targets, find_targets, named_layers, plain_key, plain_names
from rmbook.masks.recipe import MaskRecipe
from rmbook.masks.sample import Mask, ratio_to_density


def apply_random_mask(
    model: nn.Module,
    targets: Sequence[str] | str,
    *,
    ratio: float | None = None,
    density: float | None = None,
    seed: int = 0,
    structure: str = "entries",
    backend: str = "auto",
    scale: float | str = 1.0,
    unused: str = "error",
) -> "RandomMask":
    """Freeze `model` and make a random subset of the entries of some linear layers trainable, in place.

    This is the paper's method (section 3.1): W + S with S zero outside a Bernoulli mask and zero at the start.
    Afterwards the model's only parameters that require a gradient are one vector of values per target layer, so any
    optimiser and any training loop works, `transformers.Trainer` included: the folder that `trainer.save_model` writes
    loads as the trained model. On an error the model is unchanged.

    Args:
        model: any `nn.Module` with `nn.Linear` layers.
        targets: names of the linear layers, matched at the end of a module's name: ["q_proj", "v_proj"].
        ratio: wanted trainable entries / all parameters of the model (the paper's "Params"). Give this or density.
        density: probability that an entry of a target matrix is trained. Give this or ratio.
        seed: of the masks; each layer's mask depends on it and on the parameter's name alone.
        structure: what is drawn; see `MaskRecipe`.
        backend: who computes the values' gradient; see `rmbook.engine.backends.choose_backend`.
        scale: S = scale * values. "inverse_density" is 1 / density: then Adam at one learning rate C does at every
            density what C / density does at scale 1, the rate that the law of `rmbook.suggest_learning_rate` wants.
        unused: what happens when the first backward pass gives some masked layers no gradient: "error" at the
            optimiser's step or the model's next call, or "warn" where that may be (experts, branches that some batches
            do not take).

    Raises:
        TargetError: no layer matches, or a match is no linear layer, plain or quantised, shares its weight with another
            parameter (tied weights) or is on the meta device; or the model is masked already.
        ValueError: ratio or density out of range, or both or neither given; an unknown structure or backend.
        ImportError: the backend's library is missing.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(100, 50), torch.nn.ReLU(), torch.nn.Linear(50, 2))
        >>> masking = apply_random_mask(model, ["0"], density=0.01)
        >>> trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        >>> trained, masking.trainable
        (['0.values'], 46)
        >>> plain = masking.remove()  # the same module, with its own weights
    """
    if (ratio is None) == (density is None):
        raise ValueError(
            f"give either ratio (share of all parameters) or density (probability inside a target matrix), "
            f"got ratio={ratio}, density={density}."
        )
    layers = find_targets(model, targets)
    check_targets(model, layers)
    shapes = {name: weight_shape(layer) for name, layer in layers.items()}
    total, held = count_parameters(model), sum(map(math.prod, shapes.values()))
    if ratio is not None:
        density = ratio_to_density(ratio, total, held)
    assert density is not None  # as the ratio was
    density = check_density(density)
    names = (targets,) if isinstance(targets, str) else tuple(targets)
    recipe = MaskRecipe(names, density, check_seed(seed), structure)
    return apply_masks(model, recipe.draw(shapes), recipe, backend, scale, unused)


def apply_masks(
    model: nn.Module,
    masks: dict[str, Mask],
    recipe: MaskRecipe | None = None,
    backend: str = "auto",
    scale: float | str = 1.0,
    unused: str = "error",
    values: dict[str, torch.Tensor] | None = None,
) -> "RandomMask":
    """Mask a model as `apply_random_mask` does, with masks that are there already.

    Args:
        model: any `nn.Module` with `nn.Linear` layers.
        masks: by the full name of a layer; shape (out, in) as its weight.
        recipe: how they were drawn, if they were.
        backend, scale, unused: as for `apply_random_mask`.
        values: to start from, (nnz,) by the full name of a layer; zeros if None.

    Raises:
        TargetError: a name is no layer of the model, or a layer cannot be masked.
        ValueError: a mask has another shape than its layer's weight, or the scale is no positive number.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2))
        >>> masking = apply_masks(model, {"0": Mask.checked((2, 3), torch.tensor([0, 4]))})
        >>> masking.trainable, masking.total
        (2, 8)
    """
    factor = scale_factor(scale, recipe.density if recipe else None)
    if unused not in REACTIONS:
        raise ValueError(f"unused must be one of {', '.join(REACTIONS)}, got {unused!r}.")
    modules, plain = named_layers(model), plain_names(model)
    masks = {plain.get(name, name): mask for name, mask in masks.items()}
    if not masks or (unknown := [name for name in masks if name not in modules]):
        raise TargetError(f"masks must name layers of the model; unknown: {', '.join(unknown) if masks else 'none'}.")
    layers = {name: modules[name] for name in masks}
    check_targets(model, layers)
    for name, mask in masks.items():
        if (shape := weight_shape(layers[name])) != mask.shape:
            raise ValueError(f"the mask of {name!r} has shape {mask.shape}, its weight {shape}.")
        choose_backend(backend, layers[name].weight)
    # All that can fail has been done before the first change: nothing leaves a half-masked model.
    were_trainable = [plain_key(name, plain) for name, parameter in model.named_parameters() if parameter.requires_grad]
    model.requires_grad_(False)
    masked = {n: masked_class(layer).attach(layer, masks[n], backend, factor) for n, layer in layers.items()}
    masking = RandomMask(model, masked, recipe, were_trainable, unused)
    with torch.no_grad():
        for name, start in (values or {}).items():
            masking.layers[name].values.copy_(start)
    return masking


class RandomMask:
    """A model under a random mask: what `apply_random_mask` returns.

    Attributes:
        model: the model, changed in place.
        layers: masked layers by name, without what wrappers add to it (`rmbook.engine.targets.plain_names`).
        recipe: how the masks were drawn; None if they were given.
        targets: the target names, or the layers' names if the masks were given.
        density: Bernoulli probability inside the target matrices; None if the masks were given.
        seed: of the masks; None if they were given.
        buffers: the model's buffers as they were before, which training may change (batch norm).
    """

    def __init__(
        self,
        model: nn.Module,
        layers: dict[str, MaskedLinear],
        recipe: MaskRecipe | None,
        were_trainable: list[str],
        unused: str = "error",
    ) -> None:
        self.model, self.layers, self.recipe = model, layers, recipe
        self.targets: tuple[str, ...] = recipe.targets if recipe else tuple(layers)
        self.density: float | None = recipe.density if recipe else None
        self.seed: int | None = recipe.seed if recipe else None
        self._were_trainable = were_trainable  # names, as parameters would keep unsharded weights alive
        self.buffers = BufferSnapshot(model)
        self._refresh = Refresh(model, layers.values(), GradientCheck(layers, unused))
        average = GradientAverage(model, list(layers.values()))
        for layer in layers.values():
            layer.average = average

    def check_savable(self) -> None:
        """Raise ValueError if the mask was removed from its model: there are no values to save."""
        if not self.layers:
            raise ValueError("this mask was removed from its model: save before remove() or merge().")

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the values of each layer, (nnz,), with their names."""
        for name, layer in self.layers.items():
            yield f"{name}.values", layer.values

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return what an optimiser is to train: the values of each layer, (nnz,)."""
        return (values for _, values in self.named_parameters())

    @property
    def trainable(self) -> int:
        """Number of entries that are trained."""
        return sum(layer.mask.nnz for layer in self.layers.values())

    @property
    def total(self) -> int:
        """Number of parameters of the base model, tied ones counted once."""
        return count_parameters(self.model) - self.trainable

    @property
    def ratio(self) -> float:
        """Trained entries / all parameters of the base model."""
        return self.trainable / self.total

    def table(self) -> pd.DataFrame:
        """Return a table of what is trained, one row a layer: shape, entries, trained entries, their share."""
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

    def explain(self) -> pd.DataFrame:
        """Return a table of what computes the gradient of each layer's values, how, and why; one row a layer."""
        rows = [
            {
                "layer": name,
                "backend": layer.backend,
                "because": layer.backend_reason,
                "way": explain_way(
                    layer.backend, layer.product_shape, layer.mask.nnz, layer.operand_dtype, layer.values.device
                ),
            }
            for name, layer in self.layers.items()
        ]
        return pd.DataFrame(rows).set_index("layer")

    @torch.no_grad()
    def distance(self) -> float:
        """Return the distance from the pretrained weights: the Frobenius norm of S over all layers."""
        return math.sqrt(sum(float(whole(layer.delta).double().square().sum()) for layer in self.layers.values()))

    @contextlib.contextmanager
    def dense_form(self) -> Iterator[None]:
        """Run the layers as `masked_linear_reference` within this context: slow, and differentiable twice.

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
        """Take the mask off: plain linear layers again, and the model as it was, bit for bit.

        That is its weights, `requires_grad`, and the buffers that training changed, such as a batch norm's running
        statistics (those of more than a million elements stay as they are).
        """
        model = self._end(keep=False)
        self.buffers.restore()
        return model

    def merge(self) -> nn.Module:
        """Keep the result: plain linear layers again whose weights hold W + S, and buffers as training left them."""
        return self._end(keep=True)

    def _end(self, keep: bool) -> nn.Module:
        for layer in self.layers.values():
            layer.check_removable(keep)
        if any(layer.sharded for layer in self.layers.values()):
            reshard(self.model)
        self._refresh.remove()
        for layer in self.layers.values():
            layer.bake() if keep else layer.detach()
        names = plain_names(self.model)
        for name, parameter in self.model.named_parameters():
            if plain_key(name, names) in self._were_trainable:
                parameter.requires_grad_(True)
        self.layers = {}
        return self.model
