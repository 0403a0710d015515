"""A model and records for sweeps of real tiny runs."""

import math
import multiprocessing
from pathlib import Path

from rmbook.files import write_json
from rmbook.offline.made import SENTENCES
from rmbook.offline.sentences import write_generated_examples
from rmbook.offline.tiny_language import make_tiny_checkpoint
from rmbook.runs.fingerprints import PlannedRun
from rmbook.sweeps.folder import SweepFolder
from rmbook.sweeps.state import open_ledger
from rmbook.sweeps.table import sweep_table, write_table


def tiny_settings(folder: Path, **settings) -> dict:
    """What is fixed in a grid of tiny runs; the model and the records are made in the folder."""
    write_generated_examples(folder / "data", **SENTENCES)
    make_tiny_checkpoint(folder / "tiny", pretrain_steps=0)
    places = {"model": str(folder / "tiny"), "task": "SST-2", "data_dir": str(folder / "data")}
    return places | {"train_size": 48, "dev_size": 12, "test_size": 20} | settings


def eight_runs(folder: Path) -> dict:
    """A grid of eight runs in four epochs, some of which diverge."""
    left_out = [{"learning_rate": 1e30, "seed": seed} for seed in (1, 2)] + [{"learning_rate": 1e-2, "seed": 2}]
    left_out += [{"learning_rate": 1e-4, "seed": 2}]
    axes = {"learning_rate": [1e-2, 1e30, 1e-3, 1e-4], "seed": [0, 1, 2]}
    return {"fixed": tiny_settings(folder, epochs=4, ratio=1e-2), "axes": axes, "except": left_out}


SERVER = multiprocessing.get_context("forkserver")  # one clean process that has imported torch makes all the others


DONE = {"pending": 0, "leased": 0, "done": 7, "diverged": 1, "failed": 0}


def three_angles() -> list[PlannedRun]:
    """Runs of another kind than fine-tuning, for `measure`; the last one diverges."""
    return [PlannedRun(f"angle{a}", {"angle": a, "steps": 3, "what": [1, "x"]}, {"code": "1"}) for a in (0, 30, 120)]


def measure(config, work, bases=None, stop=None):
    """Perform such a run: it leaves the least that a result must have, and resumes nothing."""
    work.mkdir(exist_ok=True)
    status = "diverged" if config["angle"] > 90 else "completed"
    write_json(work / "result.json", {"status": status, "config": config, "sine": math.sin(config["angle"])})


def table(folder) -> tuple[bytes, bytes]:
    """The final table as the files that a user gets."""
    rows, files = open_ledger(SweepFolder(folder)).rows(), [folder.parent / name for name in ("t.csv", "t.parquet")]
    for path in files:
        write_table(sweep_table(rows), path)
    return tuple(path.read_bytes() for path in files)


def adapters(folder) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in folder.glob("runs/*/adapter.safetensors")}


def same(folder, undisturbed):
    """Every run once, with the same results and the same trained weights, and no rests."""
    assert table(folder) == table(undisturbed) and adapters(folder) == adapters(undisturbed)
    assert len(list(folder.glob("runs/*"))) == 8 and not list(folder.glob("work/*"))
    assert not list(folder.glob("runs/*/checkpoint*")) and not list(folder.glob("runs/*/.*"))
