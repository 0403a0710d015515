"""Runs on images from the command line to the report, against a plain loop, and after an interruption."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from command_line import call, refused
from dense_script import MaskedChange
from image_files import clip_fixture, small_cifar10, small_mnist  # noqa: F401 - one is a fixture
from tiny_runs import rows, untimed
from torch.nn.utils.parametrize import register_parametrization
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel, get_cosine_schedule_with_warmup

from rmbook.adapters.adapter_file import read_adapter
from rmbook.errors import TaskError
from rmbook.models.reuse import BaseModels
from rmbook.offline.tiny_clip import write_digits
from rmbook.offline.tiny_language import make_tiny_checkpoint
from rmbook.runs.config import RunConfig
from rmbook.runs.run import resume_run, start_run
from rmbook.sweeps.grid import plan
from rmbook.tasks.catalog import load_examples
from rmbook.tasks.images import IMAGE_TASKS
from rmbook.tasks.splits import sample_splits
from rmbook.training.checkpoint import TrainingInterrupted

SCHEDULE = {"batch_size": 8, "weight_decay": 0.1, "schedule": "cosine", "warmup_steps": 3, "max_steps": 10}


@pytest.fixture(scope="module", name="digits")
def digits_fixture(tmp_path_factory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(name="settings")
def settings_fixture(clip, digits) -> dict:  # noqa: F811
    places = {"model": str(clip), "task": "MNIST", "data_dir": str(digits), "learning_rate": 1e-2}
    return places | {"train_size": 48, "dev_size": 12, "test_size": 20, "ratio": 0.05, "targets": "mlp"} | SCHEDULE


# ---------------------------------------------------------------------------------------------------------- plain torch


def plain_losses(config: RunConfig, adapter: Path | None) -> list[float]:
    """The steps as one would write them in an afternoon; only the records and the mask's places are rmbook's."""
    clip = CLIPModel.from_pretrained(config.model).eval()
    clip.requires_grad_(False)
    task, tokenizer = IMAGE_TASKS[config.task], AutoTokenizer.from_pretrained(config.model)
    head = []
    for name in task.classes:
        texts = tokenizer([text.format(name) for text in task.templates], padding=True, return_tensors="pt")
        pooled = clip.text_model(input_ids=texts["input_ids"], attention_mask=texts["attention_mask"]).pooler_output
        features = clip.text_projection(pooled)
        mean = (features / features.norm(dim=-1, keepdim=True)).mean(0)
        head.append(clip.logit_scale.exp() * mean / mean.norm())
    head = torch.stack(head)
    if adapter:
        trained = []
        for name, mask in read_adapter(adapter).masks.items():
            layer = clip.get_submodule(name)
            register_parametrization(layer, "weight", MaskedChange(mask.dense(torch.float32)))
            trained.append(layer.parametrizations.weight[0].change)
    else:
        trained = [*clip.vision_model.parameters(), *clip.visual_projection.parameters()]
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, config.learning_rate, (0.9, 0.999), 1e-8, config.weight_decay)
    schedule = get_cosine_schedule_with_warmup(optimizer, config.warmup_steps, config.max_steps)
    files = [load_examples(config.task, split, config.data_dir) for split in ("train", "validation")]
    train = sample_splits(*files, config.seed, config.train_size, config.dev_size, config.test_size).train
    processor, found = CLIPImageProcessor.from_pretrained(config.model), []
    generator = torch.Generator().manual_seed(config.seed)
    loader = torch.utils.data.DataLoader(train, config.batch_size, shuffle=True, generator=generator, collate_fn=list)
    while True:
        for batch in loader:
            pixels = processor([record.read() for record in batch], return_tensors="pt")["pixel_values"]
            features = clip.visual_projection(clip.vision_model(pixel_values=pixels).pooler_output)
            logits = features / features.norm(dim=-1, keepdim=True) @ head.T
            loss = F.cross_entropy(logits, torch.tensor([record.gold[0] for record in batch]))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, config.max_grad_norm)
            optimizer.step()
            schedule.step()
            found.append(loss.item())
            if len(found) == config.max_steps:
                return found


@pytest.mark.parametrize("method", ["random_masking", "full"])
def test_ten_steps_are_those_of_a_plain_loop(method, settings, tmp_path):
    changes = {} if method == "random_masking" else {"ratio": None, "targets": None, "learning_rate": 1e-3}
    config = RunConfig(**settings | {"method": method} | changes)
    result = start_run(config, tmp_path / "run", progress=False)
    assert (result["status"], result["steps"], len(result["history"])) == ("completed", 10, 2)
    wanted = plain_losses(config, tmp_path / "run/adapter.safetensors" if method == "random_masking" else None)
    found = [row["loss"] for row in rows(tmp_path / "run") if "loss" in row]
    assert found == pytest.approx(wanted, abs=1e-4, rel=1e-4)
    assert max(wanted) - min(wanted) > 0.1  # the comparison is of steps that change something


# -------------------------------------------------------------------------------------------------------- whole runs


@pytest.mark.parametrize("method", ["random_masking", "full"])
def test_interrupted_and_taken_up_it_ends_in_the_same_bits(method, settings, tmp_path):
    changes = {} if method == "random_masking" else {"ratio": None, "targets": None, "learning_rate": 1e-3}
    config = RunConfig(**settings | {"method": method} | changes)
    start_run(config, tmp_path / "a", progress=False)
    with pytest.raises(TrainingInterrupted, match="step 7.*--resume"):  # in the second epoch, which ends with step 10
        start_run(config, tmp_path / "b", progress=False, after_epoch=lambda row: True)
    assert (tmp_path / "b/checkpoint.safetensors").exists() and not (tmp_path / "b/result.json").exists()
    resume_run(tmp_path / "b", progress=False)
    assert untimed(tmp_path / "b") == untimed(tmp_path / "a")


def test_the_commands_train_evaluate_describe_and_report(settings, tmp_path):
    flags = {name.replace("_", "-"): value for name, value in settings.items()}
    arguments = [part for name, value in flags.items() for part in (f"--{name}", value)]
    answer = call("train", *arguments, "--output", tmp_path / "run", "--quiet")
    assert answer.exit_code == 0 and "completed: best epoch" in answer.output and "test accuracy" in answer.output
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        *("config.json", "inputs.json", "metrics.jsonl", "adapter.safetensors", "result.json")
    }
    assert (result["max_length"], result["cut_prompts"], result["records"]) == (
        None,
        0,
        {"train": 48, "dev": 12, "test": 20},
    )
    answers = tmp_path / "answers.jsonl"
    answer = call("evaluate", tmp_path / "run", "--quiet", "--predictions", answers)
    assert json.loads(answer.stdout) == {"task": "MNIST", "split": "test", "records": 20} | result["test"]
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    assert sum([line["answer"]] == line["right"] for line in lines) / 20 == result["test"]["accuracy"]
    answer = call("evaluate", tmp_path / "run", "--quiet", "--split", "validation")
    assert json.loads(answer.stdout)["records"] == 300
    model = ("--model", settings["model"], "--task", "mnist", "--data-dir", settings["data_dir"])
    zero_shot = json.loads(call("evaluate", *model, "--split", "validation", "--quiet").stdout)
    assert zero_shot["records"] == 300 and 0 <= zero_shot["accuracy"] < 0.5  # the model is not pretrained
    described = call("describe", tmp_path / "run").output
    assert "schedule: cosine" in described and f"test accuracy {result['test']['accuracy']:.4f}" in described
    planned = call("describe", "--model", settings["model"], "--ratio", 0.05, "--targets", "mlp", "--method",
                   "random_masking").output  # fmt: skip
    assert f"{result['total']:,} parameters (the image encoder" in planned and f"{result['trainable']:,} of" in planned


def test_a_sweep_loads_a_model_once_for_a_task_and_is_reported(settings, tmp_path, monkeypatch):
    loads = []
    take = BaseModels.take
    monkeypatch.setattr(BaseModels, "take", lambda self, *a, **k: (take(self, *a, **k), loads.append(self.loads))[0])
    fixed = {name: value for name, value in settings.items() if name != "learning_rate"} | {"max_steps": 3}
    grid = {"fixed": fixed, "axes": {"learning_rate": [1e-2, 1e-3], "seed": [0, 1]}}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid))
    answer = call("sweep", "run", tmp_path / "grid.yaml", "--output", tmp_path / "sweep", "--quiet")
    assert answer.exit_code == 0 and "4 done" in answer.output and loads == [1, 1, 1, 1]
    text = call("report", tmp_path / "sweep").output
    assert "MNIST" in text and "random_masking ratio 0.05" in text and "the model is a folder" in text
    text = call("report", tmp_path / "sweep", "--as", "CLIP-ViT-B/16").output
    assert "batch_size 8, the paper's 128" in text


def test_the_identity_is_that_of_images_and_preprocessing(settings, tmp_path):
    def key(**changes):
        return plan([RunConfig(**settings | changes)])[0].key

    first = key()
    moved, data = shutil.copytree(settings["model"], tmp_path / "clip"), tmp_path / "MNIST"
    shutil.copytree(settings["data_dir"], data)
    assert key(model=str(moved), data_dir=str(tmp_path)) == first != key(max_steps=11)
    file = moved / "preprocessor_config.json"
    file.write_text(file.read_text().replace("0.48", "0.49"))
    assert key(model=str(moved)) != first
    write_digits(data, "upright")
    assert key(data_dir=str(data)) != first


@pytest.mark.parametrize("task", ["MNIST", "CIFAR10", "GTSRB"])
def test_real_images_train_and_are_scored(task, clip, shared, tmp_path):  # noqa: F811
    folder = {
        "MNIST": lambda: small_mnist(tmp_path / "data", shared),
        "CIFAR10": lambda: small_cifar10(tmp_path / "data", shared),
        "GTSRB": lambda: shared / "data/gtsrb",
    }[task]()
    sizes = {"train_size": 24, "dev_size": 8, "test_size": 16, "max_steps": 2}
    places = {"model": str(clip), "task": task, "data_dir": str(folder)}
    config = RunConfig(**places, learning_rate=1e-3, method="lora", targets="mlp", **SCHEDULE | sizes)
    result = start_run(config, tmp_path / "run", progress=False)
    assert result["status"] == "completed" and result["steps"] == 2 and 0 <= result["test"]["accuracy"] <= 1
    assert result["history"][0]["dev_accuracy"] is not None


# ------------------------------------------------------------------------------------------------------------ mistakes


BAD = {
    "a language model": ({"model": "OPT"}, "CLIP"),
    "images for a model of language": ({"model": "CLIP", "task": "SST-2", "data_dir": "SST2"}, "causal language model"),
    "no such files": ({"task": "SVHN"}, "train/CLASS/"),
    "no files at all": ({"data_dir": "/nowhere"}, "/nowhere"),
    "a longest prompt": ({"max_length": 100}, "max_length"),
    "a prefix": ({"method": "prefix", "ratio": None, "targets": None}, "words"),
    "another schedule": ({"schedule": "linear"}, "constant, cosine"),
    "no steps": ({"max_steps": 0}, "max_steps"),
    "dev of all": ({"dev_size": 700}, "smaller dev_size"),
}


@pytest.mark.parametrize("case", BAD)
def test_mistakes_are_one_line_and_leave_nothing(case, settings, clip, tmp_path):  # noqa: F811
    changes, part = BAD[case]
    places = {"CLIP": str(clip), "SST2": str(tmp_path)}
    if changes.get("model") == "OPT":
        places["OPT"] = str(make_tiny_checkpoint(tmp_path / "opt", pretrain_steps=0))
    (tmp_path / "SST-2").mkdir()
    for name in ("train", "dev"):
        (tmp_path / "SST-2" / f"{name}.tsv").write_text("sentence\tlabel\n" + "good film\t1\n" * 80)
    values = settings | {name: places.get(value, value) for name, value in changes.items()}
    pairs = [(f"--{name.replace('_', '-')}", value) for name, value in values.items() if value is not None]
    answer = call("train", *(part for pair in pairs for part in pair), "--output", tmp_path / "run", "--quiet")
    refused(answer, part)
    assert not (tmp_path / "run").exists()


def test_a_run_of_images_answers_no_prompts_and_no_other_task(settings, tmp_path):
    start_run(RunConfig(**settings | {"max_steps": 1}), tmp_path / "run", progress=False)
    refused(call("generate", tmp_path / "run", "--prompt", "What is this?"), "no text")
    for task in ("SVHN", "SST-2"):
        refused(call("evaluate", tmp_path / "run", "--task", task), "leave out --task")
    refused(call("evaluate", tmp_path / "run", "--max-length", 10), "max_length")


def test_an_image_that_turns_out_damaged_stops_the_run_in_one_line(settings, clip, shared, tmp_path):  # noqa: F811
    folder = small_cifar10(tmp_path / "data", shared)
    for path in (folder / "train").iterdir():
        path.write_bytes(path.read_bytes()[:200])
    values = settings | {"task": "CIFAR10", "data_dir": str(folder)}
    with pytest.raises(TaskError, match="png is no image that can be read"):
        start_run(RunConfig(**values), tmp_path / "run", progress=False)
