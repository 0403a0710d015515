"""A model's config.json, checked before a model is made of it: it decides how much memory and time that takes.

transformers believes the file: a billion classes get a name each, 10^5 layers are made one after the other, and an
attention with a slash in its name is fetched from the hub and run.
"""

import math
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    CLIPConfig,
    CLIPModel,
    PretrainedConfig,
    PreTrainedModel,
)

from rmbook.errors import first_line, shown
from rmbook.files import UnreadableFileError
from rmbook.json_files import read_json
from rmbook.models.files import ModelError, quiet

LARGEST_FILE = 10**7  # bytes; the longest real ones, with names of 20,000 classes, have one million
MOST = {"size": 10**7, "layer": 1000, "expert": 10_000, "num_labels": 100_000}  # by part of a name


def read_config(name: str, folder: str | Path) -> PretrainedConfig:
    """Return what config.json says, of whatever kind of model.

    Raises:
        ModelError: it cannot be used, says what no model can be, or asks for code of its own.
    """
    _check_values(name, Path(folder) / "config.json")
    try:
        with quiet():
            return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # noqa: BLE001 - a dozen kinds; all mean a config.json that cannot be used
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{name}: its config.json asks for code of its own (auto_map), which is never run here; "
                "give a model that transformers itself knows."
            ) from None
        raise ModelError(f"{name}: config.json cannot be used ({first_line(error)}): get it again.") from None


def empty_model(name: str, config: PretrainedConfig) -> PreTrainedModel:
    """Return the model of a configuration on the meta device: every shape, no numbers.

    Args:
        name: for messages.
        config: of a causal language model, or of CLIP.

    Raises:
        ModelError: there can be no such model: an unknown activation, sizes that do not fit together.
    """
    try:
        with quiet(), torch.device("meta"):
            return model_class(config)._from_config(config, attn_implementation=own_attention(config))
    except Exception as error:  # noqa: BLE001 - whatever a constructor raises
        raise ModelError(
            f"{name}: config.json describes no model that can be made ({first_line(error)}): get it again."
        ) from None


def refuse_quantized(name: str, config: PretrainedConfig) -> None:
    """Raise ModelError if a configuration is that of quantized weights."""
    if getattr(config, "quantization_config", None):
        raise ModelError(f"{name} is quantized, which cannot be trained here: give the model as it was before.")


def model_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """Return the class of the models of a configuration: CLIP's, or that of causal language models."""
    return CLIPModel if isinstance(config, CLIPConfig) else MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


def own_attention(config: PretrainedConfig) -> str:
    """Return the attention of torch or of transformers that a model runs with, whatever its config.json asks for."""
    return "sdpa" if model_class(config)._supports_sdpa else "eager"


def _check_values(name: str, path: Path) -> None:
    """Raise ModelError if a config.json asks for foreign code, or for what would fill memory or time."""
    if not path.exists():  # a model of the hub, of which transformers finds the file
        return
    try:
        entries = list(_entries("", read_json(path, LARGEST_FILE)))
    except (UnreadableFileError, RecursionError) as error:
        raise ModelError(f"{name}: config.json cannot be used ({first_line(error)}): get it again.") from None
    for key, value in entries:
        if "implementation" in key and "/" in str(value):
            raise ModelError(
                f"{name}: config.json asks for the attention {shown(value)}, code of the hub, which is never run here: "
                "remove that line."
            )
        number = isinstance(value, int | float) and not isinstance(value, bool)
        most = next((most for part, most in MOST.items() if part in key), math.inf)
        wrong = number and (math.isnan(value) or (isinstance(value, int) and value > most))
        wrong |= number and value < 0 and ("size" in key or key.startswith(("num_", "n_")))
        wrong |= number and value <= 0 and "theta" in key
        if wrong or (number and "dropout" in key and not 0 <= value <= 1):
            raise ModelError(f"{name}: config.json cannot be used: {shown(key)} is {shown(value)}; get it again.")


def _entries(key: str, value: Any):
    # Yields all values with the names that they stand under; lists and nested settings under that of the whole.
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _entries(f"{key}.{name}" if "implementation" in key else name, part)
    elif isinstance(value, list):
        for part in value:
            yield from _entries(key, part)
    else:
        yield key, value
