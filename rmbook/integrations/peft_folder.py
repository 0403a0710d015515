"""Between rmbook's masks and the folders that `peft` saves: an adapter trained with either loads in the other."""

import os
import re
from pathlib import Path

import safetensors.torch
import torch
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from torch import nn

from rmbook.adapters.adapter_file import read_contents
from rmbook.adapters.base import check_sum
from rmbook.adapters.errors import AdapterBaseError, AdapterCorruptError, AdapterError
from rmbook.adapters.shira_folder import PREFIX
from rmbook.engine.dequantise import quantisation, weight_shape
from rmbook.engine.masking import RandomMask, apply_masks
from rmbook.engine.quantised import base_entries
from rmbook.engine.sharded import writing_once
from rmbook.engine.shards import whole
from rmbook.engine.targets import TargetError, check_targets, find_targets, named_layers
from rmbook.errors import reason
from rmbook.files import replacing_folder
from rmbook.integrations.peft_checks import (
    DIGEST_BYTES,
    HASH_BYTES,
    VALUES,
    MaskMismatchError,
    check_stored,
    checked_mask,
    digest,
    entries_of,
    other_base,
)
from rmbook.integrations.peft_config import RandomMaskConfig
from rmbook.masks.recipe import MaskRecipe
from rmbook.masks.sample import Mask

PARTS = (VALUES, "rmbook_digest", "rmbook_positions")
BASE = ("base_layer.weight", "base_layer.bias")  # peft saves those of an output layer, too


def save_as_peft(
    masking: RandomMask, folder: str | os.PathLike[str], *, task_type: str | None = None, store_positions: bool = False
) -> None:
    """Write an adapter as a folder that `peft` loads, completely or not at all; for shards all processes call it.

    Args:
        masking: what `apply_random_mask` or `load_adapter` returned.
        folder: a new or an empty one.
        task_type: as in peft, for example "CAUSAL_LM"; `AutoPeftModel` needs it.
        store_positions: as for `RandomMaskConfig`; given masks are always stored with their positions.

    Raises:
        ValueError: the mask was removed from its model, or values are not finite.
        FileExistsError: `folder` has content, or is a file.
        FileNotFoundError: its parent does not exist.
        AdapterError: training changed buffers of the model (a batch norm), which peft's folder has no place for.
    """
    masking.check_savable()
    if changed := sorted(masking.buffers.changed()):
        raise AdapterError(f"training changed the buffers {', '.join(changed[:3])}, which peft does not save.")
    recipe, layers = masking.recipe, masking.layers
    store_positions = store_positions or recipe is None
    whole_names = set(masking.targets) == set(layers)  # as a list they would mean endings, of other layers' names too
    drawn = recipe or MaskRecipe(tuple(masking.targets), 0.0, 0)  # given masks have no density: their positions count
    config = RandomMaskConfig(
        density=drawn.density,
        seed=drawn.seed,
        structure=drawn.structure,
        target_modules="|".join(map(re.escape, layers)) if whole_names else list(masking.targets),
        scale=next(iter(layers.values())).scale,
        store_positions=store_positions,
        task_type=task_type,
        inference_mode=True,
        base_model_name_or_path=getattr(masking.model, "name_or_path", None) or None,
    )
    tensors = {}
    for name, layer in layers.items():
        values = whole(layer.values.detach()).cpu().contiguous()
        if not values.isfinite().all():
            raise ValueError(f"the values of {name!r} are not all finite: the training diverged; nothing was written.")
        entries = base_entries(layer, layer.mask) if quantisation(layer) else layer.original
        tensors[f"{PREFIX}{name}.{VALUES}"] = values
        tensors[f"{PREFIX}{name}.rmbook_digest"] = digest(layer.mask, entries)
        if store_positions:
            tensors[f"{PREFIX}{name}.rmbook_positions"] = layer.mask.positions.cpu().contiguous()
    with writing_once(layers.values()) as writes:
        if writes:
            with replacing_folder(folder) as temporary:
                config.save_pretrained(str(temporary))
                (temporary / SAFETENSORS_WEIGHTS_NAME).write_bytes(safetensors.torch.save(tensors, {"format": "pt"}))


def load_from_peft(model: nn.Module, folder: str | os.PathLike[str]) -> RandomMask:
    """Apply the masks and values of a folder that `peft` or `save_as_peft` wrote, in place.

    Args:
        model: the plain base model, unmasked. On an error it is unchanged.
        folder: a local folder with adapter_config.json and adapter_model.safetensors; pickles are not read.

    Returns:
        The `RandomMask`, with the stored values.

    Raises:
        FileNotFoundError: a file does not exist.
        AdapterCorruptError: a file is damaged or contradicts itself.
        AdapterBaseError: `model` has other layers or weights than the base that the adapter is for.
        MaskMismatchError: this installation draws other positions.
        AdapterError: another kind of adapter, or one that trained more than masks (`modules_to_save`).
        TargetError: a layer cannot be masked.
    """
    config, tensors = _read(Path(folder))
    modules = named_layers(model)
    names = [name for name in modules if f"{name}.{VALUES}" in tensors]
    if others := {_layer_and_part(key)[0] for key in tensors} - set(names):
        raise AdapterBaseError(
            f"{folder} has values for {', '.join(name[:80] for name in sorted(others)[:3])}, which this model does not "
            "have: load the base model that it was trained on."
        )
    check_targets(model, {name: modules[name] for name in names})
    recipe = MaskRecipe(_targets(model, config, names), config.density or 0.0, config.seed, config.structure)
    masks, values = {}, {name: tensors[f"{name}.{VALUES}"] for name in names}
    for name in names:
        masks[name] = _mask(name, modules[name], tensors, config, recipe)
        wide = torch.promote_types(modules[name].weight.dtype, torch.float32)
        check_sum(name, base_entries(modules[name], masks[name]), config.factor() * values[name].to(wide), folder)
    drawn = None if config.store_positions else recipe
    return apply_masks(model, masks, drawn, config.backend, config.factor(), values=values)


def _read(folder: Path) -> tuple[RandomMaskConfig, dict[str, torch.Tensor]]:
    for name in (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"there is no {folder / name}; give a local folder that peft saved.")
    try:
        config = RandomMaskConfig.from_pretrained(str(folder))
    except AdapterError:
        raise
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise AdapterCorruptError(f"{folder / CONFIG_NAME} is no configuration: {reason(error, 200)}") from None
    if not isinstance(config, RandomMaskConfig) or config.density is None:
        raise AdapterError(f"{folder} holds no adapter of RandomMaskConfig; use peft for it.")
    _, tensors = read_contents(folder / SAFETENSORS_WEIGHTS_NAME)
    tensors = {key.removeprefix(PREFIX): tensor for key, tensor in tensors.items()}
    for key in list(tensors):
        name, part = _layer_and_part(key)
        if part in BASE and f"{name}.{VALUES}" in tensors:
            del tensors[key]
        elif part not in PARTS:
            raise AdapterError(f"{folder} holds {key[:80]!r}, which is more than masks of linear layers; use peft.")
    return config, tensors


def _layer_and_part(key: str) -> tuple[str, str]:
    part = next((part for part in (*PARTS, *BASE) if key.endswith(f".{part}")), "")
    return key.removesuffix(f".{part}"), part


def _targets(model: nn.Module, config: RandomMaskConfig, names: list[str]) -> tuple[str, ...]:
    # The endings of names that peft was given, where they mean the same layers here.
    wanted = sorted(config.target_modules) if isinstance(config.target_modules, set) else []
    try:
        return tuple(wanted if list(find_targets(model, wanted)) == names else names)
    except TargetError:
        return tuple(names)


def _mask(
    name: str, layer: nn.Module, tensors: dict[str, torch.Tensor], config: RandomMaskConfig, recipe: MaskRecipe
) -> Mask:
    # The mask of a layer, from the file or drawn, if it is the one that the values are for.
    shape, values = weight_shape(layer), tensors[f"{name}.{VALUES}"]
    positions, saved = tensors.get(f"{name}.rmbook_positions"), tensors.get(f"{name}.rmbook_digest")
    sound = values.dim() == 1 and values.is_floating_point() and values.isfinite().all()
    if not sound or saved is None or saved.shape != (DIGEST_BYTES,) or saved.dtype != torch.uint8:
        raise AdapterCorruptError(f"{name[:80]!r}: no finite values (n,) with a digest of {DIGEST_BYTES} bytes.")
    if positions is None:
        check_stored(config, recipe, name, shape)
        (mask,) = recipe.draw({name: shape}).values()
    else:
        mask = checked_mask(shape, positions, name)
    own = digest(mask, entries_of(layer, mask))
    if not torch.equal(own[:HASH_BYTES], saved[:HASH_BYTES]) or mask.nnz != values.numel():
        raise MaskMismatchError(
            f"{name[:80]!r}: the values are for other positions than this installation draws from seed {config.seed} "
            "and this name; load it with the versions that wrote it, or save it with store_positions=True."
        )
    if other_base(own, saved):
        raise AdapterBaseError(f"{name[:80]!r}: the adapter was trained on a base model with other weights.")
    return mask
