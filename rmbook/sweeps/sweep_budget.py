"""Sweeps in one process that perform a part of their runs: by successive halving, or up to a budget.

`rmbook.sweeps.halving` decides what is next. Everything else is as in `rmbook.sweeps.local`: the same folder, ledger and runs, so
either continues the other's sweep, and several processes share the work.
"""

import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rmbook.errors import ConfigError
from rmbook.models.reuse import BaseModels
from rmbook.runs.fingerprints import PlannedRun
from rmbook.sweeps.driver import Driver, SweepError, perform
from rmbook.sweeps.folder import SweepFolder
from rmbook.sweeps.halving import Progress, Step, groups, halving_steps, import_optuna, sampled_steps
from rmbook.sweeps.ledger import Lease
from rmbook.sweeps.local import POLL_SECONDS, Report, stopping_on_signals
from rmbook.sweeps.report import STOPPED
from rmbook.training.checkpoint import TrainingInterrupted

SHARES = ("ratio", "density")


def run_part(
    runs: Sequence[PlannedRun],
    folder: str | os.PathLike,
    *,
    halving: bool = False,
    budget: float | None = None,
    seed: int = 0,
    report: Report | None = None,
    retry_failed: bool = False,
    wait: bool = True,
    lease_seconds: float = 300.0,
    max_attempts: int = 5,
) -> dict[str, int]:
    """As `rmbook.sweeps.local.run_sweep`, but for runs that halving stops, and what the budget leaves.

    Args:
        runs, folder, report, retry_failed, wait, lease_seconds, max_attempts: as there.
        halving: stop learning rates whose group has better ones, group after group in the grid's order.
        budget: most that this call spends, in whole runs: an epoch counts as its share of its run's epochs. What would
            go beyond it is not begun. Without halving, the runs come in the order that the sampler chooses, one of each
            group in turn.
        seed: of the sampler.

    Raises:
        ConfigError: Optuna is missing, or the budget is not positive.
        Also what `run_sweep` raises.
    """
    import_optuna()
    if budget is not None and not 0 < budget < float("inf"):
        raise ConfigError(f"the budget must be a positive number of runs, got {budget!r}.")
    report, bases, spent = report or Report(), BaseModels(), 0.0
    with Driver(folder, runs, lease_seconds=lease_seconds, max_attempts=max_attempts) as driver, stopping_on_signals():
        ledger = driver.ledger
        if retry_failed:
            ledger.reset(ledger.keys("failed"))
        board = _Board(driver, runs, halving, seed)
        while True:
            try:
                claimed, found = None, False
                for run, until in board.steps():
                    before, epochs, found = len(board.progress(run.key).history), run.config["epochs"], True
                    if budget is not None and spent + (until - before) / epochs > budget + 1e-9:
                        return ledger.counts(wanted=True)
                    if claimed := driver.claim(run.key):  # else another process has it in hand
                        break
                if claimed:
                    report.begun(claimed[0], ledger.counts(wanted=True))
                    state, note = _advance(driver, *claimed, until, bases)
                    after = board.progress(run.key)
                    begun = len(after.history) + (after.ended and len(after.history) < until)  # one that broke off
                    spent += max(0, begun - before) / epochs
                    report.ended(claimed[0], state, note, ledger.counts(wanted=True))
                    continue
                counts = ledger.counts(wanted=True)
                if not found or not counts["leased"] or not wait:
                    return counts
                report.waiting(counts)
                time.sleep(POLL_SECONDS)
            except (KeyboardInterrupt, TrainingInterrupted):
                raise TrainingInterrupted(f"the sweep in {folder} was interrupted: the same command goes on.") from None


class _Board:
    """What is done and what is next, as the folders have it."""

    def __init__(self, driver: Driver, runs: Sequence[PlannedRun], halving: bool, seed: int):
        self._driver, self._halving, self._seed = driver, halving, seed
        self._groups = groups(runs, ("learning_rate", "seed") if halving else ("learning_rate", "seed", *SHARES))
        self._ended: dict[str, Progress] = {}

    def steps(self) -> Iterator[Step]:
        """What is next: in the first group that needs something; or, when sampled, in the one with least results."""
        self._failed = set(self._driver.ledger.keys("failed"))
        if self._halving:
            for group in list(self._groups):
                steps = halving_steps(group, {run.key: self.progress(run.key) for run in group})
                yield from steps
                if not steps:
                    self._groups.remove(group)
                    self._say_who_was_stopped(group)
            return
        progress = [{run.key: self.progress(run.key, whole=True) for run in group} for group in self._groups]
        for place in sorted(range(len(progress)), key=lambda place: sum(p.ended for p in progress[place].values())):
            yield from sampled_steps(self._groups[place], progress[place], self._seed)

    def _say_who_was_stopped(self, group: Sequence[PlannedRun]) -> None:
        """A process that was killed could not say it of the run that it had in hand."""
        for run in group:
            if not (found := self.progress(run.key)).ended:
                note = f"{STOPPED} {len(found.history)} of {run.config['epochs']}"
                self._driver.ledger.note(run.key, note)

    def progress(self, key: str, whole: bool = False) -> Progress:
        """How far a run is; with `whole`, the epochs of one that has not ended are not looked up."""
        if key not in self._ended and (result := self._driver.place.result(key)):
            self._ended[key] = Progress(tuple(result["history"]), ended=True)
        if key in self._ended:
            return self._ended[key]
        return Progress(() if whole else _history(self._driver.place, key), key in self._failed)


def _advance(driver: Driver, lease: Lease, work: Path, until: int, bases: BaseModels) -> tuple[str, str]:
    """Carry a run on up to an epoch."""
    epochs, asked = lease.config["epochs"], False

    def stop(row: dict) -> bool:
        nonlocal asked
        asked = until <= row["epoch"] < epochs
        return asked

    try:
        perform(lease.config, work, bases, stop)
        return driver.settle(lease, work), ""
    except TrainingInterrupted:
        if not asked:
            raise
        note = f"{STOPPED} {until} of {epochs}"
        return ("pending" if driver.ledger.release(lease, error=note) else "lost"), note
    except SweepError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, it is this run's; the others go on
        return driver.give_up(lease, error), f"{type(error).__name__}: {' '.join(str(error).split())}"


def _history(place: SweepFolder, key: str) -> tuple[dict, ...]:
    """The finished epochs of a run under way, or interrupted."""
    for folder in (*place.work.glob(f"{key}.*"), place.runs / key):
        try:
            lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
            rows = [json.loads(line) for line in lines if line.endswith("\n")]  # a kill may have cut the last one
            return tuple(row for row in rows if "dev_loss" in row)
        except (OSError, ValueError, TypeError):  # none yet, or damaged: then the run begins anew
            continue
    return ()
