"""The methods that are compared, each as one call that decides which parameters of a model require a gradient."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from rmbook.checks import check_seed
from rmbook.engine.masking import apply_random_mask
from rmbook.engine.targets import TargetError, find_targets
from rmbook.methods.adalora import AdaLora, widen_factors
from rmbook.methods.applied_method import AppliedMethod
from rmbook.methods.architectures import resolve_targets
from rmbook.methods.houlsby import add_adapters, remove_adapters
from rmbook.methods.prefix import add_prefix, remove_prefix
from rmbook.methods.settings import (
    AdaLoraSettings,
    AdapterSettings,
    BitfitSettings,
    LoraSettings,
    MaskSettings,
    MethodError,
    MethodSettings,
    PrefixSettings,
    method_settings,
    refuse_settings,
)

Targets = Sequence[str] | str | None


def full_finetuning(model: nn.Module, exclude: Sequence[str] = ()) -> nn.Module:
    """Train every parameter whose name contains none of the strings in `exclude`; in place."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(part in name for part in exclude))
    return model


def lora(
    model: nn.Module, targets: Sequence[str], rank: int = LoraSettings.rank, alpha: float = LoraSettings.alpha
) -> nn.Module:
    """Freeze `model` and add low-rank updates (alpha / rank) B A to the target layers, through `peft`; in place.

    The defaults are the paper's (rank 8, alpha 16). The factors A are drawn from torch's global random state; all
    factors are float32, or float64 in a float64 model.

    Raises:
        TargetError: if a target matches nothing.
        ConfigError: rank or alpha is out of range.
    """
    settings = LoraSettings(rank, alpha)
    layers = find_targets(model, targets)  # peft's own message does not say which names would match
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        target_modules=list(targets),
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in layers.values()),
    )
    model = inject_adapter_in_model(config, model)
    widen_factors(model)
    return model


def bitfit(model: nn.Module, norms: bool = BitfitSettings.norms) -> nn.Module:
    """Train the biases that the model's linear layers have, and nothing else; in place.

    The paper says "all the bias vectors", but its count, 9 d in each block of OPT, leaves out those of layer norms.

    Args:
        model: any model.
        norms: train the biases of layer norms, too.

    Raises:
        MethodError: there is no such bias, as in Llama; the model is unchanged.
    """
    kinds = (nn.Linear, Conv1D, nn.LayerNorm) if norms else (nn.Linear, Conv1D)
    biases = [m.bias for m in model.modules() if isinstance(m, kinds) and m.bias is not None]
    if not biases:
        raise MethodError(f"bitfit trains biases, but the linear layers of {type(model).__name__} have none.")
    model.requires_grad_(False)
    for bias in biases:
        bias.requires_grad_(True)
    return model


# What follows puts a method on a model: each function takes the model, the settings of the method, and what the method
# takes of the run's, and gives what `AppliedMethod` needs. All that can fail is done before the model is changed.


def _full(model: nn.Module, settings: MethodSettings) -> dict[str, Any]:
    full_finetuning(model)
    return {"undo": None}


def _masking(
    model: nn.Module,
    settings: MaskSettings,
    targets: Targets,
    ratio: float | None,
    density: float | None,
    seed: int,
) -> dict[str, Any]:
    targets = resolve_targets(model, targets)
    fused = [name for name, layer in find_targets(model, targets).items() if isinstance(layer, Conv1D)]
    if fused:
        raise TargetError(
            f"{fused[0]!r} is a Conv1D, whose weight is stored transposed; masks need linear layers: call "
            "rmbook.methods.architectures.conv1d_to_linear(model) first."
        )
    mask = apply_random_mask(model, targets, ratio=ratio, density=density, seed=seed, **dataclasses.asdict(settings))
    return {"undo": mask.remove, "mask": mask}


def _lora(model: nn.Module, settings: LoraSettings, targets: Targets, seed: int) -> dict[str, Any]:
    targets = resolve_targets(model, targets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        lora(model, targets, settings.rank, settings.alpha)
    return {"undo": functools.partial(_remove_peft, model)}


def _adalora(model: nn.Module, settings: AdaLoraSettings, targets: Targets, seed: int) -> dict[str, Any]:
    targets = resolve_targets(model, targets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        budget = AdaLora(model, targets, settings)
    return {"undo": functools.partial(_remove_peft, model), "budget": budget}


def _remove_peft(model: nn.Module) -> None:
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    del model.peft_config


def _adapter(model: nn.Module, settings: AdapterSettings, seed: int) -> dict[str, Any]:
    add_adapters(model, seed=seed, **dataclasses.asdict(settings))
    return {"undo": functools.partial(remove_adapters, model)}


def _prefix(model: nn.Module, settings: PrefixSettings, seed: int) -> dict[str, Any]:
    add_prefix(model, seed=seed, **dataclasses.asdict(settings))
    return {"undo": functools.partial(remove_prefix, model)}


def _bitfit(model: nn.Module, settings: BitfitSettings) -> dict[str, Any]:
    bitfit(model, settings.norms)
    return {"undo": _nothing}  # the biases are put back by AppliedMethod.remove


def _nothing() -> None:
    pass


METHODS: dict[str, Callable[..., dict[str, Any]]] = {
    "full": _full,
    "random_masking": _masking,
    "structured_masking": _masking,
    "lora": _lora,
    "adalora": _adalora,
    "adapter": _adapter,
    "prefix": _prefix,
    "bitfit": _bitfit,
}


def apply_method(
    model: nn.Module,
    name: str,
    *,
    targets: Targets = None,
    ratio: float | None = None,
    density: float | None = None,
    seed: int = 0,
    **settings: Any,
) -> AppliedMethod:
    """Put a method of the paper on a model, in place; on an error the model is unchanged.

    Defaults are the paper's (appendix B). Added parameters are float32 (float64 in a float64 model) whatever the
    model's dtype is. full, bitfit and the adapter's layer norms train the model's own parameters in their own dtype:
    load the model in float32 for these.

    Args:
        model: a language model of transformers; masks, lora, adalora and full take any module.
        name: full, random_masking, structured_masking, lora, adalora, adapter, prefix or bitfit.
        targets: for masks, lora and adalora: "qv" (if None), "attention", "o_proj", "mlp", "all_linear", or names.
        ratio: for masks: trained entries / all parameters of the model. Give this or density.
        density: for masks: probability that an entry of a target matrix is trained.
        seed: of masks, of factors, or of the words that a prefix starts from.
        settings: of the method; `rmbook describe --method NAME` lists them, `rmbook.methods.settings` declares them.

    Raises:
        MethodError: the name is unknown, the method does not take a setting, or the model has a method already.
        TargetError: a target is unknown or unsuitable.
        ConfigError, ValueError: a setting is out of range.

    Example:
        >>> model = nn.Sequential(nn.Linear(100, 50), nn.Linear(50, 2))
        >>> method = apply_method(model, "bitfit")
        >>> method.trainable, f"{method.ratio:.2%}"
        (52, '1.01%')
        >>> plain = method.remove()  # the same module, with its own weights
    """
    checked = method_settings(name, settings)
    if hasattr(model, "_rmbook_method"):
        raise MethodError("the model has a method already: remove that first (AppliedMethod.remove).")
    general = {"targets": targets, "ratio": ratio, "density": density}
    refuse_settings(name, [key for key, value in general.items() if value is not None and key not in checked.takes])
    general = {key: value for key, value in (general | {"seed": check_seed(seed)}).items() if key in checked.takes}
    base = list(model.parameters())
    flags = {parameter_name: parameter.requires_grad for parameter_name, parameter in model.named_parameters()}
    parts = METHODS[name](model, checked, **general)
    if parts["undo"]:
        model._rmbook_method = flags
    return AppliedMethod(model, name, general | dataclasses.asdict(checked), base, **parts)
