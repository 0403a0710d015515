"""A run goes on with the examples and the base weights that it began with, wherever they are by then, or not at all."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import safetensors.torch
from command_line import call, refused
from task_files import one_line
from tiny_runs import SIZES, rows, untimed

from rmbook.errors import TaskError
from rmbook.offline.sentences import write_generated_examples
from rmbook.offline.tiny_language import make_tiny_checkpoint
from rmbook.runs.config import RunConfig
from rmbook.runs.evaluate import continue_text, evaluate_run
from rmbook.runs.result import RunError
from rmbook.runs.run import resume_run, start_run
from rmbook.training.checkpoint import TrainingInterrupted


@pytest.fixture
def begun(tmp_path):
    """A run that was stopped after its first epoch of two; its model and its data lie beside it."""
    make_tiny_checkpoint(tmp_path / "model", pretrain_steps=0)
    write_generated_examples(tmp_path / "data", 80, 30)
    places = {"model": str(tmp_path / "model"), "data_dir": str(tmp_path / "data")}
    config = RunConfig(task="SST-2", learning_rate=1e-2, ratio=1e-2, epochs=2, **places, **SIZES)
    with pytest.raises(TrainingInterrupted):
        start_run(config, tmp_path / "run", progress=False, after_epoch=lambda row: True)
    return tmp_path


def change_examples(folder):
    path = folder / "data" / "SST-2" / "dev.tsv"
    path.write_text(path.read_text().replace("\t1", "\t0"))


def change_weights(folder):
    path = folder / "model" / "model.safetensors"
    tensors = {name: tensor * 1.01 for name, tensor in safetensors.torch.load_file(path).items()}
    safetensors.torch.save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize(("change", "what"), [(change_examples, "the examples"), (change_weights, "the base model")])
def test_a_run_whose_inputs_have_changed_is_not_taken_up(change, what, begun):
    written = {path.name: path.read_bytes() for path in (begun / "run").iterdir()}
    change(begun)
    with pytest.raises(RunError, match=f"{what}.* are not those that the run in .* began with") as error:
        resume_run(begun / "run", progress=False)
    one_line(error)
    assert {path.name: path.read_bytes() for path in (begun / "run").iterdir()} == written


def test_a_run_whose_inputs_were_moved_ends_in_the_same_bits(begun):
    shutil.copytree(begun / "run", begun / "other")
    resume_run(begun / "run", progress=False)
    for name in ("model", "data"):
        (begun / name).rename(begun / f"moved-{name}")
    moved = {"model": str(begun / "moved-model"), "data_dir": str(begun / "moved-data")}
    resume_run(begun / "other", progress=False, **moved)
    one, other = (untimed(begun / name) for name in ("run", "other"))
    assert one[1:] == other[1:] and one[0]["test"] == other[0]["test"] and len(rows(begun / "other")) > 2


def test_damaged_fingerprints_are_refused_and_missing_ones_are_of_an_older_version(begun):
    (begun / "run" / "inputs.json").write_text("[1]")
    with pytest.raises(RunError, match="inputs.json is damaged"):
        resume_run(begun / "run", progress=False)
    (begun / "run" / "inputs.json").unlink()
    assert resume_run(begun / "run", progress=False)["status"] == "completed"


def test_a_finished_run_is_scored_wherever_its_inputs_are(begun):
    run = str(begun / "run")
    resume_run(run, progress=False)
    wanted = evaluate_run(run, None, progress=False)
    for name in ("model", "data"):
        (begun / name).rename(begun / f"moved-{name}")
    model, data = str(begun / "moved-model"), {"data_dir": str(begun / "moved-data")}
    assert evaluate_run(run, model, changes=data, progress=False) == wanted
    assert isinstance(continue_text(run, model, "It was", 3, None), str)
    for change, folder, what in ((change_examples, "data", "examples"), (change_weights, "model", "base model")):
        (begun / f"moved-{folder}").rename(begun / folder)
        change(begun)
        (begun / folder).rename(begun / f"moved-{folder}")
        with pytest.raises(RunError, match=f"the {what}.* are not those that the run") as error:
            evaluate_run(run, model, changes=data, progress=False)
        one_line(error)
        if folder == "data":
            data = {}


def test_what_a_kill_left_half_written_is_removed(begun):
    for name in (".checkpoint.safetensors.a1b2c3d4", ".metrics.jsonl.a1b2c3d4", ".my-notes"):
        (begun / "run" / name).write_text("half")
    resume_run(begun / "run", progress=False)
    assert [path.name for path in (begun / "run").glob(".*")] == [".my-notes"]


def test_the_commands_take_moved_inputs(begun):
    for name in ("model", "data"):
        (begun / name).rename(begun / f"moved-{name}")
    moved = ["--model", begun / "moved-model", "--data-dir", begun / "moved-data"]
    refused(call("train", "--resume", begun / "run", "--quiet"))
    answer = call("train", "--resume", begun / "run", *moved, "--quiet")
    assert answer.exit_code == 0, answer.output
    prompt = ["generate", begun / "run", "--prompt", "It", *moved[:2]]
    for command in (["evaluate", begun / "run", *moved, "--quiet"], prompt):
        answer = call(*command)
        assert answer.exit_code == 0, answer.output


def test_a_missing_spops_is_said_before_anything_is_read(begun):
    config = {"model": "nowhere/at-all", "task": "SST-2", "learning_rate": 1e-2, "ratio": 1e-2}
    with pytest.raises(ImportError, match="spops") as error:
        start_run(RunConfig(**config, settings={"backend": "spops"}), begun / "other", progress=False)
    one_line(error)
    assert not (begun / "other").exists()


def test_a_token_that_the_model_does_not_know_is_refused_before_a_folder_is_made(begun):
    path = begun / "model" / "tokenizer.json"
    content = json.loads(path.read_text())
    token = {"id": len(content["model"]["vocab"]), "content": "was", "single_word": False, "lstrip": False}
    added = {**token, "rstrip": False, "normalized": False, "special": False}
    path.write_text(json.dumps(content | {"added_tokens": [*content["added_tokens"], added]}))
    config = RunConfig(**json.loads((begun / "run" / "config.json").read_text()))
    with pytest.raises(TaskError, match=r"gives a token 7\d\d, but the model knows 0 to 7\d\d") as error:
        start_run(config, begun / "other", progress=False)
    one_line(error)
    assert not (begun / "other").exists()


@pytest.mark.parametrize("limit", [300, 3000])
def test_a_full_disk_is_one_line_wherever_it_strikes(limit, begun):
    """A limit on the size of files, as a full disk is: of the settings, of the measurements."""
    code = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    code += "; import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); from rmbook.cli.app import app; app()"
    config = json.loads((begun / "run" / "config.json").read_text())
    given = ["--config", begun / "run" / "config.json", "--output", begun / "new", "--epochs", 30, "--quiet"]
    assert config["epochs"] == 2
    answer = subprocess.run([sys.executable, "-c", code, "train", *map(str, given)], capture_output=True, text=True,
                            timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
    assert answer.returncode == 1 and answer.stderr.count("\n") == 1 and "rmbook: " in answer.stderr, answer.stderr
    assert not list(begun.glob("new/.*"))
