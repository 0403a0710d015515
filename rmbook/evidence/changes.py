"""Changes that training made to a model's weights: as tensors by parameter, added up, compared and measured."""

import copy

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

Changes = dict[str, torch.Tensor]  # of the parameters that changed, by name, in their shapes


@torch.no_grad()
def weight_changes(start: nn.Module, model: nn.Module) -> Changes:
    """Return what training did to each of the start's parameters, by its name there, without those that stayed.

    Masks are taken as S, LoRA as (alpha / rank) B A; other methods that add modules count with their changes to the
    start's own parameters alone.

    Args:
        start: the model before the method.
        model: the model under the method.
    """
    modules, own = dict(model.named_modules()), dict(model.named_parameters())
    changes = {}
    for name, before in start.named_parameters():
        layer_name, _, kind = name.rpartition(".")
        layer = modules.get(layer_name)
        if isinstance(layer, LoraLayer):
            change = layer.get_delta_weight("default") if kind == "weight" else None
        elif kind == "weight" and hasattr(layer, "mask"):
            flat = torch.zeros(layer.mask.numel, dtype=layer.delta.dtype, device=layer.delta.device)
            change = flat.index_put_((layer.mask.positions.long(),), layer.delta.detach()).view(before.shape)
        else:
            change = own[name] - before.to(own[name].device)
        if change is not None and change.any():
            changes[name] = change
    return changes


def distance_from(start: nn.Module, model: nn.Module) -> float:
    """Return how far the weights are from the start, in l2 norm over all of them (figure 4c of the paper)."""
    return norm(weight_changes(start, model))


def norm(changes: Changes) -> float:
    """Return the l2 norm over all entries."""
    return sum(float(change.double().square().sum()) for change in changes.values()) ** 0.5


def cosine(first: Changes, second: Changes) -> float:
    """Return the cosine of the angle between two changes, each taken as one long vector; NaN if one of them is zero."""
    product = sum(float((first[name].double() * second[name].double()).sum()) for name in first if name in second)
    return product / lengths if (lengths := norm(first) * norm(second)) else float("nan")


def shared_entries(first: Changes, second: Changes) -> int:
    """Return the number of entries that both have changed."""
    return sum(int(((first[name] != 0) & (second[name] != 0)).sum()) for name in first.keys() & second.keys())


def flip_signs(changes: Changes, seed: int) -> Changes:
    """Return the same entries and sizes with random signs: a change as large that has learned nothing."""
    generator = torch.Generator().manual_seed(seed)
    return {n: c * (2 * torch.randint(0, 2, c.shape, generator=generator) - 1).to(c) for n, c in changes.items()}


@torch.no_grad()
def combine(base: nn.Module, *parts: tuple[Changes, float]) -> nn.Module:
    """Return a copy of a model to whose weights each part, (changes, strength), is added: strength times changes.

    What `rmbook.adapters.bank.AdapterBank` does in place, for trained entries alone; this takes any method's changes.
    """
    model = copy.deepcopy(base)
    parameters = dict(model.named_parameters())
    for name in dict.fromkeys(name for changes, _ in parts for name in changes):
        parameters[name].add_(sum(changes[name] * strength for changes, strength in parts if name in changes))
    return model
