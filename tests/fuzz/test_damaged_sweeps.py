"""Damaged folders of sweeps: read or refused in one line and left alone; what is performed on them is always true."""

import contextlib
import json
import random
import shutil
import sqlite3

import pytest
from command_line import call
from fuzzing import contents, damaged_bytes, damaged_json, damaged_value, ended_well, refusal, seeds, within_limits
from tiny_sweep import measure, three_angles

from rmbook.files import write_json
from rmbook.runs.config import make_config
from rmbook.runs.fingerprints import PlannedRun
from rmbook.sweeps.folder import SweepFolder
from rmbook.sweeps.local import run_sweep

COLUMNS = "key position config identity state owner attempts claims result error claimed ended".split()


def fine_tuning() -> list[PlannedRun]:
    """Six planned runs, of which `pretend` makes results."""
    settings = {"model": "facebook/opt-125m", "task": "RTE", "ratio": 1e-3, "epochs": 1}
    identity = {"data": "a" * 64, "weights": "b" * 64, "code": "1+c"}
    rates = [(rate, seed) for rate in (1e-2, 1e-3) for seed in (0, 1, 2)]
    configs = [make_config(settings | {"learning_rate": rate, "seed": seed}).to_dict() for rate, seed in rates]
    return [PlannedRun(f"{number:032x}", config, identity) for number, config in enumerate(configs)]


def pretend(config, work, bases=None, stop=None):
    """Leave all that a fine-tuning run leaves in its result.json."""
    work.mkdir(exist_ok=True)
    row = {"epoch": 1, "step": 3, "train_loss": 0.7, "dev_loss": 0.6, "dev_accuracy": 0.5}
    result = {"status": "completed", "config": config, "trainable": 10, "total": 100, "ratio": 0.1}
    result |= {"records": {"train": 1000, "dev": 10, "test": 277}, "max_length": 10, "cut_prompts": 0, "steps": 3}
    result |= {"best_epoch": 1, "history": [row], "test": {"accuracy": 0.5}, "seconds": 1.0, "tokens_per_second": 9}
    stamp = {"date": "2026-01-01", "commit": "0" * 40, "hardware": {"cpu": "x", "gpu": None, "threads": 2}}
    stamp |= {"versions": {"torch": "2"}, "command": "x"}
    write_json(work / "result.json", result | {"peak_memory": 1, "processes": 1, "stamp": stamp})


KINDS = {"fine-tuning": (fine_tuning, pretend), "another kind": (three_angles, measure)}


@pytest.fixture(scope="module", params=KINDS)
def sweep(request, tmp_path_factory):
    runs, perform = KINDS[request.param]
    folder = tmp_path_factory.mktemp("sweep") / "sweep"
    run_sweep(runs()[:-1], folder, perform=perform)

    def fails(config, work, bases, stop):
        raise ValueError("no\nsuch luck")

    run_sweep(runs(), folder, perform=fails)
    return folder, runs(), perform


def damage_ledger(draw: random.Random, path) -> None:
    kind = draw.randrange(4)
    if kind == 0:
        return path.write_bytes(damaged_bytes(draw, path.read_bytes())) and None
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        (key,) = draw.choice(db.execute("SELECT key FROM runs").fetchall())
        column = draw.choice(COLUMNS)
        (value,) = db.execute(f"SELECT {column} FROM runs WHERE key = ?", (key,)).fetchone()
        if column in ("config", "identity", "result") and value and kind < 3:
            value = json.dumps(damaged_value(draw, json.loads(value)))
        else:
            odd = (None, 7, -1.5, "", "x", "../x", "a\nb", "pending", "done", "[" * 5000, b"\xff\xfe", 2**62)
            value = draw.choice(odd)
        with contextlib.suppress(sqlite3.IntegrityError):  # what the file itself refuses
            db.execute("PRAGMA ignore_check_constraints = ON" if draw.random() < 0.5 else "SELECT 1")
            expression = "CAST(? AS TEXT)" if isinstance(value, bytes) and draw.random() < 0.5 else "?"
            db.execute(f"UPDATE runs SET {column} = {expression} WHERE key = ?", (value, key))


def damage(draw: random.Random, folder) -> str:
    kind = draw.choice(("ledger", "ledger", "plan", "result", "result", "no ledger"))
    if kind == "ledger":
        damage_ledger(draw, folder / "ledger.sqlite")
        return kind
    if kind in ("no ledger", "plan"):
        for path in folder.glob("ledger*"):
            path.unlink()
    path = draw.choice(sorted(folder.glob("grids/*.json" if kind == "plan" else "runs/*/result.json")))
    path.write_bytes(damaged_json(draw, path.read_text()))
    return kind


def damaged(draw: random.Random, source, folder) -> str:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    for path in folder.glob("ledger.sqlite-*"):  # what a kill left; the copy shall be one file
        path.unlink()
    return damage(draw, folder)


def test_status_export_and_report(sweep, tmp_path):
    folder, written = tmp_path / "sweep", tmp_path / "written"
    written.mkdir()
    for seed in seeds(20):
        draw = random.Random(seed)
        kind = damaged(draw, sweep[0], folder)
        before, timing = contents(folder), draw.choice(([], ["--timing"]))
        commands = {
            "status": ["sweep", "status", folder],
            "export": ["sweep", "export", folder, "--csv", written / "t.csv", *timing],
            "parquet": ["sweep", "export", folder, "--parquet", written / "t.parquet", *timing],
            "report": ["report", folder, "--output", written / "p.md", "--csv", written / "r.csv"],
        }
        for name, words in commands.items():
            label = (seed, kind, name)
            with within_limits(label):
                answer = call(*words)
            if not ended_well(answer, label):
                assert not list(written.iterdir()), label
            for path in written.iterdir():
                path.unlink()
        assert contents(folder) == before, (seed, kind)


def test_going_on(sweep, tmp_path):
    source, runs, perform = sweep
    folder = tmp_path / "sweep"
    for seed in seeds(40):
        draw = random.Random(seed)
        label = seed, damaged(draw, source, folder)
        outside = [path for path in tmp_path.iterdir() if path != folder]
        counts = []

        def go_on():
            counts.append(run_sweep(runs, folder, perform=perform, retry_failed=True, wait=False))  # noqa: B023

        error = refusal(go_on, label)
        assert [path for path in tmp_path.iterdir() if path != folder] == outside, label
        if error is None and counts[0]["done"] + counts[0]["diverged"] == len(runs):
            assert all(SweepFolder(folder).result(run.key) for run in runs), label
