"""What `peft` calls to put random masks on the layers of a model, and to load values into them."""

import copy
import math
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING, AuxiliaryTrainingWrapper
from torch import nn

from rmbook.adapters.shira_folder import PREFIX
from rmbook.engine.dequantise import count_parameters
from rmbook.engine.quantised_product import refuse_merge
from rmbook.engine.sharded import GradientAverage, spread_state
from rmbook.engine.targets import plain_names, refuse_parallel, refuse_tied
from rmbook.integrations.peft_checks import (
    VALUES,
    MaskMismatchError,
    check_stored,
    check_target,
    checked_mask,
    matrix_shape,
)
from rmbook.integrations.peft_layer import RandomMaskLinear
from rmbook.integrations.peft_shards import values_of
from rmbook.integrations.peft_values import Drawn
from rmbook.masks.recipe import MaskRecipe
from rmbook.masks.sample import ratio_to_density

DEFAULT_RATIO = 1e-3  # peft wants a configuration that gives nothing but targets to work


class DensityOfRatio(float):
    """A density that a configuration's ratio came to in one model; in another one the ratio comes to another."""


class RandomMaskModel(BaseTuner):
    """The tuner of `RandomMaskConfig`; use `peft.get_peft_model`.

    The masks are those of `rmbook.apply_random_mask` with the same seed, density and module names, bit for bit.
    """

    prefix = "rmbook_"
    tuner_layer_cls = RandomMaskLinear
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    _surveyed: str | None = None  # the adapter whose targets were found and checked last
    _average: GradientAverage | None = None

    def __init__(self, model: nn.Module, *args, **kwargs):
        super().__init__(model, *args, **kwargs)
        self.register_load_state_dict_pre_hook(spread_state)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args, **kwargs):
        if kwargs.get("adapter_names") is not None:  # peft itself would compute with the active adapter for all rows
            raise ValueError(
                "random masks cannot give each row of a batch another adapter (adapter_names): choose one by "
                "set_adapter, and call the model once for the rows of each."
            )
        yield

    def inject_adapter(self, model, adapter_name: str, *args, **kwargs) -> None:
        """Put an adapter on the model; all its targets are checked before the first one changes."""
        self._surveyed, config = None, self.peft_config[adapter_name]
        if isinstance(config.density, DensityOfRatio):  # the configuration is another model's, which may be saved yet
            own = copy.copy(config)
            own.density = None
            self._survey(own)
            if own.density != config.density:
                self.peft_config[adapter_name] = own
        super().inject_adapter(model, adapter_name, *args, **kwargs)

    def _create_and_replace(
        self, peft_config, adapter_name, target, target_name, parent, current_key, parameter_name=None, **kwargs
    ) -> None:
        if self._surveyed != adapter_name:
            self._survey(peft_config)
            self._surveyed = adapter_name
        base, name = _base_layer(target), self._plain[current_key]
        shape = matrix_shape(base)
        recipe = MaskRecipe((name,), peft_config.density, peft_config.seed, peft_config.structure)
        if peft_config.stored is not None:
            check_stored(peft_config, recipe, current_key, shape)
        (mask,) = recipe.draw({name: shape}).values()
        # Drawn on the CPU: the same numbers on every device.
        start = torch.zeros if peft_config.init_weights else torch.randn
        values = start(mask.nnz, dtype=torch.promote_types(torch.float32, base.weight.dtype))
        masked = isinstance(target, RandomMaskLinear)
        layer = target if masked else RandomMaskLinear(target, name).train(target.training)
        drawn = Drawn(mask, peft_config.factor(), peft_config.backend)
        layer.add(adapter_name, drawn, values, peft_config.store_positions, peft_config.inference_mode)
        if not masked:
            self._average = self._average or GradientAverage(self.model, [], values_of)
            self._average.layers.append(layer)
            layer.average = self._average
            if adapter_name not in self.active_adapters:
                layer.requires_grad_(False)
            self._replace_module(parent, target_name, layer, target)

    def _survey(self, config) -> None:
        # Find all targets, check them, and fix the density: later layers must not find a model that has changed.
        self._plain, targets, inside = plain_names(self.model), {}, ()
        for name, module in self.model.named_modules():
            if inside and name.startswith(inside):
                continue
            if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
                inside = (*inside, f"{name}.")
            if name and self._check_target_module_exists(config, name):
                targets[name] = _base_layer(module)
        if not targets:  # peft says so
            return
        refuse_parallel(self.model, targets)
        for name, layer in targets.items():
            check_target(layer, name)
        if config.density is None:
            total = count_parameters(self.model, _base_parameters(self.model))
            held = sum(math.prod(matrix_shape(layer)) for layer in targets.values())
            ratio = DEFAULT_RATIO if config.ratio is None else config.ratio
            config.ratio, config.density = ratio, DensityOfRatio(ratio_to_density(ratio, total, held))

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        # Values are float32 from the start. autocast_adapter_dtype=False asks for the base's dtype.
        layers = [] if autocast_adapter_dtype else _layers(self.model, adapter_name).values()
        for layer in layers:
            values, dtype = layer.rmbook_values[adapter_name].weight, layer.base_layer.weight.dtype
            values.data = values.data.to(values.dtype if layer.quantised else dtype)

    # A tied weight can be borrowed, since W is back before anybody else reads it; merging would change the others.

    def _check_merge_allowed(self) -> None:
        super()._check_merge_allowed()
        self._refuse_quantised()
        refuse_tied(self.model, {f"{name}.base_layer": layer.base_layer for name, layer in _layers(self.model).items()})

    def _unload_and_optionally_merge(self, merge: bool = True, **kwargs) -> nn.Module:
        if merge:
            self._refuse_quantised()  # before anything is untied
            self._untie()
        return super()._unload_and_optionally_merge(merge=merge, **kwargs)

    def add_weighted_adapter(self, *args, **kwargs) -> None:
        """Refuse: a sum of adapters has more positions than any one of them draws."""
        raise NotImplementedError(
            "random masks have no weighted sum of adapters as a new one (add_weighted_adapter): make several active at "
            "once (model.base_model.set_adapter with a list of names; set_scale of each layer sets a strength), or use "
            "rmbook.AdapterBank, whose activate takes strengths."
        )

    def _refuse_quantised(self) -> None:
        if any(layer.quantised for layer in _layers(self.model).values()):
            refuse_merge()

    def _untie(self) -> None:
        uses = Counter(id(parameter) for _, parameter in self.model.named_parameters(remove_duplicate=False))
        for layer in _layers(self.model).values():
            if uses[id(layer.base_layer.weight)] > 1:
                layer.base_layer = copy.deepcopy(layer.base_layer)  # the module, which may have several names itself

    @classmethod
    def _remap_adapter_state_dict_for_load(cls, model, config, adapter_name, state_dict):
        layers = _layers(model, adapter_name)
        own = {name.removeprefix(PREFIX): layer for name, layer in layers.items()}
        saved = {key: key.rpartition(f".{VALUES}")[0].removeprefix(PREFIX) for key in state_dict}
        if differing := {name for name in saved.values() if name} ^ set(own):
            raise MaskMismatchError(
                f"the adapter's values are for other layers than this model has; they differ at "
                f"{', '.join(sorted(differing)[:3])}: load the base model, and the version of transformers, that it "
                "was trained with."
            )
        for name, layer in own.items():  # stored positions decide: make room for as many values as there are
            positions = state_dict.get(f"{PREFIX}{name}.rmbook_positions")
            positions = state_dict.get(f"{name}.rmbook_positions") if positions is None else positions
            if positions is not None:
                _adopt(layer, adapter_name, positions, frozen=config.inference_mode)
        return super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)


def _adopt(layer: RandomMaskLinear, adapter_name: str, positions: torch.Tensor, frozen: bool) -> None:
    drawn, dtype = layer.rmbook_drawn[adapter_name], layer.rmbook_values[adapter_name].weight.dtype
    mask = checked_mask(drawn.mask.shape, positions, layer.name)
    layer.rmbook_positions[adapter_name] = mask.positions.to(layer.base_layer.weight.device)
    if mask.digest() != drawn.mask.digest():
        layer.set_mask(adapter_name, replace(drawn, mask=mask), torch.zeros(mask.nnz, dtype=dtype))
        layer.rmbook_values[adapter_name].requires_grad_(mask.nnz > 0 and not frozen)
        layer._plan()


def _base_layer(module: nn.Module) -> nn.Module:
    return module.base_layer if isinstance(module, RandomMaskLinear) else module


def _layers(model: nn.Module, adapter_name: str | None = None) -> dict[str, RandomMaskLinear]:
    layers = {name: module for name, module in model.named_modules() if isinstance(module, RandomMaskLinear)}
    return {name: layer for name, layer in layers.items() if adapter_name in (None, *layer.rmbook_drawn)}


def _base_parameters(model: nn.Module):
    # Each once: no adapter's, and no copy that peft trains (`modules_to_save`).
    others = set()
    for module in model.modules():
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            for name, child in module.named_children():
                if name not in ("base_layer", "original_module"):
                    others.update(map(id, child.parameters()))
    return (parameter for parameter in model.parameters() if id(parameter) not in others)
