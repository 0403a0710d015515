"""The methods that are compared, each as one call that decides which parameters of a model require a gradient."""

import difflib
import functools
import inspect
from collections.abc import Sequence

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from rmbook.checks import check_seed
from rmbook.engine.masking import apply_random_mask
from rmbook.engine.targets import TargetError, find_targets
from rmbook.methods.adalora import AdaLora, widen_factors
from rmbook.methods.applied_method import AppliedMethod, MethodError
from rmbook.methods.architectures import resolve_targets
from rmbook.methods.houlsby import add_adapters, remove_adapters
from rmbook.methods.prefix import add_prefix, remove_prefix


def full_finetuning(model: nn.Module, exclude: Sequence[str] = ()) -> nn.Module:
    """Train every parameter whose name contains none of the strings in `exclude`; in place."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(part in name for part in exclude))
    return model


def lora(model: nn.Module, targets: Sequence[str], rank: int = 8, alpha: float = 16) -> nn.Module:
    """Freeze `model` and add low-rank updates (alpha / rank) B A to the target layers, through `peft`; in place.

    The defaults are the paper's (rank 8, alpha 16). The factors A are drawn from torch's global random state; all
    factors are float32, or float64 in a float64 model.

    Raises:
        TargetError: if a target matches nothing.
        ValueError: the rank is below 1.
    """
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f"rank must be an integer of at least 1, got {rank!r}.")
    layers = find_targets(model, targets)  # peft's own message does not say which names would match
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules=list(targets),
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in layers.values()),
    )
    model = inject_adapter_in_model(config, model)
    widen_factors(model)
    return model


def bitfit(model: nn.Module, norms: bool = False) -> nn.Module:
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


def _full(model):
    full_finetuning(model)
    return {"undo": None}


def _random_masking(model, targets, ratio, density, seed, structure="entries", backend="auto", scale=1.0):
    targets = resolve_targets(model, targets)
    fused = [name for name, layer in find_targets(model, targets).items() if isinstance(layer, Conv1D)]
    if fused:
        raise TargetError(
            f"{fused[0]!r} is a Conv1D, whose weight is stored transposed; masks need linear layers: call "
            "rmbook.methods.architectures.conv1d_to_linear(model) first."
        )
    mask = apply_random_mask(
        model, targets, ratio=ratio, density=density, seed=seed, structure=structure, backend=backend, scale=scale
    )
    return {"undo": mask.remove, "mask": mask}


def _structured_masking(model, targets, ratio, density, seed, structure="leading_columns", backend="auto", scale=1.0):
    return _random_masking(model, targets, ratio, density, seed, structure, backend, scale)


def _lora(model, targets, seed, rank=8, alpha=16):
    targets = resolve_targets(model, targets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        lora(model, targets, rank, alpha)
    return {"undo": functools.partial(_remove_peft, model)}


def _adalora(
    model,
    targets,
    seed,
    rank=8,
    initial_rank=None,
    alpha=16,
    total_steps=None,
    warmup_steps=None,
    final_steps=None,
    interval=10,
    orthogonality=0.5,
):
    targets = resolve_targets(model, targets)
    schedule = (total_steps, warmup_steps, final_steps, interval)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        budget = AdaLora(model, targets, rank, initial_rank or rank, alpha, *schedule, orthogonality)
    return {"undo": functools.partial(_remove_peft, model), "budget": budget}


def _remove_peft(model: nn.Module) -> None:
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    del model.peft_config


def _adapter(model, seed, width=8, bias=False, train_norms=True):
    add_adapters(model, seed=seed, width=width, bias=bias, train_norms=train_norms)
    return {"undo": functools.partial(remove_adapters, model)}


def _prefix(model, seed, length=5, words=None):
    add_prefix(model, seed=seed, length=length, words=words)
    return {"undo": functools.partial(remove_prefix, model)}


def _bitfit(model, norms=False):
    bitfit(model, norms)
    return {"undo": _nothing}  # the biases are put back by AppliedMethod.remove


def _nothing() -> None:
    pass


METHODS = {
    "full": _full,
    "random_masking": _random_masking,
    "structured_masking": _structured_masking,
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
    targets: Sequence[str] | str | None = None,
    ratio: float | None = None,
    density: float | None = None,
    seed: int = 0,
    **settings,
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
        settings: of the method.
            lora: rank=8, alpha=16.
            adalora: these, and initial_rank, total_steps and more; see `rmbook.methods.adalora.AdaLora`.
            adapter: width=8, bias=False, train_norms=True; see `rmbook.methods.houlsby.add_adapters`.
            prefix: length=5, words=None; see `rmbook.methods.prefix.add_prefix`.
            bitfit: norms=False; see `bitfit`.
            random_masking, structured_masking: structure, backend, scale; see `rmbook.apply_random_mask`.

    Raises:
        MethodError: the name is unknown, the method does not take a setting, or the model has a method already.
        TargetError: a target is unknown or unsuitable.
        ValueError: a setting is out of range.
    """
    if name not in METHODS:
        close = difflib.get_close_matches(str(name), METHODS, n=3)
        raise MethodError(f"unknown method {name!r}; {'close' if close else 'known'}: {', '.join(close or METHODS)}.")
    if hasattr(model, "_rmbook_method"):
        raise MethodError("the model has a method already: remove that first (AppliedMethod.remove).")
    signature = inspect.signature(METHODS[name])
    general = {"targets": targets, "ratio": ratio, "density": density}
    given = settings | {key: value for key, value in general.items() if value is not None}
    if unknown := [key for key in given if key not in signature.parameters]:
        known = [key for key in signature.parameters if key != "model"]
        raise MethodError(f"{name} does not take {', '.join(unknown)}; it takes {', '.join(known) or 'no settings'}.")
    given = {"seed": check_seed(seed)} | general | given
    given = {key: value for key, value in given.items() if key in signature.parameters}
    bound = signature.bind(model, **given)
    bound.apply_defaults()
    base = list(model.parameters())
    flags = {parameter_name: parameter.requires_grad for parameter_name, parameter in model.named_parameters()}
    parts = METHODS[name](model, **given)
    if parts["undo"]:
        model._rmbook_method = flags
    return AppliedMethod(model, name, {k: v for k, v in bound.arguments.items() if k != "model"}, base, **parts)
