"""Sweeps on this machine: the runs of a grid one after the other in this process, from wherever they are.

The same call resumes after any interruption, and several processes that make it on one folder share the work.
"""

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rmbook.models.reuse import BaseModels
from rmbook.runs.fingerprints import PlannedRun
from rmbook.sweeps.driver import Driver, Perform, perform_run
from rmbook.sweeps.ledger import STOPPED, Lease
from rmbook.sweeps.listener import Listener
from rmbook.sweeps.queue import PartQueue, WholeQueue, check_part
from rmbook.training.checkpoint import TrainingInterrupted, handling

POLL_SECONDS = 0.5


def run_sweep(
    runs: Sequence[PlannedRun],
    folder: str | os.PathLike,
    *,
    perform: Perform = perform_run,
    halving: bool = False,
    budget: float | None = None,
    seed: int = 0,
    bases: BaseModels | None = None,
    listener: Listener | None = None,
    wait: bool = True,
    **driving: Any,
) -> dict[str, int]:
    """Perform all runs that are not done yet, or a part of them.

    Args:
        runs: from `rmbook.sweeps.grid.plan`, or of another kind that `perform` can carry out.
        folder: of the sweep: a new one, or one that was begun.
        perform: carries one run out; see `rmbook.sweeps.driver`.
        halving: stop learning rates whose group has better ones; see `rmbook.sweeps.halving`.
        budget: the most that this call spends, in whole runs: an epoch counts as its share of its run's epochs. What
            would go beyond it is not begun. Without halving, a sampler of Optuna chooses the order.
        seed: of the sampler.
        bases: models that earlier runs have loaded.
        listener: is told how it goes.
        wait: when only other processes have runs in hand, stay until these are done, or fall to this process.
        driving: lease_seconds, max_attempts and retry_failed of `rmbook.sweeps.driver.Driver`.

    Returns:
        Number of these runs in each state: pending, leased, done, diverged, failed.

    Raises:
        TrainingInterrupted: Ctrl-C or SIGTERM; the same call resumes.
        SweepError: no run can be written, as on a full disk.
        ConfigError: a part was asked for and cannot be chosen, see `rmbook.sweeps.queue.check_part`.
        RunError, LedgerError: the folder cannot be used.
    """
    part = halving or budget is not None
    if part:
        check_part(runs, halving, budget)
    listener, bases = listener or Listener(), bases or BaseModels()
    with Driver(folder, runs, **driving) as driver, stopping_on_signals():
        ledger = driver.ledger
        queue = PartQueue(driver, runs, halving, budget, seed) if part else WholeQueue(driver)
        try:
            while True:
                if claimed := queue.claim():
                    lease, work, until = claimed
                    listener.begun(lease, ledger.counts(wanted=True))
                    state, note = _attempt(driver, lease, work, until, perform, bases)
                    queue.ended(lease)
                    listener.ended(lease, state, note, ledger.counts(wanted=True))
                    continue
                counts = ledger.counts(wanted=True)
                if not queue.waits(counts, wait):
                    return counts
                listener.waiting(counts)
                time.sleep(POLL_SECONDS)
        except (KeyboardInterrupt, TrainingInterrupted):
            raise TrainingInterrupted(f"the sweep in {folder} was interrupted: the same command resumes it.") from None


def _attempt(
    driver: Driver, lease: Lease, work: Path, until: int | None, perform: Perform, bases: BaseModels
) -> tuple[str, str]:
    """Carry a run out, up to an epoch if one is named; return its state and a note."""
    asked, error = False, None

    def stop(row: dict) -> bool:
        nonlocal asked
        asked = row["epoch"] >= until
        return asked

    try:
        perform(lease.config, work, bases, stop if until else None)
    except TrainingInterrupted:
        if not asked:
            raise
        note = f"{STOPPED} {until} of {lease.config['epochs']}"
        return driver.ledger.release(lease, error=note), note
    except Exception as problem:  # noqa: BLE001 - whatever it is, it is this run's; the others go on
        error = problem
    return driver.conclude(lease, work, error)


def stopping_on_signals() -> contextlib.AbstractContextManager[None]:
    """SIGTERM, which clusters send, is heeded like Ctrl-C."""
    return handling(signal.default_int_handler, signal.SIGTERM)
