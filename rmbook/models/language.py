"""Causal language models from a local folder or the Hugging Face hub: safetensors only, and no code but this machine's.

What `transformers` would only warn of, such as weights that the file lacks and that are then random, is an error here.
"""

import inspect
import os
import shutil
from pathlib import Path

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoModelForCausalLM,
    CLIPConfig,
    CLIPModel,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from rmbook.errors import first_line, is_memory_shortage
from rmbook.files import replacing_folder
from rmbook.methods.architectures import conv1d_to_linear
from rmbook.models.configuration import read_config, refuse_quantized
from rmbook.models.device import model_device
from rmbook.models.files import PREPROCESSING, ModelError, check_files, find_folder, find_model, quiet, share
from rmbook.models.likelihood import left_padded
from rmbook.models.option_scores import evaluation_mode
from rmbook.models.reading import read_model, read_tokenizer

_WANTED = "a causal language model"


def load_language_model(
    name: str | os.PathLike[str],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    revision: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model, in evaluation mode, and its tokenizer.

    Weights are read one tensor at a time, onto a GPU without a copy in main memory. GPT-2's Conv1D layers become
    linear ones, in which masks can live. Nothing waits for a network if the model is on this machine.

    Args:
        name: a folder that `save_pretrained` wrote, or a repository of the hub such as "facebook/opt-1.3b".
        dtype: of the parameters, whatever the file has.
        device: the CPU if None.
        revision: branch, tag or commit of a repository of the hub.

    Raises:
        ModelError: no such model, no access to it, or files that are incomplete, damaged, in another format or of
            another kind of model.
    """
    name, folder, place = find_model(name, revision, device)
    config = _read_config(name, folder)
    tokenizer = read_tokenizer(name, folder)
    onto = {"device_map": {"": place}} if place.type == "cuda" else {}
    settings = {"config": config, "dtype": dtype, "use_safetensors": True} | onto
    model = read_model(name, folder, AutoModelForCausalLM, _WANTED, **settings)
    model = conv1d_to_linear(model).to(place)
    _check_padding(name, model)
    return model, tokenizer


def read_configuration(name: str | os.PathLike[str]) -> PretrainedConfig:
    """The configuration of a causal language model from its config.json alone; its weights are not needed.

    Raises:
        ModelError: no such model, no access to it, or no configuration of a causal language model.
    """
    name = os.fspath(name)
    folder = find_folder(name, None, whole=False)
    check_files(name, folder, whole=False)
    return _read_config(name, folder)


def convert_checkpoint(name: str | os.PathLike[str], folder: str | os.PathLike[str]) -> Path:
    """Write a model whose weights are only in pytorch_model.bin, as OPT's and CLIP's on the hub, as safetensors.

    The dtypes stay. torch reads the old file with weights_only=True, so that nothing in it runs.

    Args:
        name: a local folder, or a repository of the hub, which is downloaded.
        folder: a new or empty one.

    Raises:
        ModelError: as `load_language_model`.
        OSError: the hub or a file is out of reach, or `folder` has content.
    """
    name, folder = os.fspath(name), Path(folder)
    images = isinstance(config := read_config(name, name), CLIPConfig)
    kind = (CLIPModel, "a CLIP model") if images else (AutoModelForCausalLM, _WANTED)
    config = config if images else _read_config(name, name)
    with replacing_folder(folder) as temporary:
        model = read_model(name, name, *kind, config=config, dtype="auto", use_safetensors=False, weights_only=True)
        with quiet():
            model.save_pretrained(temporary)
        if images:
            shutil.copy(cached_file(name, PREPROCESSING), temporary)
        read_tokenizer(name, name).save_pretrained(temporary)
        share(temporary)
    return folder


def max_positions(model: PreTrainedModel) -> int | None:
    """The longest sequence in tokens that the model's configuration allows; None if it names no limit."""
    config = model.config.get_text_config()
    for attribute in ("max_position_embeddings", "n_positions"):
        if isinstance(limit := getattr(config, attribute, None), int) and limit > 0:
            return limit
    return None


@torch.no_grad()
def _check_padding(name: str, model: PreTrainedModel) -> None:
    """Raise ModelError unless a text has the same logits alone and padded on the left, beside a longer one.

    Models that ignore the mask or the positions would give scores that depend on the rest of the batch. The longer text
    is seven tokens; a model that cannot be called so is refused, too.
    """
    longer = [number % model.config.get_text_config().vocab_size for number in range(1, 8)]
    device = model_device(model)
    try:
        with evaluation_mode(model):
            alone, padded = (
                model(**left_padded(rows, device), use_cache=False).logits[0, -3:].float()
                for rows in ([longer[:3]], [longer[:3], longer])
            )
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        if is_memory_shortage(error):
            raise
        why = f"cannot be called with padding on the left ({first_line(error)})"
        raise ModelError(f"{name} {why}: give another model.") from None
    of_spread, of_size = (0.2, 4e-3) if model.dtype.itemsize < 4 else (1e-3, 1e-5)  # equal logits have no spread
    if (padded - alone).abs().max() > of_spread * alone.std() + of_size * alone.abs().max():
        raise ModelError(
            f"{name} is of type {model.config.model_type!r}, whose answers depend on the padding beside them: it "
            "ignores the attention mask or the positions; give another one, such as OPT or Llama."
        )


def _read_config(name: str, folder: str | Path) -> PretrainedConfig:
    config = read_config(name, folder)
    kind, family = type(config), config.model_type
    # Encoders such as BERT have a class for causal language modelling, too, but their weights are of no use in it.
    encoder = kind in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING or encoder or getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{name} is of type {family!r}, no causal language model; give one, such as OPT or Llama.")
    takes = inspect.signature(MODEL_FOR_CAUSAL_LM_MAPPING[kind].forward).parameters
    if not {"attention_mask", "past_key_values"} <= takes.keys():  # such as Mamba, RWKV and the first GPT
        raise ModelError(
            f"{name} is of type {family!r}, without the attention mask and the cache of keys and values that options "
            "are scored with; give another one, such as OPT or Llama."
        )
    refuse_quantized(name, config)
    return config
