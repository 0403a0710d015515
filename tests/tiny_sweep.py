"""A model and records for sweeps of real tiny runs."""

from pathlib import Path

from rmbook.offline.made import SENTENCES
from rmbook.offline.offline_files import write_generated_records
from rmbook.offline.tiny_language import make_tiny_checkpoint


def tiny_settings(folder: Path, **settings) -> dict:
    """What is fixed in a grid of tiny runs; the model and the records are made in the folder."""
    write_generated_records(folder / "data", **SENTENCES)
    make_tiny_checkpoint(folder / "tiny", pretrain_steps=0)
    places = {"model": str(folder / "tiny"), "task": "SST-2", "data_dir": str(folder / "data")}
    return places | {"train_size": 48, "dev_size": 12, "test_size": 20} | settings


def eight_runs(folder: Path) -> dict:
    """A grid of eight runs in four epochs, some of which diverge."""
    left_out = [{"learning_rate": 1e30, "seed": seed} for seed in (1, 2)] + [{"learning_rate": 1e-2, "seed": 2}]
    left_out += [{"learning_rate": 1e-4, "seed": 2}]
    axes = {"learning_rate": [1e-2, 1e30, 1e-3, 1e-4], "seed": [0, 1, 2]}
    return {"fixed": tiny_settings(folder, epochs=4, ratio=1e-2), "axes": axes, "except": left_out}
