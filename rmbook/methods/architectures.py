"""Names of the layers in a model's blocks, so that "qv" means the same in OPT, Llama, GPT-2, CLIP and BERT."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from rmbook.engine.conv1d import keep_as_conv1d
from rmbook.engine.targets import TargetError, find_targets
from rmbook.methods.settings import PRESETS
from rmbook.yaml_files import read_yaml


@dataclass(frozen=True)
class Architecture:
    """Ends of module names inside one block of a model.

    Attributes:
        qv: projections to queries and values (GPT-2 holds queries, keys and values in one layer: that one).
        attention: all projections of the attention.
        o_proj: the attention's output projection.
        mlp: all linear layers of the feed-forward part.
        mlp_output: the last of them.
        norms: the block's layer norms.
    """

    qv: tuple[str, ...]
    attention: tuple[str, ...]
    o_proj: tuple[str, ...]
    mlp: tuple[str, ...]
    mlp_output: tuple[str, ...]
    norms: tuple[str, ...]

    @property
    def all_linear(self) -> tuple[str, ...]:
        """All linear layers of a block; neither embeddings nor the output layer."""
        return self.attention + self.mlp


ARCHITECTURES = {
    name: Architecture(**{part: tuple(names) for part, names in parts.items()})
    for name, parts in read_yaml(Path(__file__).with_suffix(".yaml")).items()
}


def find_architecture(model: nn.Module) -> Architecture:
    """The entry of `ARCHITECTURES` all of whose names occur in the model's blocks.

    Raises:
        TargetError: if there is none.
    """
    for architecture in ARCHITECTURES.values():
        if all(block_layers(model, (name,)) for name in architecture.all_linear + architecture.norms):
            return architecture
    raise TargetError(
        f"the layers of {type(model).__name__} are named like none of {', '.join(ARCHITECTURES)}; "
        "name the target layers themselves, such as targets=['query', 'value'] (masks, lora and adalora only)."
    )


def block_layers(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    """Modules inside numbered blocks whose name ends with "." and one of `names`, # for a number; in order."""
    # OPT has a final_layer_norm in each block and one of the same name after the last: the number tells them apart.
    ends = "|".join(re.escape(name).replace(r"\#", r"\d+") for name in names)
    return {
        name: module
        for name, module in model.named_modules()
        if re.search(rf"(^|\.)({ends})$", name) and any(part.isdigit() for part in name.split("."))
    }


def resolve_targets(model: nn.Module, targets: Sequence[str] | str | None) -> tuple[str, ...]:
    """Names of target layers from a preset ("qv", "attention", "o_proj", "mlp", "all_linear") or from names.

    Args:
        model: the model that the preset is looked up for.
        targets: a preset, one name, or several; None is "qv", the paper's choice.

    Raises:
        TargetError: the preset is not known for this architecture, or a name matches nothing.
    """
    targets = "qv" if targets is None else targets
    if isinstance(targets, str) and targets in PRESETS:
        ends = getattr(find_architecture(model), targets)
        return tuple(name for end in ends for name in (block_layers(model, (end,)) if "#" in end else (end,)))
    names = (targets,) if isinstance(targets, str) else tuple(targets)
    try:
        find_targets(model, names)
    except TargetError as error:
        raise TargetError(f"{error} Presets are {', '.join(PRESETS)}.") from None
    return names


@torch.no_grad()
def conv1d_to_linear(model: nn.Module) -> nn.Module:
    """Replace GPT-2's `Conv1D` layers by `nn.Linear` ones with the same numbers; in place.

    A `Conv1D` stores its weight as (in, out), a linear layer as (out, in), and masks live in the latter. Weights are
    copied one layer at a time, exactly; outputs differ by rounding at most. `state_dict` and what is saved with it keep
    GPT-2's own form, so checkpoints go both ways.
    """
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if not isinstance(layer, Conv1D):
                continue
            inputs, outputs = layer.weight.shape
            linear = nn.Linear(inputs, outputs, device="meta")
            linear.weight = nn.Parameter(layer.weight.t().contiguous(), requires_grad=layer.weight.requires_grad)
            linear.bias = layer.bias
            keep_as_conv1d(linear)
            setattr(parent, name, linear.train(layer.training))
    return model
