"""A model's configuration, tokenizer and weights from its files; what transformers only warns of is an error here."""

from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from rmbook.models.files import ModelError, first_line, quiet


def read_config(name: str, folder: str | Path) -> PretrainedConfig:
    """What config.json says, of whatever kind of model.

    Raises:
        ModelError: it cannot be used, or asks for code of its own.
    """
    try:
        with quiet():
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if kernel := _foreign_attention(config):
            raise ModelError(
                f"{name}: config.json asks for the attention {kernel!r}, code of the hub, which is never run here: "
                "remove that line."
            )
        return config
    except ModelError:
        raise
    except Exception as error:  # noqa: BLE001 - a dozen kinds; all mean a config.json that cannot be used
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{name}: its config.json asks for code of its own (auto_map), which is never run here; "
                "give a model that transformers itself knows."
            ) from None
        raise ModelError(f"{name}: config.json cannot be used ({first_line(error)}): get it again.") from None


def _foreign_attention(config: PretrainedConfig) -> str | None:
    """The name of an attention that transformers would load from the hub: those have a slash in them."""
    parts = [config, *(value for value in vars(config).values() if isinstance(value, PretrainedConfig))]
    names = [str(getattr(part, "_attn_implementation", None)) for part in parts]
    return next((name for name in names if "/" in name), None)


def read_tokenizer(name: str, folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder; raises ModelError if its files are damaged."""
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # noqa: BLE001 - damaged files show as errors of three libraries
        raise ModelError(f"{name}: its tokenizer cannot be read ({first_line(error)}): get its files again.") from None


def read_model(name: str, folder: str | Path, kind: type, wanted: str, **settings) -> PreTrainedModel:
    """A model from its files, none of whose weights are missing, left over or of another shape.

    Args:
        name: for messages.
        folder: of the files.
        kind: class of transformers, whose `from_pretrained` reads them.
        wanted: what to get instead of an incomplete one, for messages.
        settings: of `from_pretrained`.

    Raises:
        ModelError: the weights and config.json do not belong together.
    """
    with quiet():
        model, info = kind.from_pretrained(
            folder, trust_remote_code=False, ignore_mismatched_sizes=True, output_loading_info=True, **settings
        )
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
