"""The command line with what users get wrong: one line that says what to do, exit code 2, nothing written."""

import json
from pathlib import Path

import pytest
from command_line import call, refused
from tiny_runs import SIZES, flags

from rmbook.errors import ConfigError
from rmbook.offline.tiny_language import make_tiny_checkpoint
from rmbook.runs.config import RunConfig, make_config, read_config
from rmbook.runs.run import start_run


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


BAD = {
    "unknown task": ({"task": "sst3"}, ["SST-2"]),
    "unknown method": ({"method": "random_mask"}, ["random_masking"]),
    "unknown model": ({"model": "facebook/opt-126m"}, ["facebook/opt-125m", "hf download"]),
    "model folder without a model": ({"model": "EMPTY"}, ["config.json"]),
    "unknown dtype": ({"dtype": "bfloat"}, ["bfloat16"]),
    "unknown target": ({"targets": "qq_proj"}, ["q_proj"]),
    "unknown setting of a method": ({"method": "lora", "ratio": None, "set": "rnk=2"}, ["rank"]),
    "setting without a value": ({"set": "rank"}, ["--set rank=16"]),
    "setting out of range": ({"method": "lora", "ratio": None, "set": "rank=0"}, ["rank"]),
    "ratio beyond what the targets hold": ({"ratio": 0.9}, ["ratio", "0.9"]),
    "ratio and density": ({"density": 0.1}, ["ratio", "density"]),
    "neither ratio nor density": ({"ratio": None}, ["ratio", "density"]),
    "negative ratio": ({"ratio": -0.1}, ["ratio", "-0.1"]),
    "ratio for lora": ({"method": "lora"}, ["lora takes no ratio"]),
    "learning rate of zero": ({"learning-rate": 0}, ["learning_rate", "positive"]),
    "no learning rate": ({"learning-rate": None}, ["learning_rate", "--lr"]),
    "no epochs": ({"epochs": 0}, ["epochs"]),
    "no training records": ({"train-size": 0}, ["train_size"]),
    "no dev records": ({"dev-size": 0}, ["dev_size"]),
    "a prompt longer than the model": ({"max-length": 5000}, ["1024", "max_length"]),
    "no room for a prompt": ({"max-length": 1}, ["max_length"]),
    "no such data folder": ({"data-dir": "/nowhere"}, ["/nowhere"]),
    "no data and no hub": ({"data-dir": None}, ["--data-dir"]),
    "dropout of one": ({"dropout": 1}, ["dropout"]),
    "negative seed": ({"seed": -1}, ["seed"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_nothing_written(case, settings, tmp_path, monkeypatch):  # noqa: F811
    changes, parts = BAD[case]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    given = {name.replace("_", "-"): value for name, value in settings.items()} | changes
    given = {name: value for name, value in given.items() if value is not None}
    if given["model"] == "EMPTY":
        given["model"] = str(tmp_path / "empty")
    refused(call(*flags(given, tmp_path / "run")), *parts)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


TSV = "sentence\tlabel\n"
BAD_FILES = {
    "missing column": ("sentence\tlabels\ngood film\t1\n", "label"),
    "empty split": (TSV, "no examples"),
    "label out of range": (TSV + "good film\t2\n", "label"),
    "no text": ("", "no examples"),
    "binary": (b"\xff\xfe\x00\x01", "train.tsv"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_data_is_one_line_and_nothing_written(case, tiny, tmp_path):  # noqa: F811
    content, part = BAD_FILES[case]
    folder = tmp_path / "SST-2"
    folder.mkdir()
    content = content if isinstance(content, bytes) else content.encode()
    (folder / "train.tsv").write_bytes(content)
    (folder / "dev.tsv").write_text(TSV + "good film\t1\n")
    values = {"model": tiny, "task": "sst2", "lr": 1e-2, "ratio": 1e-2, "data-dir": tmp_path}
    refused(call(*flags(values, tmp_path / "run")), part)
    assert not (tmp_path / "run").exists()


def test_a_folder_with_content_is_never_overwritten(settings, tmp_path):  # noqa: F811
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    refused(call(*flags(settings, tmp_path / "run")), "--resume", "--output")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_resume_of_nothing_with_other_settings_or_after_damage(settings, tmp_path):  # noqa: F811
    refused(call("train", "--resume", tmp_path / "nothing"), "config.json")
    folder = tmp_path / "run"
    start_run(RunConfig(**settings), folder, progress=False)
    refused(call("train", "--resume", folder, "--lr", "1"), "--learning-rate")
    result = (folder / "result.json").read_bytes()
    (folder / "result.json").unlink()
    (folder / "checkpoint.safetensors").write_bytes(b"torn")
    refused(call("train", "--resume", folder, "--quiet"), "checkpoint.safetensors")
    (folder / "checkpoint.safetensors").unlink()
    again = call("train", "--resume", folder, "--quiet")
    assert again.exit_code == 0
    assert json.loads(result)["history"] == json.loads((folder / "result.json").read_text())["history"]


def test_flags_come_before_the_file_and_the_run_keeps_all_settings(settings, tmp_path):  # noqa: F811
    file = tmp_path / "settings.yaml"
    lines = [f"{name}: {value}" for name, value in (settings | {"learning_rate": "1e-2", "epochs": 1}).items()]
    file.write_text("\n".join(lines))
    answer = call("train", "--config", file, "--seed", 3, "--output", tmp_path / "run", "--quiet")
    assert answer.exit_code == 0, answer.output
    kept = json.loads((tmp_path / "run" / "config.json").read_text())
    assert kept == RunConfig(**settings | {"epochs": 1, "seed": 3}).to_dict()
    assert make_config(read_config(tmp_path / "run" / "config.json")) == make_config(kept)
    metrics = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("run",)]
    again = call("train", "--config", tmp_path / "run" / "config.json", "--output", tmp_path / "again", "--quiet")
    assert again.exit_code == 0
    metrics.append((tmp_path / "again" / "metrics.jsonl").read_text())
    losses = [[json.loads(line).get("loss") for line in text.splitlines()] for text in metrics]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("learning_rat: 1", "learning_rate"),
        ("- a list", "list"),
        ("{", "settings"),
        ("model: a\ntask: rte\nlearning_rate: fast", "fast"),
        ("model: a\ntask: rte", "learning_rate"),
    ],
)
def test_a_bad_settings_file_is_one_line(text, part, tmp_path):
    (tmp_path / "bad.yaml").write_text(text)
    refused(call("train", "--config", tmp_path / "bad.yaml"), part)
    refused(call("train", "--config", tmp_path / "missing.yaml"), "missing.yaml")


def test_the_same_settings_have_the_same_digest_and_folder():
    base = {"model": "facebook/opt-125m", "task": "rte", "learning_rate": 1e-2, "ratio": 1e-4}
    assert make_config(base).digest() == RunConfig(**base | {"task": "RTE"}).digest()
    assert make_config(base).digest() != RunConfig(**base | {"seed": 1}).digest()
    assert make_config(base).default_folder().name.startswith("opt-125m-RTE-random_masking-")
    with pytest.raises(ConfigError, match="density"):
        make_config(base | {"density": 0.1})


def test_evaluate_writes_answers_and_scores_a_model_as_it_is(settings, tmp_path):  # noqa: F811
    answers = tmp_path / "answers.jsonl"
    model = ["--model", settings["model"], "--task", "sst2", "--data-dir", settings["data_dir"], "--quiet"]
    answer = call("evaluate", *model, "--test-size", 30, "--predictions", answers)
    assert answer.exit_code == 0, answer.output
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    assert len(rows) == 30
    right = sum(row["answer"] in row["right"] for row in rows) / 30
    assert json.loads(answer.stdout)["accuracy"] == pytest.approx(right)
    refused(call("evaluate", *model, "--split", "tests"), "test")
    refused(call("evaluate", "--model", settings["model"]), "--task")
    refused(call("evaluate"), "--model")
    refused(call("evaluate", *model, "--predictions", tmp_path / "no" / "where.jsonl"), "folder")
    assert not (tmp_path / "no").exists()


def test_describe_says_what_is_there_and_what_would_be(settings, tmp_path):  # noqa: F811
    folder = tmp_path / "run"
    result = start_run(RunConfig(**settings), folder, progress=False)
    trained = f"{result['trainable']:,}"
    for path in (folder, folder / "adapter.safetensors"):
        answer = call("describe", path)
        assert answer.exit_code == 0 and trained in answer.stdout, answer.output
    planned = call("describe", "--model", settings["model"], "--method", "random_masking", "--ratio", "1e-2")
    assert planned.exit_code == 0 and trained in planned.stdout and f"{result['total']:,}" in planned.stdout
    lora = call("describe", "--model", settings["model"], "--method", "lora", "--set", "rank=4")
    assert lora.exit_code == 0 and f"{4 * 2 * 2 * 128:,}" in lora.stdout
    refused(call("describe"), "--model")
    refused(call("describe", tmp_path / "nothing"), "nothing")
    (tmp_path / "other.safetensors").write_bytes(b"no tensors")
    refused(call("describe", tmp_path / "other.safetensors"), "other.safetensors")


def test_generate_continues_a_text_and_refuses_what_is_too_long(tiny):  # noqa: F811
    one = call("generate", "--model", tiny, "--prompt", "the film was", "--max-new-tokens", 5)
    two = call("generate", "--model", tiny, "--prompt", "-", "--max-new-tokens", 5, input="the film was\n")
    assert one.exit_code == two.exit_code == 0 and one.stdout == two.stdout
    refused(call("generate", "--model", tiny, "--prompt", "a b " * 1000), "1024")
    refused(call("generate", "--model", tiny, "--prompt", ""), "empty")
    refused(call("generate", "--model", tiny), "--prompt")


@pytest.mark.parametrize("command", ["train", "evaluate", "describe", "generate"])
def test_help_has_examples(command):
    answer = call(command, "--help")
    assert answer.exit_code == 0 and f"  rmbook {command} " in answer.stdout


@pytest.mark.parametrize("kind", ["opt", "llama"])
def test_a_model_learns_and_its_run_says_so(kind, shared, tmp_path):
    """The shell leads to a lower loss, on real examples, through the genuine pipeline of both families."""
    model = make_tiny_checkpoint(tmp_path / kind, kind, pretrain_steps=0)
    values = {
        "model": model,
        "task": "SST-2",
        "data-dir": shared / "data/sst2",
        "lr": 1e-2,
        "density": 0.2,
        "epochs": 4,
    }
    values |= {name.replace("_", "-"): size for name, size in SIZES.items()}
    answer = call(*flags(values, tmp_path / "run"))
    assert answer.exit_code == 0, answer.output
    history = json.loads(Path(tmp_path / "run" / "result.json").read_text())["history"]
    assert history[-1]["train_loss"] < 0.9 * history[0]["train_loss"]
