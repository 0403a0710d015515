"""A model's tokenizer and weights from its files; what transformers only warns of is an error here."""

import json
import re
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from rmbook.errors import first_line, is_memory_shortage, shown
from rmbook.models.configuration import empty_model, own_attention, refuse_quantized
from rmbook.models.files import ModelError, quiet

ROOM = 10**7  # parameters that a model may have beyond the bytes of its weights, before its memory is taken


def read_tokenizer(name: str, folder: str | Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer in a folder; raises ModelError if its files are damaged, or could take forever."""
    if pattern := _endless_pattern(Path(folder) / "tokenizer.json"):
        raise ModelError(
            f"{name}: its tokenizer has the pattern {shown(pattern)}, whose repeated group can take forever: "
            "get its files again."
        )
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # noqa: BLE001 - damaged files show as errors of three libraries
        raise ModelError(f"{name}: its tokenizer cannot be read ({first_line(error)}): get its files again.") from None


def _endless_pattern(path: Path) -> str | None:
    """A regular expression of a tokenizer in which a whole group is repeated; those of known models have none."""
    if not path.is_file():
        return None
    for quoted in re.findall(r'"Regex"\s*:\s*("(?:[^"\\]|\\.)*")', path.read_text("utf-8", errors="replace")):
        try:
            pattern = json.loads(quoted)
        except ValueError:  # the library will say so
            continue
        without_signs = re.sub(r"\[[^\]]*\]", "", re.sub(r"\\.", "", pattern))  # what is escaped, or one of a set
        if re.search(r"\)[*+{]", without_signs):
            return pattern
    return None


def read_model(
    name: str, folder: str | Path, kind: Any, wanted: str, config: PretrainedConfig, **settings
) -> PreTrainedModel:
    """Return a model from its files, none of whose weights are missing, left over or of another shape.

    Args:
        name: for messages.
        folder: of the files.
        kind: class of transformers, whose `from_pretrained` reads them.
        wanted: what to get instead of an incomplete one, for messages.
        config: from config.json.
        settings: of `from_pretrained`.

    Raises:
        ModelError: config.json describes no model, or a quantized one, or the weights are not those of the model that
            it describes.
    """
    refuse_quantized(name, config)
    described = sum(parameter.numel() for parameter in empty_model(name, config).parameters())
    held = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))  # bytes: no parameter takes less
    if settings.get("use_safetensors") and described > held + ROOM:
        raise ModelError(
            f"{name}: config.json describes {described:,} parameters, but the weights have {held:,} bytes: the two "
            "belong to different models; get both from one place."
        )
    settings |= {"config": config, "attn_implementation": own_attention(config)}
    try:
        with quiet():
            model, info = kind.from_pretrained(
                folder, trust_remote_code=False, ignore_mismatched_sizes=True, output_loading_info=True, **settings
            )
    except Exception as error:
        if is_memory_shortage(error) or getattr(error, "errno", None):
            raise
        raise ModelError(f"{name} cannot be loaded ({first_line(error)}): get its files again.") from None
    for key, in_file, in_model in info["mismatched_keys"]:
        raise ModelError(
            f"{name}: {key} has shape {tuple(in_file)} in the weights, but {tuple(in_model)} by config.json: "
            "the two belong to different models; get both from one place."
        )
    # Weights that the model has no place for mean another config.json; buffers that old versions saved do not.
    unexpected = [key for key in info["unexpected_keys"] if key.endswith(".weight")]
    for what, keys in (("lack", info["missing_keys"]), ("have, though config.json has no place for it,", unexpected)):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise ModelError(
                f"{name}: the weights {what} {min(keys)}{more}: this is no complete {type(model).__name__}; "
                f"get {wanted} whose config.json and weights belong together."
            )
    return model
