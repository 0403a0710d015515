"""Sweeps on this machine: the runs of a grid one after the other in this process, from wherever they are.

The same call goes on after any interruption, and several processes that make it on one folder share the work.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rmbook.models.reuse import BaseModels
from rmbook.runs.fingerprints import PlannedRun
from rmbook.sweeps.driver import Driver, SweepError, perform
from rmbook.sweeps.ledger import Lease
from rmbook.training.checkpoint import TrainingInterrupted

POLL_SECONDS = 0.5


class Report:
    """Is told how a sweep goes; this one says nothing. See `rmbook.sweeps.display` for those that do."""

    def begun(self, lease: Lease, counts: dict[str, int]) -> None:
        """A run was taken up. `counts`: number of runs in each state."""

    def ended(self, lease: Lease, state: str, note: str, counts: dict[str, int]) -> None:
        """A run is done, diverged, failed, pending (will be tried again) or lost (to another process)."""

    def waiting(self, counts: dict[str, int]) -> None:
        """Nothing is pending, but other processes have runs in hand."""


def run_sweep(
    runs: Sequence[PlannedRun],
    folder: str | os.PathLike,
    *,
    report: Report | None = None,
    retry_failed: bool = False,
    wait: bool = True,
    lease_seconds: float = 300.0,
    max_attempts: int = 5,
) -> dict[str, int]:
    """Perform all runs that are not done yet.

    Args:
        runs: from `rmbook.sweeps.grid.plan`.
        folder: of the sweep: a new one, or one that was begun.
        report: is told how it goes.
        retry_failed: begin failed runs again.
        wait: when only other processes have runs in hand, stay until these are done, or fall to this process.
        lease_seconds, max_attempts: see `rmbook.sweeps.driver.Driver`.

    Returns:
        Number of these runs in each state: pending, leased, done, diverged, failed.

    Raises:
        TrainingInterrupted: Ctrl-C or SIGTERM; the same call goes on.
        SweepError: no run can be written, as on a full disk.
        RunError, LedgerError: the folder cannot be used.
    """
    report, bases = report or Report(), BaseModels()
    with Driver(folder, runs, lease_seconds=lease_seconds, max_attempts=max_attempts) as driver, stopping_on_signals():
        ledger = driver.ledger
        if retry_failed:
            ledger.reset(ledger.keys("failed"))
        while True:
            try:
                if claimed := driver.claim():
                    lease, work = claimed
                    report.begun(lease, ledger.counts(wanted=True))
                    state, note = _attempt(driver, lease, work, bases)
                    report.ended(lease, state, note, ledger.counts(wanted=True))
                    continue
                counts = ledger.counts(wanted=True)
                if not counts["pending"] and (not counts["leased"] or not wait):
                    return counts
                report.waiting(counts)
                time.sleep(POLL_SECONDS)
            except (KeyboardInterrupt, TrainingInterrupted):
                raise TrainingInterrupted(f"the sweep in {folder} was interrupted: the same command goes on.") from None


def _attempt(driver: Driver, lease: Lease, work: Path, bases: BaseModels) -> tuple[str, str]:
    try:
        perform(lease.config, work, bases)
        return driver.settle(lease, work), ""
    except (TrainingInterrupted, SweepError):
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, it is this run's; the others go on
        return driver.give_up(lease, error), f"{type(error).__name__}: {' '.join(str(error).split())}"


@contextlib.contextmanager
def stopping_on_signals() -> Iterator[None]:
    """SIGTERM, which clusters send, is heeded like Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
