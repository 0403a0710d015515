"""Whole runs: the losses of a plain PyTorch script, folders that survive kills, several processes, what comes out."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from dense_script import losses
from tiny_runs import flags, rmbook, rows, untimed
from typer.testing import CliRunner

from rmbook.adapters.adapter_file import load_adapter, read_adapter, save_adapter
from rmbook.cli.app import app
from rmbook.models.language import load_language_model
from rmbook.runs.config import RunConfig
from rmbook.runs.run import resume_run, start_run


@pytest.mark.parametrize("dropout", [0.0, None], ids=["without dropout", "with the model's dropout"])
def test_thirty_steps_have_the_losses_of_a_dense_mask_in_plain_pytorch(dropout, settings, tmp_path):
    settings |= {"epochs": 5, "dropout": dropout}
    result = start_run(RunConfig(**settings), tmp_path / "run", progress=False)
    assert result["status"] == "completed" and result["steps"] == 30
    model, _ = load_language_model(settings["model"])
    masking = load_adapter(model, tmp_path / "run" / "adapter.safetensors")
    save_adapter(masking, tmp_path / "positions.safetensors", store_positions=True)
    wanted = losses(
        settings["model"],
        Path(settings["data_dir"]) / "SST-2" / "train.tsv",
        tmp_path / "positions.safetensors",
        steps=30,
        learning_rate=1e-2,
        train_size=48,
        dev_size=12,
        dropout=dropout,
    )
    found = [row["loss"] for row in rows(tmp_path / "run") if "loss" in row]
    assert found == pytest.approx(wanted, abs=1e-5)
    assert max(wanted) - min(wanted) > 0.1  # the comparison is of steps that change something


@pytest.mark.parametrize("task", ["RTE", "CB", "BoolQ", "COPA", "ReCoRD", "DROP"])
def test_every_kind_of_task_trains_and_is_scored(task, tiny, shared, tmp_path):
    folder = shared / "data" / task.lower()
    config = RunConfig(
        model=str(tiny),
        task=task,
        data_dir=str(folder),
        learning_rate=1e-2,
        density=0.1,
        epochs=1,
        train_size=2,
        dev_size=1,
        test_size=4,
        max_length=400,
    )
    result = start_run(config, tmp_path / "run", progress=False)
    metric = "f1" if task == "DROP" else "accuracy"
    assert result["status"] == "completed" and result["steps"] == 1
    assert set(result["test"]) == {metric} and 0 <= result["test"][metric] <= 1
    assert (result["history"][0]["dev_accuracy"] is None) == (task in ("ReCoRD", "DROP"))
    assert result["history"][0]["dev_loss"] > 0


def test_the_result_and_the_adapter_belong_together(settings, tmp_path):
    folder = tmp_path / "run"
    result = start_run(RunConfig(**settings), folder, progress=False)
    assert json.loads((folder / "result.json").read_text()) == result
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "inputs.json",
        "metrics.jsonl",
        "adapter.safetensors",
        "result.json",
    }
    adapter = read_adapter(folder / "adapter.safetensors")
    assert sum(mask.nnz for mask in adapter.masks.values()) == result["trainable"]
    assert result["ratio"] == result["trainable"] / result["total"] == pytest.approx(1e-2, rel=0.1)
    answer = CliRunner().invoke(app, ["evaluate", str(folder), "--quiet"])
    assert answer.exit_code == 0, answer.output
    assert json.loads(answer.stdout) == {"task": "SST-2", "split": "test", "records": 20} | result["test"]


def test_an_adapter_that_cannot_be_written_leaves_a_run_that_goes_on(settings, tmp_path):
    adapter = tmp_path / "run" / "adapter.safetensors"

    def block(row):
        adapter.mkdir(exist_ok=True)
        return False

    with pytest.raises(OSError, match="folder"):
        start_run(RunConfig(**settings), adapter.parent, progress=False, after_epoch=block)
    assert not (adapter.parent / "result.json").exists()
    adapter.rmdir()
    result = resume_run(adapter.parent, progress=False)
    assert result["status"] == "completed" and set(read_adapter(adapter).values) and result["test"]


@pytest.mark.parametrize("method", ["full", "lora", "adalora", "adapter", "prefix", "bitfit", "structured_masking"])
def test_every_method_comes_back_from_its_file(method, settings, tmp_path):
    settings = settings | {"method": method, "epochs": 1, "learning_rate": 1e-3}
    if method != "structured_masking":
        del settings["ratio"]
    result = start_run(RunConfig(**settings), tmp_path / "run", progress=False)
    for split, size in (("test", 20), ("dev", 12)):
        answer = CliRunner().invoke(app, ["evaluate", str(tmp_path / "run"), "--split", split, "--quiet"])
        assert answer.exit_code == 0, answer.output
        score = json.loads(answer.stdout)
        assert score["records"] == size
        wanted = result["test"]["accuracy"] if split == "test" else result["history"][0]["dev_accuracy"]
        assert score["accuracy"] == wanted


def test_a_run_that_diverges_is_a_result(settings, tmp_path):
    arguments = flags(settings | {"learning_rate": 1e30}, tmp_path / "run")
    answer = CliRunner().invoke(app, arguments)
    assert answer.exit_code == 0 and "diverged" in answer.stdout
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "diverged" and result["test"] is None and result["best_epoch"] == 0
    assert not (tmp_path / "run" / "adapter.safetensors").exists()
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()
    again = CliRunner().invoke(app, ["train", "--resume", str(tmp_path / "run")])
    assert again.exit_code == 0 and "diverged" in again.stdout


def test_sigkill_then_resume_gives_the_same_bytes(settings, tmp_path):
    settings |= {"epochs": 4}
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    start_run(RunConfig(**settings), undisturbed, progress=False)
    process = rmbook(*flags(settings, killed))
    _wait_for(lambda: len(rows(killed)) >= 9, killed / "metrics.jsonl", process)  # in the second epoch
    process.kill()
    process.wait()
    assert not (killed / "result.json").exists() and (killed / "checkpoint.safetensors").exists()
    with open(killed / "metrics.jsonl", "a") as file:
        file.write('{"step": 999, "lo')  # a line that the kill cut off
    resume_run(killed, progress=False)
    assert untimed(killed) == untimed(undisturbed)


def test_ctrl_c_leaves_a_run_that_goes_on(settings, tmp_path):
    settings |= {"epochs": 4}
    undisturbed, stopped = tmp_path / "undisturbed", tmp_path / "stopped"
    start_run(RunConfig(**settings), undisturbed, progress=False)
    process = rmbook(*flags(settings, stopped), stderr=subprocess.PIPE, text=True)
    _wait_for(lambda: len(rows(stopped)) >= 3, stopped / "metrics.jsonl", process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130 and f"rmbook train --resume {stopped}" in said and said.count("\n") == 1
    resume_run(stopped, progress=False)
    assert untimed(stopped) == untimed(undisturbed)


def _wait_for(condition, path, process):
    while not (path.exists() and condition()):
        assert process.poll() is None, "the run ended before it could be disturbed"
        time.sleep(0.01)


def test_two_processes_take_the_steps_of_one(settings, tmp_path):
    """On the CPU (gloo), 49 examples end in a batch of one, of which the second process has nothing."""
    settings |= {"train_size": 49, "dropout": 0.0, "dtype": "float64"}
    start_run(RunConfig(**settings), tmp_path / "one", progress=False)
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "rmbook",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [*launch, *flags(settings, tmp_path / "two")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two"))
    assert (one["processes"], two["processes"]) == (1, 2) and one["test"] == two["test"]
    for got, wanted in zip(rows(tmp_path / "two"), rows(tmp_path / "one"), strict=True):
        assert got | {"seconds": 0} == pytest.approx(wanted | {"seconds": 0}, rel=1e-9)
    values = [read_adapter(tmp_path / name / "adapter.safetensors").values for name in ("one", "two")]
    for name, value in values[0].items():
        torch.testing.assert_close(values[1][name], value, rtol=1e-7, atol=1e-10)


def test_out_of_memory_says_what_to_change_and_the_run_goes_on(settings, tmp_path, monkeypatch):
    from rmbook.runs import run as runs

    folder, train = tmp_path / "run", runs.train

    def small_machine(model, *arguments, **keywords):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(runs, "train", small_machine)
    answer = CliRunner().invoke(app, flags(settings, folder))
    assert answer.exit_code == 1 and answer.stderr.count("\n") == 1
    for advice in ("--micro-batch-size 4", "--gradient-checkpointing", "--dtype bfloat16", f"--resume {folder}"):
        assert advice in answer.stderr
    monkeypatch.setattr(runs, "train", train)
    again = CliRunner().invoke(app, ["train", "--resume", str(folder), "--micro-batch-size", "4", "--quiet"])
    assert again.exit_code == 0 and json.loads((folder / "result.json").read_text())["status"] == "completed"
