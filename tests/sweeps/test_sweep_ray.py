"""The engine on Ray: the bytes of the one in one process, whatever dies, and either goes on with the other's sweep."""

import json
import math
import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from command_line import call, refused
from tiny_sweep import DONE, adapters, eight_runs, measure, same, three_angles

from rmbook.errors import ConfigError
from rmbook.runs.config import make_config
from rmbook.runs.fingerprints import code_fingerprint
from rmbook.runs.memory import MemoryShortage
from rmbook.sweeps.driver import Driver, SweepError, perform_run
from rmbook.sweeps.folder import SweepFolder
from rmbook.sweeps.grid import expand, plan
from rmbook.sweeps.listener import Listener
from rmbook.sweeps.local import run_sweep
from rmbook.sweeps.ray_cluster import Worker, joined_cluster, room
from rmbook.sweeps.ray_engine import _Pool, run_sweep_ray
from rmbook.sweeps.state import open_ledger
from rmbook.training.checkpoint import Checkpoint, TrainingInterrupted

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install ray")


@pytest.fixture(scope="module")
def grid(tmp_path_factory) -> dict:
    return eight_runs(tmp_path_factory.mktemp("places"))


@pytest.fixture(scope="module")
def runs(grid) -> list:
    return plan(expand(grid))


@pytest.fixture(scope="module")
def undisturbed(runs, tmp_path_factory):
    """A sweep by the engine in one process, on as many threads as a worker has."""
    folder, threads = tmp_path_factory.mktemp("undisturbed") / "sweep", torch.get_num_threads()
    torch.set_num_threads(1)
    assert run_sweep(runs, folder) == DONE
    torch.set_num_threads(threads)
    return folder


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))  # where `measure` is, for the workers
        patch.setenv("RAY_worker_niceness", "0")  # else they wait for whatever other tests compute
        with joined_cluster(ray, None, 2, 1):
            yield


class Killer(Listener):
    """Kills the worker of a run midway, once."""

    def __init__(self, folder):
        self.folder, self.killed, self.ends = folder, None, []

    def begun(self, lease, counts):
        end = time.monotonic() + 30
        while not self.killed and lease.config["targets"] is None and time.monotonic() < end:
            for process in psutil.Process().children(recursive=True):
                try:
                    names = [file.path for file in process.open_files()]
                except psutil.Error:
                    continue
                if any(f"work/{lease.key}" in name and name.endswith("metrics.jsonl") for name in names):
                    os.kill(process.pid, signal.SIGKILL)
                    self.killed = lease.key
            time.sleep(0.002)

    def ended(self, lease, state, note, counts):
        self.ends.append((lease.key, state, note))


@pytest.fixture(scope="module")
def disturbed(cluster, grid, runs, tmp_path_factory):
    """A sweep of which one worker is killed, with one run more, which cannot be performed."""
    wrong = plan([make_config(grid["fixed"] | {"learning_rate": 1e-2, "targets": ["nowhere"]})])
    folder = tmp_path_factory.mktemp("disturbed") / "sweep"
    report = Killer(folder)
    counts = run_sweep_ray([*runs, *wrong], folder, workers=2, listener=report)
    return folder, report, counts, wrong[0].key


def test_a_worker_that_is_killed_midway_costs_an_attempt_and_nothing_else(disturbed, runs):
    folder, report, counts, wrong = disturbed
    assert counts == DONE | {"failed": 1} and report.killed
    attempts = {row["key"]: row["attempts"] for row in open_ledger(SweepFolder(folder)).rows()}
    assert attempts == {run.key: 1 for run in runs} | {wrong: 1, report.killed: 2}
    notes = [(state, note) for key, state, note in report.ends if key == report.killed]
    assert [state for state, _ in notes] == ["pending", "done"] and "worker ended" in notes[0][1]
    assert "memory" not in notes[0][1]


def test_a_run_that_cannot_be_performed_fails_with_its_message_and_the_others_go_on(disturbed):
    folder, report, _, wrong = disturbed
    (row,) = open_ledger(SweepFolder(folder)).rows("failed")
    assert row["key"] == wrong and row["error"].startswith("TargetError: no layer matches the target 'nowhere'")
    assert "Traceback" not in row["error"] and "ray" not in row["error"].lower()
    assert ("failed", row["error"]) in [(state, note[:500]) for _, state, note in report.ends]


def test_the_table_and_all_weights_are_those_of_the_engine_in_one_process(disturbed, undisturbed, tmp_path):
    folder, _, _, wrong = disturbed
    assert adapters(folder) == adapters(undisturbed)
    ledger = open_ledger(SweepFolder(folder))
    ledger._db.execute("DELETE FROM runs WHERE key = ?", (wrong,))  # the table shows failed runs, too
    ledger.close()
    same(folder, undisturbed)


def test_either_engine_goes_on_with_the_others_sweep(cluster, runs, undisturbed, tmp_path):
    folder = tmp_path / "sweep"

    class Stopping(Listener):
        """Ctrl-C when a run is under way."""

        begins, limit = 0, 2

        def begun(self, lease, counts):
            self.begins += 1
            if self.begins > self.limit:
                raise KeyboardInterrupt

    with pytest.raises(TrainingInterrupted):
        run_sweep(runs, folder, listener=Stopping())
    assert len(list(folder.glob("runs/*"))) == 2
    report = Stopping()
    report.limit = 3
    with pytest.raises(TrainingInterrupted, match="same command resumes it"):
        run_sweep_ray(runs, folder, workers=1, listener=report)
    ledger = open_ledger(SweepFolder(folder))
    assert ledger.counts()["leased"] == 0 and {row["attempts"] for row in ledger.rows("pending")} == {0}
    assert not list(folder.glob("owners/*"))
    assert 3 <= len(list(folder.glob("runs/*"))) < 8
    assert run_sweep(runs, folder) == DONE
    same(folder, undisturbed)
    assert run_sweep_ray(runs, folder) == DONE  # nothing left to do


def test_workers_perform_any_kind_of_run(cluster, tmp_path):
    counts = run_sweep_ray(three_angles(), tmp_path / "sweep", perform=measure, workers=1)
    assert (counts["done"], counts["diverged"]) == (2, 1)
    assert SweepFolder(tmp_path / "sweep").result("angle30")["sine"] == math.sin(30)


def test_ctrl_c_has_the_runs_write_down_their_last_step(cluster, grid, tmp_path):
    folder, long = tmp_path / "sweep", plan([make_config(grid["fixed"] | {"learning_rate": 1e-3, "epochs": 500})])

    class Impatient(Listener):
        def begun(self, lease, counts):
            while not list(folder.glob("work/*/checkpoint.safetensors")):
                time.sleep(0.01)
            raise KeyboardInterrupt

    with pytest.raises(TrainingInterrupted):
        run_sweep_ray(long, folder, workers=1, listener=Impatient())
    (work,) = folder.glob("work/*")
    steps = [row["step"] for row in map(json.loads, (work / "metrics.jsonl").read_text().splitlines())]
    assert Checkpoint(work / "checkpoint.safetensors").progress()[0] == steps[-1] < 500 * 6
    assert not [p for p in psutil.Process().children(recursive=True) if "Worker.perform" in _command(p)]


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has ended
        return ""


# ------------------------------------------------------------------------------------------------------------- errors


class Unspeakable(Exception):
    def __init__(self, one, two):
        super().__init__("two arguments, and pickle gives back one")


@pytest.mark.parametrize(
    ("error", "comes"),
    [(OSError(28, "No space left on device"), OSError), (MemoryShortage("less"), MemoryShortage)]
    + [(ConfigError("no"), ConfigError), (Unspeakable(1, 2), RuntimeError), (TrainingInterrupted("stop"), OSError)],
)
def test_errors_come_back_as_what_they_are(error, comes, tmp_path):
    def fail(*arguments):
        raise error

    found = Worker(torch.get_num_threads(), 1, fail).perform({}, tmp_path)
    assert isinstance(found, comes) and str(error) in str(found) and getattr(found, "errno", None) in (None, 28)


def test_a_worker_elsewhere_must_see_the_folder_and_have_the_same_code(cluster, runs, tmp_path):
    seen = {"host": "node7", "process": 1, "node": "x", "sees": True, "code": code_fingerprint()}
    with Driver(tmp_path / "sweep", runs) as driver:
        pool = _Pool(ray, driver, Listener(), 1, 0, perform_run)
        pool._welcome("worker", seen)
        with pytest.raises(SweepError, match="node7 does not see .*sweep.* share"):
            pool._welcome("worker", seen | {"sees": False})
        with pytest.raises(SweepError, match="node7 has another rmbook, 0.0.9"):
            pool._welcome("worker", seen | {"code": "0.0.9+12"})
        assert driver.presence.path.exists()  # what the others look for


def test_workers_that_cannot_start_end_the_sweep(cluster, runs, tmp_path, monkeypatch):
    class Broken:
        def __init__(self, *arguments):
            raise ImportError("No module named 'rmbook'")

        def greet(self, presence):
            """Never called."""

    Broken.__module__ = "__main__"  # so that it is sent, and not imported
    monkeypatch.setattr("rmbook.sweeps.ray_engine.Worker", Broken)
    monkeypatch.setattr("rmbook.sweeps.ray_engine.WORKER_STARTS", 1)  # each takes Ray some seconds
    with pytest.raises(SweepError, match="do not start: ImportError: No module named 'rmbook'") as found:
        run_sweep_ray(runs, tmp_path / "sweep", workers=1)
    assert "\n" not in str(found.value)
    assert set(open_ledger(SweepFolder(tmp_path / "sweep")).counts().values()) == {0, 8}


def test_a_run_must_fit_on_the_cluster(cluster, runs, tmp_path):
    assert room(ray, 1, None) == (2, 0) and room(ray, 0.5, 0) == (4, 0)
    for shares in ({"gpus_per_run": 0.5}, {"cpus_per_run": 64}):
        with pytest.raises(SweepError, match="lower --cpus-per-run"):
            run_sweep_ray(runs, tmp_path / "sweep", **shares)
    for shares in ({"gpus_per_run": 1.5}, {"cpus_per_run": 0}, {"gpus_per_run": -1}, {"gpus_per_run": math.inf}):
        with pytest.raises(ValueError, match="whole one above 1"):
            run_sweep_ray(runs, tmp_path / "sweep", **shares)


def test_flags_that_do_not_fit_and_a_missing_ray_are_one_line(grid, tmp_path, monkeypatch):
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid))
    command = ["sweep", "run", tmp_path / "grid.yaml", "--output", tmp_path / "sweep"]
    refused(call(*command, "--engine", "rey"), "ray")
    refused(call(*command, "--workers", 2), "--engine ray")
    monkeypatch.setitem(sys.modules, "ray", None)
    answer = call(*command, "--engine", "ray")
    assert answer.exit_code == 1 and len(answer.stderr.splitlines()) == 1
    assert 'pip install "rmbook[cluster]"' in answer.stderr and not (tmp_path / "sweep").exists()
