"""Merged models: a folder that transformers loads without rmbook, written from a model that is still in training."""

import copy
import os

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel

from rmbook.engine.layer import ENTRIES, MaskedLinear
from rmbook.engine.masking import RandomMask
from rmbook.engine.targets import named_layers
from rmbook.files import replacing_folder


def save_merged(masking: RandomMask, folder: str | os.PathLike[str]) -> None:
    """Write a copy of the model with W + S in plain weights, for `AutoModel...from_pretrained(folder)` without rmbook.

    The masked model stays as it is and can be trained on. A model of GPT-2's kind is written in its own form (Conv1D).
    Dtypes are kept, and large models are cut into the shards that transformers makes by default. Save a tokenizer into
    the same folder afterwards, if it is needed there.

    Args:
        masking: what `apply_random_mask` returned, on a transformers model.
        folder: a new or an empty folder, whose parent exists. It is written completely or not at all.

    Raises:
        ValueError: the mask was removed from its model already.
        TypeError: the model is no transformers model, is quantised or sharded, or has an adapter of peft as well.
        FileExistsError: the folder has content, or is a file.
        FileNotFoundError: the folder's parent does not exist.
        OSError: the disk is full, or another failure to write.
    """
    masking.check_savable()
    model = _unwrapped(masking.model)
    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"expected a transformers model, got {type(model).__module__}.{type(model).__qualname__}, which has no "
            "from_pretrained: call masking.merge(), then safetensors.torch.save_model(model, file)."
        )
    plain = all(layer.resident for layer in masking.layers.values()) and not getattr(model, "hf_quantizer", None)
    if not plain or any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise TypeError(
            "the model is quantised, sharded or has an adapter of peft; a merged copy needs plain weights throughout: "
            "save the adapter instead."
        )
    own = {part: getattr(model, part) for part in ("config", "generation_config") if hasattr(model, part)}
    try:
        with replacing_folder(folder) as temporary:
            for part, value in own.items():  # save_pretrained notes dtype and architecture in what it writes
                setattr(model, part, copy.deepcopy(value))
            model.save_pretrained(temporary, state_dict=merged_state_dict(masking))
    except SafetensorError as error:
        raise OSError(f"cannot write {folder}: {error}.") from None
    finally:
        for part, value in own.items():
            setattr(model, part, value)


def merged_state_dict(masking: RandomMask) -> dict[str, torch.Tensor]:
    """Return the base model's `state_dict` with W + S in place of W: no values, the base's names, dtypes and shapes.

    Masked weights are copies, the rest are the model's own tensors. Layers that stand in for GPT-2's Conv1D have its
    form.
    """
    state = _unwrapped(masking.model).state_dict()  # masked layers report W + S
    masked = {name for name, module in _unwrapped(masking.model).named_modules() if isinstance(module, MaskedLinear)}
    own = {f"{name}.{part}" for name in {*masked, *masking.layers} for part in ("values", ENTRIES)}
    weights = {f"{name}.weight" for name in {*masked, *masking.layers}}
    return {n: tensor.clone() if n in weights else tensor for n, tensor in state.items() if n not in own}


def _unwrapped(model: nn.Module) -> nn.Module:
    # The model inside torch.compile, DistributedDataParallel and the like.
    return named_layers(model)[""]
