"""Fixtures: models saved with a tokenizer, as complete checkpoints."""

import shutil
from pathlib import Path

import pytest

from rmbook.offline.tiny_language import make_tiny_checkpoint


@pytest.fixture(scope="module", name="tokenizers")
def tokenizers_fixture(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    return {kind: make_tiny_checkpoint(root / kind, kind, pretrain_steps=0) for kind in ("opt", "llama")}


@pytest.fixture(name="saved")
def saved_fixture(tmp_path, tokenizers):
    def save(model, name="model", **settings) -> Path:
        model.save_pretrained(tmp_path / name, **settings)
        kind = "opt" if model.config.model_type in ("opt", "gpt2", "qwen2") else "llama"  # bytes, or words with marks
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tokenizers[kind] / file, tmp_path / name)
        return tmp_path / name

    return save
