"""Sweeps of real tiny runs, for the other scripts here."""

from pathlib import Path

from rmbook.offline.made import resolve
from rmbook.offline.tiny_language import make_tiny_checkpoint
from rmbook.runs.fingerprints import PlannedRun
from rmbook.sweeps.folder import SweepFolder
from rmbook.sweeps.grid import expand, plan
from rmbook.sweeps.state import open_ledger
from rmbook.sweeps.table import sweep_table, write_table


def tiny_runs(folder: Path, count: int, **settings) -> list[PlannedRun]:
    """`count` different runs on a tiny model; one in ten diverges."""
    model = folder / "tiny"
    if not model.exists():  # there may be several grids in one folder
        make_tiny_checkpoint(model, pretrain_steps=0)
    fixed = {"model": str(model), "task": "SST-2", "data_dir": resolve("made:sentences"), "epochs": 3, "ratio": 1e-2}
    fixed |= {"train_size": 48, "dev_size": 12, "test_size": 20} | settings
    rates = [1e30, *(0.1 * 0.5**number for number in range(9))]
    grid = {"fixed": fixed, "axes": {"seed": list(range(-(-count // len(rates)))), "learning_rate": rates}}
    return plan(expand(grid))[:count]


def contents(folder: Path) -> dict[str, bytes]:
    """The final tables of a sweep and what its runs trained."""
    table = sweep_table(open_ledger(SweepFolder(folder)).rows())
    for name in ("table.csv", "table.parquet"):
        write_table(table, folder.parent / name)
    found = {name: (folder.parent / name).read_bytes() for name in ("table.csv", "table.parquet")}
    return found | {str(p.relative_to(folder)): p.read_bytes() for p in folder.glob("runs/*/adapter.safetensors")}
