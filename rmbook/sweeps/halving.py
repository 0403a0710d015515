"""Fewer runs than a grid has, when asked for: successive halving, and a budget with an order that Optuna chooses.

Halving: the runs that differ in nothing but learning rate and seed are one group, as in `rmbook.sweeps.report`, and its
learning rates compete by the mean over seeds. After epochs 1, 3, 9 ... of all of them, Optuna's pruner keeps the best
third by the order in which a report would choose: no rate that would be chosen at that moment is ever stopped. It is
Optuna's PercentilePruner at fixed epochs and not its SuccessiveHalvingPruner, which judges each trial by those before
it: there the outcome hangs on the order, and whoever comes first is never stopped.

A run that is stopped is interrupted, not lost: it stays pending, its folder with the checkpoint in work/, and a sweep
without halving completes it bit for bit. What to do next follows from what is in the folders and from nothing else, so
an interruption changes no decision, and two sweeps of one grid do the same.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from rmbook.errors import ConfigError
from rmbook.runs.fingerprints import PlannedRun
from rmbook.sweeps.report import rank_rates
from rmbook.tasks.catalog import find_task

REDUCTION = 3  # one in three goes on
RANDOM_STARTS = 4  # runs of a group before the sampler has anything to learn from


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        history: one row a finished epoch.
        ended: nothing more will come: it is done, diverged or failed.
    """

    history: tuple[dict, ...] = ()
    ended: bool = False

    def score(self, epochs: int) -> tuple[float | None, float]:
        """Dev accuracy and dev loss of the best of the first epochs; the loss is infinite if it diverged by then."""
        rows = self.history[:epochs]
        losses = [row.get("dev_loss") for row in rows]
        if len(rows) < epochs or any(loss is None or not math.isfinite(loss) for loss in losses):
            return None, math.inf
        best = rows[losses.index(min(losses))]
        return best["dev_accuracy"], best["dev_loss"]


Step = tuple[PlannedRun, int]  # a run, and the epoch up to which it is to go


def groups(runs: Sequence[PlannedRun], apart: Sequence[str]) -> list[list[PlannedRun]]:
    """The runs that agree in all settings but those named, in their order."""
    found: dict[str, list[PlannedRun]] = {}
    for run in runs:
        alike = {name: value is None if name in apart else value for name, value in run.config.items()}
        found.setdefault(json.dumps([alike, run.identity], sort_keys=True), []).append(run)
    return list(found.values())


def halving_steps(runs: Sequence[PlannedRun], progress: dict[str, Progress]) -> list[Step]:
    """What a group needs next, in the grid's order; nothing when the rates that are left are finished.

    Args:
        runs: a group's.
        progress: by key; runs that are missing have not begun.
    """
    rates: dict[float, list[PlannedRun]] = {}
    for run in runs:
        rates.setdefault(float(run.config["learning_rate"]), []).append(run)
    epochs = runs[0].config["epochs"]
    right = not find_task(runs[0].config["task"]).trains_answer
    for rung in [*rungs(epochs), epochs]:
        waiting = [(run, rung) for part in rates.values() for run in part if not _reached(run, rung, epochs, progress)]
        if waiting or rung == epochs:
            return waiting
        scores = {rate: _mean([progress[run.key].score(rung) for run in part], right) for rate, part in rates.items()}
        kept = survivors(scores, rung)
        rates = {rate: part for rate, part in rates.items() if rate in kept}
    return []


def rungs(epochs: int) -> list[int]:
    """The epochs before the last one after which rates are stopped: 1, 3, 9 ..."""
    return [REDUCTION**power for power in range(epochs) if REDUCTION**power < epochs]


def survivors(scores: dict[float, tuple[float | None, float]], epoch: int) -> list[float]:
    """The third of the learning rates, rounded up, that goes on: those that Optuna's pruner does not stop.

    Args:
        scores: mean dev accuracy and mean dev loss of each rate; none with an infinite loss goes on.
        epoch: after which these are.
    """
    optuna = import_optuna()
    finite = {rate: score for rate, score in scores.items() if math.isfinite(score[1])}
    places = {rate: float(place) for place, rate in enumerate(rank_rates(finite), 1)}
    study = optuna.create_study(pruner=optuna.pruners.PercentilePruner(100 / REDUCTION, n_startup_trials=0))
    for place in places.values():
        study.add_trial(optuna.trial.create_trial(value=place, intermediate_values={epoch: place}))
    kept = []
    for rate, place in places.items():
        trial = study.ask()
        trial.report(place, epoch)
        if not trial.should_prune():
            kept.append(rate)
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)  # each is measured against the same ones
    return kept


def sampled_steps(runs: Sequence[PlannedRun], progress: dict[str, Progress], seed: int) -> list[Step]:
    """The runs of a group that have not ended, those first that are nearest to what Optuna's TPE sampler proposes.

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
    order = rank_rates({key: found.score(epochs) for key, found in ended.items()})
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
    """The library, quiet.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise ConfigError("--halving and --budget need Optuna, which is not installed: pip install optuna") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _reached(run: PlannedRun, rung: int, epochs: int, progress: dict[str, Progress]) -> bool:
    found = progress.get(run.key, Progress())
    return found.ended or (rung < epochs and len(found.history) >= rung)


def _mean(scores: list[tuple[float | None, float]], right: bool) -> tuple[float | None, float]:
    loss = sum(loss for _, loss in scores) / len(scores)
    if not right or not math.isfinite(loss):
        return None, loss
    return sum(accuracy for accuracy, _ in scores) / len(scores), loss


def _place(run: PlannedRun) -> dict[str, float]:
    config = run.config
    return {"learning_rate": float(config["learning_rate"]), "share": config["ratio"] or config["density"] or 1.0}
