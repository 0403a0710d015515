"""The files of a SHiRA adapter as `peft` lays them out: written in one step, and read with every part checked.

adapter_config.json names r and the layers; adapter_model.safetensors holds, for each layer, `shira_weight` (n,) and
`shira_indices` (2, n), rows and columns. peft writes the indices' integers as float32 on Windows.
"""

import json
import os
import re
import reprlib
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch

from rmbook.adapters.adapter_file import read_contents
from rmbook.adapters.adapter_header import is_hash, parse_recipe
from rmbook.adapters.errors import AdapterCorruptError, AdapterError
from rmbook.errors import reason
from rmbook.files import UnreadableFileError, replacing_folder
from rmbook.json_files import read_json
from rmbook.masks.recipe import MaskRecipe
from rmbook.tensor_files import FLOATS, digest_tensors
from rmbook.version import __version__

CONFIG, WEIGHTS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
CONFIG_LIMIT = 2**20  # bytes
# Fields of peft's ShiraConfig that do not matter here: most say how a mask is drawn, but the positions are in the file.
IRRELEVANT = {"auto_mapping", "base_model_name_or_path", "inference_mode", "init_weights", "mask_type", "peft_version"}
IRRELEVANT |= {"random_seed", "revision", "task_type"}


class ShiraError(AdapterError):
    """SHiRA cannot express the mask, or the folder holds what a mask cannot express; nothing was changed."""


@dataclass(frozen=True)
class Origin:
    """Origin of a folder that rmbook wrote, noted in it; peft reads past it.

    Attributes:
        base_fingerprint: of the base model; see `rmbook.adapters.adapter_file.base_fingerprint`.
        recipe: how the masks were drawn; None if they were given.
        counts: by layer name, how many entries the mask has; those that follow in the file are padding.
    """

    base_fingerprint: str
    recipe: MaskRecipe | None
    counts: dict[str, int]


@dataclass(frozen=True)
class ShiraFolder:
    """Content of a SHiRA adapter's folder.

    Attributes:
        rank: SHiRA's r: every layer has r (in + out) entries.
        targets: names of peft's target_modules.
        whole_names: whether these are whole names of layers, or their endings.
        entries: by layer name, the indices (2, n) and the weight (n,).
        origin: None if peft wrote the folder.
    """

    rank: int
    targets: frozenset[str]
    whole_names: bool
    entries: dict[str, tuple[torch.Tensor, torch.Tensor]]
    origin: Origin | None


def write_folder(folder: str | os.PathLike[str], contents: ShiraFolder, base_model_name: str | None) -> None:
    """Write `contents`, which have an origin, completely or not at all; see `replacing_folder` for what is raised."""
    config = {
        "peft_type": "SHIRA",
        "r": contents.rank,
        # Not "random": for that, a reader that drops the positions in the file draws others, and says nothing.
        "mask_type": "positions in the file",
        "target_modules": "|".join(map(re.escape, sorted(contents.targets))),  # whole names; a list would mean endings
        "fan_in_fan_out": False,
        "init_weights": True,
        "inference_mode": True,
        "base_model_name_or_path": base_model_name,
    }
    tensors = {}
    for name, (indices, weight) in contents.entries.items():
        tensors[f"{PREFIX}{name}.shira_indices"] = indices.to(torch.int32).contiguous()
        tensors[f"{PREFIX}{name}.shira_weight"] = weight
    origin = asdict(contents.origin) if contents.origin else {}
    metadata = {"format": "pt", "rmbook": json.dumps({"rmbook_version": __version__, **origin})}
    metadata["rmbook_content"] = digest_tensors(tensors, metadata["rmbook"])
    with replacing_folder(folder) as temporary:
        (temporary / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (temporary / WEIGHTS).write_bytes(safetensors.torch.save(tensors, metadata))


def read_folder(folder: str | os.PathLike[str]) -> ShiraFolder:
    """Read what peft or `write_folder` wrote; what can be known without the model is checked.

    Raises:
        FileNotFoundError: one of the two files does not exist.
        AdapterCorruptError: a file is truncated or altered.
        ShiraError: another kind of adapter, or one that changes more than entries of linear layers.
    """
    return ShiraFolder(*_read_config(Path(folder) / CONFIG), *_read_entries(Path(folder) / WEIGHTS))


def _read_config(path: Path) -> tuple[int, frozenset[str], bool]:
    # r and target_modules, and whether these are whole names. Other settings of peft are refused or do not matter.
    if not path.exists():
        raise FileNotFoundError(f"there is no adapter configuration at {path}; give a local folder that peft saved.")
    try:
        config = read_json(path, CONFIG_LIMIT)
        kind, rank, targets = config.pop("peft_type"), config.pop("r", None), config.pop("target_modules", None)
    except UnreadableFileError as error:
        raise AdapterCorruptError(str(error)) from None
    except (KeyError, TypeError, AttributeError) as error:
        raise AdapterCorruptError(f"{path} is no configuration of peft ({reason(error)}); fetch it again.") from None
    if kind != "SHIRA":
        raise ShiraError(
            f"{path} describes an adapter of type {str(kind)[:40]!r}; only SHIRA is a sparse mask. Use peft for it."
        )
    if unknown := sorted(field for field, value in config.items() if value and field not in IRRELEVANT):
        some = ", ".join(field[:40] for field in unknown[:5])
        raise ShiraError(f"{path} sets {some}, which a mask of linear layers cannot express; use peft.")
    names = _alternatives(targets, path) if targets and isinstance(targets, str) else targets
    sound = isinstance(names, list) and all(isinstance(name, str) and name for name in names)
    if not sound or type(rank) is not int or not 1 <= rank < 2**31:
        raise AdapterCorruptError(
            f"{path}: expected r of at least 1 and target_modules of names, got r = {reprlib.repr(rank)}, "
            f"{reprlib.repr(targets)}."
        )
    return rank, frozenset(names), isinstance(targets, str)


def _alternatives(pattern: str, path: Path) -> list[str]:
    # The names in "a|b|c". A stranger's regular expression is never run: some take for ever.
    if not re.fullmatch(r"(?:[\w.|-]|\\[.-])+", pattern):
        raise ShiraError(
            f"{path}: target_modules is the regular expression {pattern[:60]!r}; only a list of names, or names "
            "separated by |, are read: write the names of the layers instead."
        )
    return pattern.replace("\\", "").split("|")


def _read_entries(path: Path) -> tuple[dict[str, tuple[torch.Tensor, torch.Tensor]], Origin | None]:
    # By layer: indices (2, n) and weight (n,). And what save_as_shira wrote about their origin, if it did.
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}; an adapter in pickle format (.bin) is not read: save it anew.")
    metadata, tensors = read_contents(path)
    entries = {}
    for key, weight in tensors.items():
        name, _, part = key.removeprefix(PREFIX).rpartition(".")
        if part not in ("shira_weight", "shira_indices") or not key.startswith(PREFIX):
            raise ShiraError(f"{path} holds {key[:80]!r}, which a mask of linear layers cannot express; use peft.")
        if part == "shira_weight":
            indices = tensors.get(f"{PREFIX}{name}.shira_indices", weight)  # if absent: refused for its shape
            kinds = weight.dtype in FLOATS and indices.dtype in (torch.int32, torch.int64, torch.float32)
            if not kinds or weight.dim() != 1 or indices.shape != (2, weight.numel()):
                raise AdapterCorruptError(
                    f"{path}, {name!r}: expected a weight of shape (n,) and indices of shape (2, n), got "
                    f"{weight.dtype} {tuple(weight.shape)} and {indices.dtype} {tuple(indices.shape)}; fetch it again."
                )
            if not weight.isfinite().all() or not torch.equal(indices.long().to(indices.dtype), indices):
                raise AdapterCorruptError(
                    f"{path}, {name!r}: a value is not finite or an index is no integer; fetch it again."
                )
            entries[name] = indices, weight
    if not entries or len(tensors) != 2 * len(entries):
        raise AdapterCorruptError(f"{path} has not one weight and one indices tensor a layer; fetch it again.")
    if metadata.keys() <= {"format"}:  # what peft writes
        return entries, None
    if metadata.keys() != {"format", "rmbook", "rmbook_content"} or metadata["rmbook_content"] != digest_tensors(
        tensors, metadata["rmbook"]
    ):
        raise AdapterCorruptError(f"{path} was altered after it was saved: its content hash differs; fetch it again.")
    try:
        origin = json.loads(metadata["rmbook"])
        fingerprint, recipe, counts = origin["base_fingerprint"], origin["recipe"], origin["counts"]
        recipe = parse_recipe(recipe)
        fitting = all(type(counts[name]) is int and 0 <= counts[name] <= len(entries[name][1]) for name in entries)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:  # made to deceive: its hash fits
        raise AdapterCorruptError(f"{path} does not describe its origin: {reason(error)}.") from None
    if not fitting or not is_hash(fingerprint):
        raise AdapterCorruptError(f"{path} notes an origin that does not fit its entries.")
    return entries, Origin(fingerprint, recipe, counts)
