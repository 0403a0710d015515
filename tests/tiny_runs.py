"""Tiny runs: a model and settings as fixtures, and what a run has written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rmbook.offline.tiny_language import make_tiny_checkpoint

SIZES = {"train_size": 48, "dev_size": 12, "test_size": 20}


UNTIMED = ("seconds", "tokens_per_second", "peak_memory", "stamp")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny-opt", pretrain_steps=0)


@pytest.fixture
def settings(tiny, shared) -> dict:
    sst2 = {"model": str(tiny), "task": "SST-2", "data_dir": str(shared / "data/sst2")}
    return sst2 | {"learning_rate": 1e-2, "ratio": 1e-2, "epochs": 2} | SIZES


def flags(settings, output) -> list[str]:
    pairs = [(f"--{name.replace('_', '-')}", str(value)) for name, value in settings.items()]
    return ["train", *(part for pair in pairs for part in pair), "--output", str(output), "--quiet"]


def rmbook(*arguments, **settings):
    """A process of its own, as a user's shell starts it."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "rmbook", *arguments], env=environment, **settings)


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def untimed(folder):
    result = {k: v for k, v in json.loads((folder / "result.json").read_text()).items() if k not in UNTIMED}
    metrics = [{k: v for k, v in row.items() if k != "seconds"} for row in rows(folder)]
    return result, metrics, (folder / "adapter.safetensors").read_bytes()
