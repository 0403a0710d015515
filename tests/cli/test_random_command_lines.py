"""Random command lines: whatever comes, one line, a documented exit code, and nothing written.

RMBOOK_FUZZ multiplies how many are tried; the models and tasks named here do not exist, so that nothing is loaded.
"""

import json
import random
from dataclasses import fields

import pytest
from command_line import call, refused
from fuzzing import seeds

from rmbook.cli.sweep import SweepFlags
from rmbook.methods.settings import METHOD_SETTINGS
from rmbook.runs.config import RunConfig
from rmbook.settings import kinds_of

LONGEST = 400
COMMANDS = ("train", "evaluate", "describe", "generate", "report", "sweep run", "sweep status", "sweep export", "trian")
SWEEP_FLAGS = tuple(f"--{entry.name.replace('_', '-')}" for entry in fields(SweepFlags))
FLAGS = tuple(f"--{entry.name.replace('_', '-')}" for entry in fields(RunConfig) if entry.name != "settings")
FLAGS += SWEEP_FLAGS
FLAGS += ("--set", "--set", "--set", "--config", "--output", "--resume", "--quiet", "--split")
FLAGS += ("--predictions", "--prompt")
FLAGS += ("--csv", "--as", "--timing", "--nothing", "-x", "--", "--lr")
SETTINGS = tuple({entry.name for kind in METHOD_SETTINGS.values() for entry in fields(kind)} | {"seed", "name", "a.b"})
VALUES = (
    *("", " ", "0", "-1", "1", "0.5", "1e-9", "1e400", "10**30", str(10**30), "9" * 5000, "nan", "inf", "-inf", "NaN"),
    *("x", "a/b", "nowhere", "~", "~nobody-here/x", "./~", "/", "/dev/null", "/proc/1/mem", ".."),
    *("x" * 300, "y/" * 3000),
    *("[1]", "[" * 5000, '{"a": 1}', '"', "null", "true", "no", "{" * 3, "\udcff", "\x1b[31mred", "a\nb", "\0"),
    *("rte", "RTE", "sst2", "lora", "adalora", "prefix", "random_masking", "cosine", "bf16", "qv", "a,b", ",", "é😀"),
)


def line(draw: random.Random) -> list[str]:
    words = draw.choice(COMMANDS).split()
    if words == ["train"] and draw.random() < 0.7:  # else the settings that are missing hide all others
        words += ["--model", "nowhere", "--data-dir", "nowhere", "--task", "rte", "--lr", "1"]
        words += ["--method", draw.choice([*METHOD_SETTINGS])]
    for _ in range(draw.randrange(6)):
        flag, value = draw.choice(FLAGS), draw.choice(VALUES)
        words += [flag, f"{draw.choice(SETTINGS)}={value}"] if flag == "--set" else [flag, value]
        if draw.random() < 0.1:
            words.append(draw.choice(VALUES))
    return words


def test_random_command_lines_end_in_one_line_and_write_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for seed in seeds(250):
        words = line(random.Random(seed))
        answer = call(*words, input="")
        said = (seed, words if len(str(words)) < 2000 else words[:3], answer.exit_code, answer.output[-500:])
        if answer.exit_code == 0:  # help, or a description of a method
            assert "describe" in words, said
            continue
        assert answer.exit_code == 2 and isinstance(answer.exception, SystemExit), said
        assert answer.stderr.startswith("rmbook: ") and answer.stderr.count("\n") == 1, said
        assert len(answer.stderr) <= LONGEST + 1 and answer.stderr.strip().isprintable(), said
        assert answer.stdout == "", said
        assert not list(tmp_path.iterdir()), said


WRONG = {
    "lora": ["alpha=x", "alpha=NaN", "alpha=0", "rank=1e30", "rank=2.5", "rank=true", "seed=1"]
    + ["model=a", "targets=qv", "name=a"],
    "adalora": ["interval=x", "interval=0", "orthogonality=NaN", "total_steps=x", "final_steps=5", "initial_rank=4"],
    "random_masking": ["structure=[1]", "structure=1", "scale=x", "scale=Infinity", "backend=gpu", "ratio=1"]
    + ["density=1"],
    "prefix": ["words=5", 'words=["a"]', "words=[1]", "length=0", "length=1000000", "words=[true,1,1,1,1]"],
    "adapter": ["bias=no", "bias=1", "width=-1", "train_norms=0.5"],
    "bitfit": ["norms=yes", "rank=8"],
    "full": ["rank=8"],
}


@pytest.mark.parametrize("pair", [(method, text) for method, texts in WRONG.items() for text in texts], ids=str)
def test_a_wrong_setting_of_a_method_is_refused_before_anything_is_loaded(pair, tmp_path):
    method, text = pair
    base = ["train", "--model", tmp_path / "nowhere", "--task", "rte", "--lr", "1e-2", "--method", method]
    base += ["--ratio", "1e-3"] if method == "random_masking" else []
    answer = call(*base, "--set", text)
    name = text.partition("=")[0]
    assert answer.exit_code == 2 and name in answer.stderr and "nowhere" not in answer.stderr, answer.stderr
    described = call("describe", "--model", tmp_path / "nowhere", *base[7:], "--set", text)
    assert described.exit_code == 2 and name in described.stderr and "nowhere" not in described.stderr


@pytest.mark.parametrize("entry", fields(RunConfig), ids=lambda entry: entry.name)
def test_each_setting_of_a_run_is_strictly_typed(entry, tmp_path):
    """A value of another type from a file is refused by the setting's name."""
    good = {"model": "a", "data_dir": "nowhere", "task": "RTE", "learning_rate": 1e-2, "ratio": 1e-3}
    kinds = kinds_of(entry)
    wrong = [[[]], {"a": {"b": 1}}, *([] if bool in kinds else [True]), *([] if float in kinds else [1.5])]
    wrong += [] if str in kinds else ["no", float("nan")]
    wrong += [10**30] if int in kinds else []
    wrong += ["\ud800", "a\0b", ""] if str in kinds else []
    for value in wrong:
        file = tmp_path / "settings.json"
        file.write_text(json.dumps(good | {entry.name: value}))
        unknown = dict in kinds and isinstance(value, dict)
        refused(call("train", "--config", file), "does not take 'a'" if unknown else entry.name)
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]
