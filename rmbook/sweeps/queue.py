"""Which run of a sweep is next: any that is pending; or what halving and a budget choose.

A queue is asked by `rmbook.sweeps.local.run_sweep`: `claim` for a run to perform, `waits` whether runs in other
processes' hands are to be waited for when there is none, `ended` after each run.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rmbook.errors import ConfigError
from rmbook.runs.fingerprints import PlannedRun
from rmbook.runs.result import RunError, read_metrics
from rmbook.sweeps.driver import Driver
from rmbook.sweeps.folder import SweepFolder
from rmbook.sweeps.halving import Progress, Step, groups, halving_steps, import_optuna, sampled_steps
from rmbook.sweeps.ledger import STOPPED, Lease

SHARES = ("ratio", "density")
Claim = tuple[Lease, Path, int | None]  # a run in hand, its folder, and the epoch up to which it is to go; None: all


class WholeQueue:
    """All pending runs, in the ledger's order."""

    def __init__(self, driver: Driver):
        self._driver = driver

    def claim(self) -> Claim | None:
        """Take the next run; None if none is pending."""
        claimed = self._driver.claim()
        return claimed and (*claimed, None)

    def ended(self, lease: Lease) -> None:
        """Hear that a run has ended."""

    def waits(self, counts: dict[str, int], wait: bool) -> bool:
        """Return whether there may be something to do later."""
        return counts["pending"] > 0 or (wait and counts["leased"] > 0)


class PartQueue:
    """The queue of halving, or of a sampler, up to a budget.

    Args:
        driver: of the sweep.
        runs: of the grid.
        halving: stop learning rates whose group has better ones, group after group in the grid's order. Otherwise the
            runs come in the order that the sampler chooses, one of each group in turn.
        budget: the most to spend, in whole runs: an epoch counts as its share of its run's epochs.
        seed: of the sampler.
    """

    def __init__(self, driver: Driver, runs: Sequence[PlannedRun], halving: bool, budget: float | None, seed: int):
        self._driver, self._halving, self._budget, self._seed = driver, halving, budget, seed
        self._groups = groups(runs, ("learning_rate", "seed") if halving else ("learning_rate", "seed", *SHARES))
        self._finished: dict[str, Progress] = {}
        self._failed: set[str] = set()
        self._left = False  # whether something is to be done that others have in hand
        self._spent, self._before, self._until = 0.0, 0, 0

    def claim(self) -> Claim | None:
        """Take the first run that is needed and free; None if there is none, or it would go beyond the budget."""
        self._left = False
        for run, until in self._steps():
            epochs, self._before, self._until = run.config["epochs"], len(self._progress(run.key).history), until
            if self._budget is not None and self._spent + (until - self._before) / epochs > self._budget + 1e-9:
                self._left = False
                return None
            self._left = True
            if claimed := self._driver.claim(run.key):  # else another process has it in hand
                return *claimed, until if until < epochs else None
        return None

    def ended(self, lease: Lease) -> None:
        """Count what the run has spent."""
        after = self._progress(lease.key)
        begun = len(after.history) + (after.ended and len(after.history) < self._until)  # an epoch that broke off
        self._spent += max(0, begun - self._before) / lease.config["epochs"]

    def waits(self, counts: dict[str, int], wait: bool) -> bool:
        """Return whether there may be something to do later."""
        return self._left and wait and counts["leased"] > 0

    def _steps(self) -> Iterator[Step]:
        """Yield what is next: in the first group that needs something, or in the one that has the fewest results."""
        self._failed = set(self._driver.ledger.keys("failed"))
        if self._halving:
            for group in list(self._groups):
                steps = halving_steps(group, {run.key: self._progress(run.key) for run in group})
                yield from steps
                if not steps:
                    self._groups.remove(group)
                    self._say_who_was_stopped(group)
            return
        progress = [{run.key: self._progress(run.key, whole=True) for run in group} for group in self._groups]
        for place in sorted(range(len(progress)), key=lambda place: sum(p.ended for p in progress[place].values())):
            yield from sampled_steps(self._groups[place], progress[place], self._seed)

    def _say_who_was_stopped(self, group: Sequence[PlannedRun]) -> None:
        """Write it into the ledger; a process that was killed could not do so for the run that it had in hand."""
        for run in group:
            if not (found := self._progress(run.key)).ended:
                self._driver.ledger.note(run.key, f"{STOPPED} {len(found.history)} of {run.config['epochs']}")

    def _progress(self, key: str, whole: bool = False) -> Progress:
        """Return how far a run is; with `whole`, the epochs of one that has not ended are not looked up."""
        if key not in self._finished and (result := self._driver.place.result(key)):
            self._finished[key] = Progress(tuple(result.get("history", ())), ended=True)
        if key in self._finished:
            return self._finished[key]
        return Progress(() if whole else _history(self._driver.place, key), key in self._failed)


def check_part(runs: Sequence[PlannedRun], halving: bool, budget: float | None) -> None:
    """Check that a part of these runs can be chosen, before a sweep is begun.

    Raises:
        ConfigError: Optuna is missing where it is needed, the budget is not positive, or the runs have no epochs.
    """
    if not halving:
        import_optuna()
    if budget is not None and not 0 < budget < float("inf"):
        raise ConfigError(f"the budget must be a positive number of runs, got {budget!r}.")
    if not all({"epochs", "learning_rate", *SHARES} <= run.config.keys() for run in runs):
        raise ConfigError("halving and budgets are for fine-tuning runs, which have epochs and a learning rate.")


def _history(place: SweepFolder, key: str) -> tuple[dict, ...]:
    """Return the finished epochs of a run under way, or interrupted."""
    for folder in (*place.work.glob(f"{key}.*"), place.runs / key):
        if (folder / "metrics.jsonl").exists():  # else there is none yet
            try:
                return tuple(row for row in read_metrics(folder / "metrics.jsonl") if "dev_loss" in row)
            except RunError:  # damaged: then the run begins anew
                continue
    return ()
