"""A run goes on with the examples and the base weights that it began with, wherever they are by then, or not at all."""

import shutil

import pytest
import safetensors.torch
from task_files import one_line
from tiny_runs import SIZES, rows, untimed

from rmbook.offline.sentences import write_generated_examples
from rmbook.offline.tiny_language import make_tiny_checkpoint
from rmbook.runs.config import RunConfig
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
