"""Fewer runs than a grid has, when asked for: successive halving, and a budget with an order that Optuna chooses.

Halving: the runs that differ in nothing but learning rate and seed are one group, as in `rmbook.sweeps.report`, and its
learning rates compete by the mean over seeds. After epochs 1, 3, 9 ... of all of them, the best third goes on. The rule
is that of `rmbook.sweeps.best_rate`, by which a report chooses, too: the best rate of that moment is never stopped. All
rates wait for each other at these epochs, so the outcome does not depend on the order in which they are run.

A run that is stopped is interrupted, not lost: it stays pending, its folder with the checkpoint in work/, and a sweep
without halving completes it bit for bit. What to do next follows from what is in the folders and from nothing else, so
an interruption changes no decision, and two sweeps of one grid do the same.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rmbook.errors import ConfigError
from rmbook.runs.fingerprints import PlannedRun
from rmbook.sweeps.best_rate import DIVERGED, Score, mean_score, rank_rates

REDUCTION = 3  # one in three goes on
RANDOM_STARTS = 4  # runs of a group before the sampler has anything to learn from


@dataclass(frozen=True)
class Progress:
    """Progress of a run.

    Attributes:
        history: one row a finished epoch.
        ended: nothing more will come: it is done, diverged or failed.
    """

    history: tuple[dict, ...] = ()
    ended: bool = False

    def score(self, epochs: int) -> Score:
        """Return dev accuracy and dev loss of the best of the first epochs; `DIVERGED` if it diverged by then."""
        rows = self.history[:epochs]
        losses = [math.inf if row.get("dev_loss") is None else row["dev_loss"] for row in rows]
        if len(rows) < epochs or not all(map(math.isfinite, losses)):
            return DIVERGED
        best = rows[losses.index(min(losses))]
        return best.get("dev_accuracy"), best["dev_loss"]


Step = tuple[PlannedRun, int]  # a run, and the epoch up to which it is to go


def groups(runs: Sequence[PlannedRun], apart: Sequence[str]) -> list[list[PlannedRun]]:
    """Group the runs that agree in all settings but those named, in their order."""
    found: dict[str, list[PlannedRun]] = {}
    for run in runs:
        alike = {name: value is None if name in apart else value for name, value in run.config.items()}
        found.setdefault(json.dumps([alike, run.identity], sort_keys=True), []).append(run)
    return list(found.values())


def halving_steps(runs: Sequence[PlannedRun], progress: dict[str, Progress]) -> list[Step]:
    """Return what a group needs next, in the grid's order; nothing when the rates that are left are finished.

    Args:
        runs: the runs of one group.
        progress: by key; runs that are missing have not begun.
    """
    rates: dict[float, list[PlannedRun]] = {}
    for run in runs:
        rates.setdefault(float(run.config["learning_rate"]), []).append(run)
    epochs = runs[0].config["epochs"]
    for rung in [*rungs(epochs), epochs]:
        waiting = [(run, rung) for part in rates.values() for run in part if not _reached(run, rung, epochs, progress)]
        if waiting or rung == epochs:
            return waiting
        kept = survivors({rate: [progress[run.key].score(rung) for run in part] for rate, part in rates.items()})
        rates = {rate: part for rate, part in rates.items() if rate in kept}
    return []


def rungs(epochs: int) -> list[int]:
    """Return the epochs before the last one after which rates are stopped: 1, 3, 9 ..."""
    return [REDUCTION**power for power in range(epochs) if REDUCTION**power < epochs]


def survivors(scores: Mapping[float, Sequence[Score]]) -> list[float]:
    """Return the best third of the learning rates that have not diverged, rounded up, best first.

    Args:
        scores: one score a seed for each rate, as for `rmbook.sweeps.best_rate.rank_rates`.
    """
    finite = {rate: seeds for rate, seeds in scores.items() if math.isfinite(mean_score(seeds)[1])}
    return rank_rates(finite)[: math.ceil(len(finite) / REDUCTION)]


def sampled_steps(runs: Sequence[PlannedRun], progress: dict[str, Progress], seed: int) -> list[Step]:
    """Return the runs of a group that have not ended, nearest first to what Optuna's TPE sampler proposes.

    Args:
        runs: that differ in nothing but learning rate, share and seed.
        progress: by key.
        seed: of the sampler.
    """
    optuna, epochs = import_optuna(), runs[0].config["epochs"]
    ended = {run.key: progress[run.key] for run in runs if run.key in progress and progress[run.key].ended}
    places = {run.key: _place(run) for run in runs}
    axes = {name: sorted({place[name] for place in places.values()}) for name in ("learning_rate", "share")}
    axes = {name: values for name, values in axes.items() if len(values) > 1}
    ranges = {n: optuna.distributions.FloatDistribution(v[0], v[-1], log=True) for n, v in axes.items()}
    sampler = optuna.samplers.TPESampler(seed=seed + len(ended), n_startup_trials=RANDOM_STARTS)
    study = optuna.create_study(sampler=sampler)
    order = rank_rates({key: [found.score(epochs)] for key, found in ended.items()})
    for run in runs:
        if run.key in ended:  # the sampler looks at the order of values only
            params = {name: places[run.key][name] for name in axes}
            trial = {"params": params, "distributions": ranges, "value": float(order.index(run.key))}
            study.add_trial(optuna.trial.create_trial(**trial))
    wanted = study.ask(ranges).params

    def far(run: PlannedRun) -> float:
        logs = (abs(math.log(places[run.key][n] / wanted[n])) / math.log(v[-1] / v[0]) for n, v in axes.items())
        return round(sum(logs), 9)

    return [(run, epochs) for run in sorted((run for run in runs if run.key not in ended), key=far)]


def import_optuna():
    """Import Optuna, and have it print warnings alone.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise ConfigError("--budget needs --halving, or Optuna, which is not installed: pip install optuna") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _reached(run: PlannedRun, rung: int, epochs: int, progress: dict[str, Progress]) -> bool:
    found = progress.get(run.key, Progress())
    return found.ended or (rung < epochs and len(found.history) >= rung)


def _place(run: PlannedRun) -> dict[str, float]:
    config = run.config
    return {"learning_rate": float(config["learning_rate"]), "share": config["ratio"] or config["density"] or 1.0}
