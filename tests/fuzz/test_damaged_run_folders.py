"""Damaged folders of runs: described, evaluated and resumed as they were, or refused in one line and left alone."""

import json
import random
import shutil

import pytest
from command_line import call
from fuzzing import contents, damaged_bytes, damaged_json, damaged_value, ended_well, refusal, seeds, within_limits
from safetensors.torch import load, save
from tiny_sweep import tiny_settings

from rmbook.runs.config import make_config
from rmbook.runs.describe import describe_path
from rmbook.runs.evaluate import evaluate_run
from rmbook.runs.run import resume_run, start_run
from rmbook.tensor_files import digest_tensors
from rmbook.training.checkpoint import TrainingInterrupted

SIGNED = {"adapter.safetensors": "about", "checkpoint.safetensors": "info"}  # the text that is signed with the tensors
METHODS = {"masks": {"ratio": 1e-2}, "lora": {"method": "lora"}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run and an interrupted one of two methods."""
    folder = tmp_path_factory.mktemp("runs")
    sizes = {"train_size": 16, "dev_size": 4, "test_size": 4, "epochs": 2, "learning_rate": 1e-2}
    settings = tiny_settings(folder) | sizes
    for name, method in METHODS.items():
        start_run(make_config(settings | method), folder / name, progress=False)
        with pytest.raises(TrainingInterrupted):
            start_run(make_config(settings | method), folder / f"half {name}", False, after_epoch=lambda row: True)
    return folder


def signed(draw: random.Random, content: bytes, field: str) -> bytes:
    """A file of tensors with other content, signed as if rmbook had written it."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata, tensors = header["__metadata__"], load(content)
    if field not in metadata:  # an adapter of masks: test_damaged_adapters forges those
        return damaged_bytes(draw, content)
    kind, name = draw.randrange(4), draw.choice([*tensors])
    if kind == 0:
        tensors[draw.choice((name + "x", "now/", "optimizer/99:step", "optimizer/x", ""))] = tensors.pop(name)
    elif kind == 1:
        tensors[name] = draw.choice((tensors[name].double(), tensors[name][None], tensors[name].flatten()[:1] * 0))
    else:
        try:
            metadata[field] = json.dumps(damaged_value(draw, json.loads(metadata[field])))
        except UnicodeEncodeError:
            pass
    metadata["content"] = digest_tensors(tensors, metadata[field])
    return save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)


def damage(draw: random.Random, folder) -> str:
    name = draw.choice([path.name for path in sorted(folder.iterdir()) if path.is_file()])
    path = folder / name
    if draw.random() < 0.05:
        path.unlink()
        return f"no {name}"
    content = path.read_bytes()
    if name == "metrics.jsonl" and draw.random() < 0.7:
        lines = content.decode().splitlines()
        place = draw.randrange(len(lines))
        lines[place] = json.dumps(damaged_value(draw, json.loads(lines[place])))
        path.write_text("\n".join(lines) + "\n")
    elif name == "metrics.jsonl":
        path.write_bytes(damaged_bytes(draw, content))
    elif name not in SIGNED:
        path.write_bytes(damaged_json(draw, content.decode()))
    else:
        path.write_bytes(signed(draw, content, SIGNED[name]) if draw.random() < 0.6 else damaged_bytes(draw, content))
    return name


def damaged(draw: random.Random, source, folder) -> str:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    return damage(draw, folder)


def test_describe(runs, tmp_path):
    for seed in seeds(400):
        draw = random.Random(seed)
        name = damaged(draw, runs / draw.choice([*METHODS]), tmp_path / "run")
        before = contents(tmp_path)
        refusal(lambda: describe_path(tmp_path / "run"), (seed, name))
        assert contents(tmp_path) == before


def test_resuming_a_finished_run(runs, tmp_path):
    for seed in seeds(120):
        draw = random.Random(seed)
        name = damaged(draw, runs / "masks", tmp_path / "run")
        if not (tmp_path / "run/result.json").exists():
            continue  # it is not finished
        before = contents(tmp_path)
        with within_limits((seed, name)):
            ended_well(call("train", "--resume", tmp_path / "run", "--quiet"), (seed, name))
        assert contents(tmp_path) == before


def test_evaluate(runs, tmp_path):
    for seed in seeds(30):
        draw = random.Random(seed)
        name = damaged(draw, runs / draw.choice([*METHODS]), tmp_path / "run")
        before = contents(tmp_path)
        refusal(lambda: evaluate_run(str(tmp_path / "run"), None, progress=False), (seed, name))
        assert contents(tmp_path) == before


def test_resume(runs, tmp_path):
    for seed in seeds(30):
        draw = random.Random(seed)
        name = damaged(draw, runs / f"half {draw.choice([*METHODS])}", tmp_path / "run")
        before = contents(tmp_path)
        if refusal(lambda: resume_run(tmp_path / "run", progress=False), (seed, name)):
            assert contents(tmp_path) == before, (seed, name)
        else:
            describe_path(tmp_path / "run")
