"""Sweeps on a Ray cluster, or on several cores of this machine: Ray only executes, ledger and folders keep the truth.

This process claims runs and settles them, as the engine in one process does, so either can resume the other's
sweep, also at the same time. Each worker is an actor that lives as long as the sweep and keeps the base model loaded
(`rmbook.models.reuse`). The folder, the data and local models must lie on a file system that all machines share.
"""

import contextlib
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rmbook.runs.fingerprints import PlannedRun, code_fingerprint
from rmbook.sweeps.driver import Driver, Perform, SweepError, perform_run
from rmbook.sweeps.ledger import Lease
from rmbook.sweeps.listener import Listener
from rmbook.sweeps.local import POLL_SECONDS, stopping_on_signals
from rmbook.sweeps.ray_cluster import Worker, check_shares, import_ray, joined_cluster, room, terminate
from rmbook.training.checkpoint import TrainingInterrupted

WORKER_STARTS = 3  # failures in a row after which no more are started
STOP_SECONDS = 120.0  # for the step under way and a checkpoint


def run_sweep_ray(
    runs: Sequence[PlannedRun],
    folder: str | os.PathLike,
    *,
    perform: Perform = perform_run,
    address: str | None = None,
    workers: int | None = None,
    cpus_per_run: float = 1,
    gpus_per_run: float | None = None,
    listener: Listener | None = None,
    wait: bool = True,
    **driving: Any,
) -> dict[str, int]:
    """Perform all runs that are not done yet, like `rmbook.sweeps.local.run_sweep`, several at a time.

    Args:
        perform: as there; Ray sends it to the workers by its module and name.
        runs, folder, listener, wait, driving: as there.
        address: of a Ray cluster: "auto", "HOST:PORT" or "ray://HOST:PORT". If None, the one that this process has
            joined or that RAY_ADDRESS names; if there is none, one is started on this machine, and stopped at the end.
        workers: number of runs at a time; as many as fit if None.
        cpus_per_run: CPUs, and threads, for each run. Another number of threads may give other last bits.
        gpus_per_run: GPUs for each run; 0.5 lets two share one. If None, 1 where the cluster has GPUs, else 0.

    Raises:
        SweepError: Ray is missing, out of reach or too small; its workers do not start, do not see the folder or have
            other code; or no run can be written.
        ValueError: cpus_per_run or gpus_per_run cannot be had.
        Also what `run_sweep` raises.
    """
    check_shares(cpus_per_run=cpus_per_run, gpus_per_run=gpus_per_run)
    ray, folder = import_ray(), Path(folder).resolve()
    with Driver(folder, runs, **driving) as driver:
        counts = driver.ledger.counts(wanted=True)
        if not (open_runs := counts["pending"] + counts["leased"]):
            return counts
        with joined_cluster(ray, address, workers, cpus_per_run), stopping_on_signals():
            fitting, gpus = room(ray, cpus_per_run, gpus_per_run)
            pool = _Pool(ray, driver, listener or Listener(), cpus_per_run, gpus, perform)
            try:
                pool.start(min(workers or fitting, open_runs))
                return pool.work(wait)
            except (KeyboardInterrupt, TrainingInterrupted):
                with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C does not wait
                    pool.stop()
                text = f"the sweep in {folder} was interrupted: the same command resumes it."
                raise TrainingInterrupted(text) from None
            finally:
                pool.kill()


class _Pool:
    """The workers: those that start, those that are free, those that have a run."""

    def __init__(self, ray, driver: Driver, listener: Listener, cpus: float, gpus: float, perform: Perform):
        self.ray, self.driver, self.listener, self._shares = ray, driver, listener, (cpus, gpus, perform)
        self._make = ray.remote(Worker).options(num_cpus=cpus, num_gpus=gpus, max_restarts=0).remote
        self._greetings = {}  # of all workers that have started
        self._free, self._awaited = [], {}  # by what is awaited: (worker, (lease, folder)); (worker, None) at its start
        self._failed_starts = 0
        self._started: float | None = time.monotonic()

    def start(self, count: int) -> None:
        for _ in range(count):
            worker = self._make(*self._shares)
            self._awaited[worker.greet.remote(self.driver.presence.path)] = (worker, None)

    def work(self, wait: bool) -> dict[str, int]:
        """See `run_sweep_ray`."""
        while True:
            while self._free and (claimed := self.driver.claim()):
                worker = self._free.pop()
                self._awaited[worker.perform.remote(claimed[0].config, claimed[1])] = (worker, claimed)
                self.listener.begun(claimed[0], self._counts())
            counts = self._counts()
            if not self._busy() and not counts["pending"]:
                if not counts["leased"] or not wait:
                    return counts
                self.listener.waiting(counts)
            self._heed()

    def stop(self) -> None:
        """Have the runs under way write a checkpoint, as Ctrl-C does in one process, and wait until they have."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        tell = self.ray.remote(terminate)
        for worker, _ in (busy := self._busy()).values():
            place = self._greetings[worker]
            there = NodeAffinitySchedulingStrategy(place["node"], soft=False)
            tell.options(num_cpus=0, scheduling_strategy=there).remote(place["process"])
        if busy:
            self.ray.wait(list(busy), num_returns=len(busy), timeout=STOP_SECONDS)

    def kill(self) -> None:
        """End all workers."""
        with contextlib.suppress(Exception):  # a cluster that is gone has none
            for worker in [*self._free, *(worker for worker, _ in self._awaited.values())]:
                self.ray.kill(worker)

    def _counts(self) -> dict[str, int]:
        return self.driver.ledger.counts(wanted=True)

    def _busy(self) -> dict:
        return {future: pair for future, pair in self._awaited.items() if pair[1]}

    def _heed(self) -> None:
        """Wait a moment for workers that start or end something."""
        if not self._greetings and self._started and time.monotonic() - self._started > 60:
            logging.getLogger(__name__).warning("no worker has started yet: the cluster may be in use by others.")
            self._started = None
        if not self._awaited:
            time.sleep(POLL_SECONDS)
            return
        for future in self.ray.wait(list(self._awaited), timeout=POLL_SECONDS)[0]:
            worker, claimed = self._awaited[future]
            try:
                answer = self.ray.get(future)
            except self.ray.exceptions.RayError as error:
                del self._awaited[future]
                self._replace(worker, claimed, error)
                continue
            if claimed:
                self._end(claimed, answer)
            else:
                self._welcome(worker, answer)
            del self._awaited[future]
            self._free.append(worker)

    def _welcome(self, worker, greeting: dict) -> None:
        if not greeting["sees"]:
            raise SweepError(
                f"the worker on {greeting['host']} does not see {self.driver.place.path}: the folder of a sweep on "
                "several machines must lie on a file system that all of them share, under the same name."
            )
        if greeting["code"] != code_fingerprint():
            raise SweepError(
                f"the worker on {greeting['host']} has another rmbook, {greeting['code']} and not "
                f"{code_fingerprint()}: install the same version, and the same minor version of Python, everywhere."
            )
        self._greetings[worker], self._failed_starts = greeting, 0

    def _end(self, claimed: tuple[Lease, Path], error: Exception | None) -> None:
        lease, folder = claimed
        state, note = self.driver.conclude(lease, folder, error)
        self.listener.ended(lease, state, note, self._counts())

    def _replace(self, worker, claimed, error: Exception) -> None:
        """Start another worker for one that has died."""
        with contextlib.suppress(Exception):
            self.ray.kill(worker)
        if claimed:
            place = self._greetings.pop(worker)
            short = isinstance(error, self.ray.exceptions.OutOfMemoryError) or "low on memory" in str(error)
            why = ", as its machine ran out of memory" if short else ""  # Ray's text names that reason for any death
            what = f"its worker ended (process {place['process']} on {place['host']}{why})"
            self._end(claimed, ConnectionError(what))
        else:
            self._failed_starts += 1
            if self._failed_starts >= WORKER_STARTS:
                raise SweepError(f"Ray's workers do not start: {str(error).strip().splitlines()[-1][:200]}")
        self.start(1)
