"""Sweeps of real tiny runs: whatever kills them, the final table has the bytes of the undisturbed one."""

import contextlib
import json
import math
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from command_line import call, refused
from tiny_sweep import DONE, SERVER, adapters, eight_runs, measure, same, table, three_angles

from rmbook.errors import ConfigError
from rmbook.runs.fingerprints import PlannedRun
from rmbook.runs.memory import MemoryShortage
from rmbook.runs.result import RunError
from rmbook.runs.run import start_run
from rmbook.sweeps.display import LiveListener
from rmbook.sweeps.driver import Driver, SweepError, perform_run
from rmbook.sweeps.folder import SweepFolder
from rmbook.sweeps.grid import expand, plan
from rmbook.sweeps.ledger import Ledger
from rmbook.sweeps.listener import Listener
from rmbook.sweeps.local import run_sweep
from rmbook.sweeps.state import open_ledger
from rmbook.training.checkpoint import TrainingInterrupted

SERVER.set_forkserver_preload(["rmbook.sweeps.local"])


@pytest.fixture(scope="module")
def grid(tmp_path_factory) -> dict:
    return eight_runs(tmp_path_factory.mktemp("places"))


@pytest.fixture(scope="module")
def runs(grid) -> list:
    return plan(expand(grid))


@pytest.fixture(scope="module")
def undisturbed(runs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "sweep"
    assert run_sweep(runs, folder) == DONE
    return folder


def driver_process(runs, folder, **keywords):
    process = SERVER.Process(target=run_sweep, args=(runs, folder), kwargs=keywords)
    process.start()
    return process


# ------------------------------------------------------------------------------------------------------ what is in it


def test_the_table_holds_the_results_and_is_the_same_for_the_same_runs(runs, undisturbed):
    csv, parquet = table(undisturbed)
    assert table(undisturbed) == (csv, parquet) and str(undisturbed) not in csv.decode()
    found = pd.read_parquet(undisturbed.parent / "t.parquet")
    read = pd.read_csv(undisturbed.parent / "t.csv").astype(found.dtypes)
    pd.testing.assert_frame_equal(found, read)
    assert list(found["learning_rate"]) == sorted(run.config["learning_rate"] for run in runs)
    assert set(found["model"]) == {"tiny"} and set(found["run"]) == {run.key for run in runs}
    for _, row in found.iterrows():
        result = json.loads((undisturbed / "runs" / row["run"] / "result.json").read_text())
        assert row["state"] == {"completed": "done"}.get(result["status"], result["status"])
        if result["test"]:
            best = result["history"][result["best_epoch"] - 1]
            assert (row["accuracy"], row["dev_loss"]) == (result["test"]["accuracy"], best["dev_loss"])
    assert found.loc[found["state"] == "diverged", "accuracy"].isna().all()


def test_a_run_of_a_sweep_is_the_run_that_rmbook_train_makes(runs, undisturbed, tmp_path):
    from rmbook.runs.config import make_config

    result = start_run(make_config(runs[0].config), tmp_path / "run", progress=False)
    kept = undisturbed / "runs" / runs[0].key
    assert (tmp_path / "run/adapter.safetensors").read_bytes() == (kept / "adapter.safetensors").read_bytes()
    found = json.loads((kept / "result.json").read_text())
    assert found["history"] == result["history"] and found["test"] == result["test"]
    command = found["stamp"]["command"].split()
    assert command[:3] == ["rmbook", "train", "--config"] and json.loads(Path(command[3]).read_text()) == runs[0].config


def test_a_finished_sweep_does_nothing_more(runs, undisturbed):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.glob("runs/*/*")}
    assert run_sweep(runs, undisturbed, perform=None) == DONE
    assert {path: path.stat().st_mtime_ns for path in undisturbed.glob("runs/*/*")} == before


# -------------------------------------------------------------------------------------------------------------- kills


def test_kills_at_random_moments_change_nothing(runs, undisturbed, tmp_path):
    chance, folder, midway = random.Random(6), tmp_path / "sweep", 0
    for _ in range(8):
        process = driver_process(runs, folder, max_attempts=20)
        deadline = time.monotonic() + 20
        while not list(folder.glob("work/*/metrics.jsonl")) and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(chance.random() * 0.8)
        process.kill()
        process.join()
        midway += bool(list(folder.glob("work/*")))
    assert midway >= 3  # the kills hit runs under way
    assert run_sweep(runs, folder, max_attempts=20) == DONE
    same(folder, undisturbed)


def test_two_drivers_share_the_work_and_one_of_them_is_killed(runs, undisturbed, tmp_path):
    folder = tmp_path / "sweep"
    one, two = (driver_process(runs, folder) for _ in range(2))
    deadline = time.monotonic() + 60
    while len(list(folder.glob("runs/*"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    one.kill()
    two.join(120)
    assert two.exitcode == 0
    same(folder, undisturbed)


def stop_outside_of_a_transaction(process, path):
    """Within one, it would hold the ledger's lock, and everybody would have to wait for it."""
    while True:
        os.kill(process, signal.SIGSTOP)
        try:
            with contextlib.closing(sqlite3.connect(path, timeout=0.1, isolation_level=None)) as ledger:
                ledger.execute("BEGIN IMMEDIATE")
                return
        except sqlite3.OperationalError:
            os.kill(process, signal.SIGCONT)
            time.sleep(0.05)


def test_a_process_that_hangs_is_given_up_and_does_no_harm_when_it_comes_back(runs, undisturbed, tmp_path):
    folder, chance = tmp_path / "sweep", random.Random(1)
    hanging = driver_process(runs, folder, lease_seconds=1.5)
    while len(list(folder.glob("runs/*"))) < 2 or not list(folder.glob("work/*")):
        time.sleep(0.005)
    time.sleep(0.2 * chance.random())
    stop_outside_of_a_transaction(hanging.pid, folder / "ledger.sqlite")
    try:
        assert run_sweep(runs, folder, lease_seconds=1.5) == DONE
    finally:
        os.kill(hanging.pid, signal.SIGCONT)
    hanging.join(60)
    assert hanging.exitcode == 0
    same(folder, undisturbed)


def test_ctrl_c_gives_the_run_back_and_the_same_command_goes_on(grid, runs, undisturbed, tmp_path):
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid))
    folder = tmp_path / "sweep"
    command = [sys.executable, "-m", "rmbook", "sweep", "run", str(tmp_path / "grid.yaml"), "--output", str(folder)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    while not list(folder.glob("work/*/checkpoint.safetensors")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130 and "the same command resumes it" in said.splitlines()[-1]
    ledger = open_ledger(SweepFolder(folder))
    assert ledger.counts()["leased"] == 0 and {row["attempts"] for row in ledger.rows("pending")} == {0}
    assert list(folder.glob("work/*/checkpoint.safetensors")) and not list(folder.glob("owners/*"))
    answer = call("sweep", "run", tmp_path / "grid.yaml", "--output", folder)
    assert answer.exit_code == 0 and "7 done, 1 diverged" in answer.stdout
    assert "done: tiny SST-2 random_masking ratio 0.01 lr 0.0001 seed 0" in answer.stderr
    same(folder, undisturbed)


# ---------------------------------------------------------------------------------------------- runs of another kind


@pytest.fixture
def angles() -> list[PlannedRun]:
    return three_angles()


def test_a_sweep_takes_any_kind_of_run(angles, tmp_path):
    folder, csv = tmp_path / "sweep", tmp_path / "angles.csv"
    counts = run_sweep(angles, folder, perform=measure)
    assert counts == {"pending": 0, "leased": 0, "done": 2, "diverged": 1, "failed": 0}
    assert run_sweep(angles, folder, perform=None) == counts
    assert SweepFolder(folder).result("angle30")["sine"] == math.sin(30)
    assert call("sweep", "export", folder, "--csv", csv, "--timing").exit_code == 0
    found = pd.read_csv(csv)
    assert list(found["angle"]) == [0, 120, 30] and set(found["steps"]) == {3} and set(found["what"]) == {'[1, "x"]'}
    assert list(found["state"]) == ["done", "diverged", "done"] and found["trainable"].isna().all()
    assert call("sweep", "status", folder).stdout == "2 done, 1 diverged\n"
    answer = call("report", folder)
    assert answer.exit_code == 2 and "another kind" in answer.stderr
    with pytest.raises(ConfigError, match="epochs"):
        run_sweep(angles, tmp_path / "other", perform=measure, halving=True)


BROKEN = ["[]", "{}", "7", '{"status": "completed"}', '{"config": {}}', '{"status": "good", "config": {}}', "{", "\x80"]
BROKEN += ['{"status": "completed", "config": {}, "best_epoch": 3, "history": []}', "[" * 10**5]


@pytest.mark.parametrize("place", ["runs/angle0", "work/angle0.1234"])
@pytest.mark.parametrize("text", BROKEN)
def test_a_damaged_result_is_not_finished_and_made_again(text, place, angles, tmp_path):
    folder = tmp_path / "sweep"
    SweepFolder(folder, new=True)
    (folder / place).mkdir()
    (folder / place / "result.json").write_text(text, "latin-1")
    assert run_sweep(angles[:1], folder, perform=measure)["done"] == 1
    assert SweepFolder(folder).result("angle0")["config"] == angles[0].config


def test_a_run_without_a_result_has_failed_and_can_be_retried(angles, tmp_path):
    folder = tmp_path / "sweep"

    def nothing(config, work, bases, stop):
        work.mkdir(exist_ok=True)

    counts = run_sweep(angles, folder, perform=nothing, max_attempts=2)
    assert counts["failed"] == 3 and "result.json" in open_ledger(SweepFolder(folder)).rows()[0]["error"]
    assert run_sweep(angles, folder, perform=measure, retry_failed=True)["failed"] == 0


# ------------------------------------------------------------------------------------------- disks, clocks and damage


def sweep_on_a_small_disk(runs, folder, size, said):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        run_sweep(runs, folder)
    except OSError as error:
        said.put(f"{type(error).__name__}: {error}")


@pytest.mark.parametrize("size", [3_000, 40_000])  # too small for metrics, and for the ledger
def test_a_full_disk_stops_the_sweep_and_loses_nothing(size, runs, undisturbed, tmp_path):
    folder, said = tmp_path / "sweep", SERVER.Queue()
    Driver(folder, runs).ledger.close()  # the ledger is there, before the disk is full
    process = SERVER.Process(target=sweep_on_a_small_disk, args=(runs, folder, size, said))
    process.start()
    text = said.get(timeout=60)
    process.join()
    assert "same command" in text and "nothing is lost" in text and "\n" not in text
    counts = open_ledger(SweepFolder(folder)).counts()
    assert counts["failed"] == 0 and counts["done"] < 7
    assert run_sweep(runs, folder) == DONE
    assert {row["attempts"] <= 2 for row in open_ledger(SweepFolder(folder)).rows()} == {True}
    same(folder, undisturbed)


def test_what_a_loss_of_power_tears_is_made_again(runs, undisturbed, tmp_path):
    folder = shutil.copytree(undisturbed, tmp_path / "sweep")
    finished = [run.key for run in runs if (folder / "runs" / run.key / "adapter.safetensors").exists()]
    torn = folder / "runs" / finished[0] / "result.json"
    torn.write_bytes(torn.read_bytes()[:100])
    (folder / "runs" / finished[1] / "result.json").write_bytes(b"")
    moved = folder / "runs" / finished[2]
    (moved / "result.json").unlink()
    (moved / "checkpoint.safetensors").write_bytes(b"torn")
    (moved / ".result.json.abc").write_bytes(b"{")
    shutil.move(moved, folder / "work" / f"{finished[2]}.0000")
    garbage = folder / "runs" / finished[3]
    (garbage / "result.json").unlink()
    (garbage / "metrics.jsonl").write_bytes(b"\0\0\0\n\xff\n")
    shutil.rmtree(folder / "runs" / finished[4])
    assert run_sweep(runs, folder) == DONE
    same(folder, undisturbed)


def test_a_lost_ledger_is_made_again_from_the_folders(runs, undisturbed, tmp_path):
    folder = shutil.copytree(undisturbed, tmp_path / "sweep")
    for path in folder.glob("ledger.sqlite*"):
        path.unlink()
    assert table(folder) == table(undisturbed)  # for `status` and `export` too
    (folder / "ledger.sqlite").unlink()
    assert run_sweep(runs, folder, perform=None) == DONE  # nothing is done twice
    same(folder, undisturbed)


def test_the_time_of_day_does_not_matter(runs, undisturbed, tmp_path, monkeypatch):
    folder, days = tmp_path / "sweep", iter([0, 1e9, 3e9, 4e9, 2e9, 1e8, 1, 2, 3])

    class Clock(Listener):
        def begun(self, lease, counts):
            now = next(days)
            monkeypatch.setattr("time.time", lambda: now)

    assert run_sweep(runs, folder, listener=Clock()) == DONE
    same(folder, undisturbed)


# ----------------------------------------------------------------------------------------- leases that are lost wrongly


def test_a_process_that_was_given_up_wrongly_does_no_harm(runs, undisturbed, tmp_path):
    """It finishes its run, before or after the one that took the run over; it counts once."""
    folder, one = tmp_path / "sweep", runs[:1]
    with Driver(folder, one) as early, Driver(folder, one, gone=lambda owner, beat: True) as late:
        lease, work = early.claim()
        perform_run(lease.config, work)
        newer, other = late.claim()
        assert other != work and not work.exists()  # what was done is taken over, out of the first one's reach
        with pytest.raises(OSError):
            early.place.commit(lease.key, work)
        assert early.settle(lease, work) == "lost" and early.give_up(lease, OSError("gone")) == "lost"
        perform_run(newer.config, other)
        late.settle(newer, other)
        perform_run(lease.config, work)  # it goes on from the beginning, and comes too late
        first = (folder / "runs" / lease.key / "result.json").read_bytes()
        early.place.commit(lease.key, work)
        assert (folder / "runs" / lease.key / "result.json").read_bytes() == first
    assert not list(folder.glob("work/*")) and len(list(folder.glob("runs/*"))) == 1
    kept = folder / "runs" / runs[0].key / "adapter.safetensors"
    assert kept.read_bytes() == (undisturbed / "runs" / runs[0].key / "adapter.safetensors").read_bytes()


def test_a_run_that_slurm_began_is_gone_on_with(runs, undisturbed, tmp_path, monkeypatch):
    from rmbook.runs.config import make_config

    folder = tmp_path / "sweep"
    Driver(folder, runs).ledger.close()
    stop = iter([False] * 9 + [True])
    with monkeypatch.context() as patch, pytest.raises(TrainingInterrupted):
        patch.setattr("rmbook.training.loop.TrainingLoop._flags", lambda loop: (float(next(stop)), 0.0))
        start_run(make_config(runs[0].config), folder / "runs" / runs[0].key, progress=False)
    assert run_sweep(runs, folder) == DONE
    same(folder, undisturbed)


# ------------------------------------------------------------------------------------------------------------- errors


class Notes(Listener):
    def __init__(self):
        self.ends = []

    def ended(self, lease, state, note, counts):
        self.ends.append((lease.config["seed"], state))


@pytest.mark.parametrize(
    ("error", "attempts"),
    [(OSError("network file system away"), 3), (MemoryShortage("out of memory"), 3), (ConfigError("no"), 1)]
    + [(RuntimeError("a defect"), 1)],
)
def test_only_errors_of_the_machine_are_tried_again(error, attempts, runs, tmp_path):
    def fail(config, folder, bases, stop):
        if config["seed"] == 1:
            raise error
        perform_run(config, folder, bases, stop)

    folder, notes = tmp_path / "sweep", Notes()
    few = [run for run in runs if run.config["learning_rate"] == 1e-2]
    counts = run_sweep(few, folder, perform=fail, listener=notes, max_attempts=3)
    assert (counts["failed"], counts["done"]) == (1, 1)
    assert [state for seed, state in notes.ends if seed == 1] == ["pending"] * (attempts - 1) + ["failed"]
    assert str(error) in call("sweep", "status", folder).stdout
    assert run_sweep(few, folder)["failed"] == 1 and run_sweep(few, folder, retry_failed=True)["done"] == 2


def test_no_space_is_no_attempt(runs, tmp_path):
    def full(config, folder, bases, stop):
        raise OSError(28, "No space left on device")

    with pytest.raises(SweepError, match="Make room"):
        run_sweep(runs, tmp_path / "sweep", perform=full)
    rows = open_ledger(SweepFolder(tmp_path / "sweep")).rows()
    assert {(row["state"], row["attempts"]) for row in rows} == {("pending", 0)}


def test_a_worker_that_dies_again_and_again_fails_its_run(runs, tmp_path):
    place = SweepFolder(tmp_path / "sweep", new=True)
    for number in range(3):
        ledger = Ledger(place.ledger, f"p{number}", gone=lambda owner, beat: True, max_attempts=3)
        ledger.add(runs[:1])
        assert ledger.claim().attempt == number + 1
    last = Ledger(place.ledger, "last", gone=lambda owner, beat: True, max_attempts=3)
    last.add(runs[:1])
    assert last.claim() is None and last.counts()["failed"] == 1 and "attempt 3" in last.rows()[0]["error"]


# ------------------------------------------------------------------------------------------------------- command line


def test_folders_and_flags_that_do_not_fit(grid, undisturbed, tmp_path):
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    refused(call("sweep", "run", tmp_path / "grid.yaml", "--output", tmp_path / "other"), "no folder of a sweep")
    refused(call("sweep", "status", tmp_path / "nothing"), "sweep run")
    refused(call("sweep", "export", undisturbed), "--csv")
    refused(call("sweep", "export", undisturbed, "--csv", tmp_path / "table.txt"), ".csv")
    refused(call("sweep", "export", undisturbed, "--csv", tmp_path / "no" / "table.csv"), "folder")
    refused(call("sweep", "emit", tmp_path / "grid.yaml", "--output", tmp_path / "sweep"), "--slurm-array")
    refused(call("sweep", "run", tmp_path / "grid.yaml", "--output", tmp_path / "s", "--set", "seed"), "--set")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.txt"]
    with pytest.raises(RunError):
        SweepFolder(tmp_path / "other")
    for command in ("run", "status", "export", "emit"):
        assert f"  rmbook sweep {command} " in call("sweep", command, "--help").stdout


def test_export_and_status(undisturbed, tmp_path):
    answer = call("sweep", "export", undisturbed, "--csv", tmp_path / "a.csv", "--parquet", tmp_path / "a.parquet")
    assert answer.exit_code == 0 and answer.stdout.count("8 runs (7 done, 1 diverged)") == 2
    assert (tmp_path / "a.csv").read_bytes() == table(undisturbed)[0]
    timed = call("sweep", "export", undisturbed, "--csv", tmp_path / "b.csv", "--timing")
    assert timed.exit_code == 0 and (pd.read_csv(tmp_path / "b.csv")["seconds"] > 0).all()
    assert call("sweep", "status", undisturbed).stdout == "7 done, 1 diverged\n"


def test_emitted_commands_are_run_by_a_shell_and_counted(grid, runs, undisturbed, tmp_path):
    """Whatever is in the names of folders stays a name."""
    strange = tmp_path / "it's $(touch pwned) 100%"
    strange.mkdir()
    shutil.copytree(grid["fixed"]["model"], strange / "tiny")
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid))
    folder = strange / "sweep"
    flags = ["--set", f"model={strange / 'tiny'}", "--set", "seed=0", "--set", "learning_rate=1e-2"]
    answer = call("sweep", "emit", tmp_path / "grid.yaml", "--output", folder, "--slurm-array", *flags, "--tasks", 1)
    assert answer.exit_code == 0 and "1 of 1 runs" in answer.stdout, answer.output
    script = (folder / "slurm" / "array.sbatch").read_text()
    assert "#SBATCH --array=1-1\n" in script
    environment = os.environ | {"OMP_NUM_THREADS": "1", "SLURM_ARRAY_TASK_ID": "1"}
    done = subprocess.run(["bash", folder / "slurm" / "array.sbatch"], env=environment, cwd=tmp_path, text=True,
                          capture_output=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "completed" in (folder / "slurm" / "logs" / "1.log").read_text()
    assert call("sweep", "status", folder).stdout == "1 done\n"
    assert not list(tmp_path.rglob("pwned"))
    keys = {run.key for run in runs if run.config["seed"] == 0 and run.config["learning_rate"] == 1e-2}
    assert {path.name for path in folder.glob("runs/*")} == keys  # the model is the same one in another place
    assert {key: adapters(undisturbed)[key] for key in adapters(folder)} == adapters(folder)


def test_the_live_table_counts(runs):
    from rich.console import Console

    console = Console(record=True, width=100, file=open(os.devnull, "w"), force_terminal=True)
    report = LiveListener(console)
    lease = type("Lease", (), {"config": runs[0].config, "attempt": 2})()
    report.begun(lease, DONE | {"pending": 3, "leased": 1, "done": 3})
    console.print(report.table())
    report.ended(lease, "failed", "OSError: no [luck]", DONE | {"pending": 3, "done": 3, "failed": 1})
    console.print(report.table())
    text = console.export_text()
    assert "lr 0.01 seed 0, again" in text and "failed: tiny" in text and "no [luck]" in text and "min" in text
