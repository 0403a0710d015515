"""Successive halving and budgets: who is stopped, what is spent, and that nothing is lost by it."""

import importlib.util
import json
import math
import multiprocessing
import sys
import time
from fractions import Fraction

import pytest
import yaml
from command_line import call, refused
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_sweep import adapters, table, tiny_settings

from rmbook.errors import ConfigError
from rmbook.files import write_json
from rmbook.runs.config import RunConfig
from rmbook.runs.fingerprints import PlannedRun
from rmbook.runs.folder import finite
from rmbook.sweeps.best_rate import rank_rates
from rmbook.sweeps.folder import SweepFolder
from rmbook.sweeps.grid import expand, plan
from rmbook.sweeps.halving import REDUCTION, Progress, groups, halving_steps, rungs, sampled_steps, survivors
from rmbook.sweeps.listener import Listener
from rmbook.sweeps.local import run_sweep
from rmbook.sweeps.report import read_runs, summarize
from rmbook.sweeps.state import open_ledger
from rmbook.training.checkpoint import TrainingInterrupted

no_optuna = importlib.util.find_spec("optuna") is None
needs_optuna = pytest.mark.skipif(no_optuna, reason="its sampler is Optuna's: pip install optuna")
HALVING = [True, pytest.param(False, marks=needs_optuna)]
RATES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["rmbook.sweeps.local"])

# ----------------------------------------------------------------------------------------------------------- decisions


def test_rungs_are_powers_below_the_last_epoch():
    assert [rungs(epochs) for epochs in (1, 2, 3, 4, 5, 10)] == [[], [1], [1], [1, 3], [1, 3], [1, 3, 9]]


SCORE = st.tuples(st.floats(0, 1), st.one_of(st.floats(0, 10), st.just(math.inf)))
SCORES = st.dictionaries(st.floats(1e-9, 1e9), st.lists(SCORE, min_size=1, max_size=3), min_size=1, max_size=20)


def alive(scores: dict) -> dict:
    return {rate: seeds for rate, seeds in scores.items() if all(math.isfinite(loss) for _, loss in seeds)}


@given(SCORES)
def test_the_best_third_goes_on_whatever_the_order(scores):
    kept = survivors(scores)
    assert kept == rank_rates(alive(scores))[: math.ceil(Fraction(len(alive(scores)), REDUCTION))]
    assert survivors(dict(reversed(scores.items()))) == kept


@needs_optuna
@settings(max_examples=30, deadline=None)
@given(SCORES)
def test_the_decisions_are_those_of_optunas_percentile_pruner(scores):
    """Each rate reports its place among those that go on; places are all different, so nothing ties."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    places = {rate: float(place) for place, rate in enumerate(rank_rates(alive(scores)), 1)}
    study = optuna.create_study(pruner=optuna.pruners.PercentilePruner(100 / REDUCTION, n_startup_trials=0))
    for place in places.values():
        study.add_trial(optuna.trial.create_trial(value=place, intermediate_values={1: place}))
    kept = []
    for rate, place in places.items():
        trial = study.ask()
        trial.report(place, 1)
        if not trial.should_prune():
            kept.append(rate)
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)  # each is measured against the same ones
    assert survivors(scores) == kept


def test_the_epoch_that_counts_is_that_of_the_lowest_loss():
    rows = [{"dev_loss": loss, "dev_accuracy": right} for loss, right in ((3, 0.1), (1, 0.2), (2, 0.3), (0.5, 0.4))]
    progress = Progress(tuple(rows))
    assert [progress.score(epochs) for epochs in (1, 2, 3, 4)] == [(0.1, 3), (0.2, 1), (0.2, 1), (0.4, 0.5)]
    assert progress.score(5) == (None, math.inf)
    assert Progress(({"dev_loss": None, "dev_accuracy": None},), True).score(1) == (None, math.inf)


def planned(**changes) -> PlannedRun:
    config = RunConfig(**{"model": "m", "task": "SST-2", "learning_rate": 1e-3, "ratio": 1e-3} | changes)
    return PlannedRun(config.digest(), config.to_dict(), {"data": "d", "weights": "w", "code": "c"})


def test_only_learning_rates_and_seeds_compete():
    runs = [planned(learning_rate=rate, seed=s, ratio=r) for r in (1e-3, 1e-2) for rate in RATES for s in (0, 1)]
    found = groups(runs, ("learning_rate", "seed"))
    assert [len(group) for group in found] == [12, 12] and sum(found, []) == runs
    assert len(groups([*runs, planned(ratio=None, density=0.1)], ("learning_rate", "seed", "ratio", "density"))) == 2


def test_a_rate_is_judged_by_the_mean_over_its_seeds_and_stopped_with_all_of_them():
    runs = [planned(learning_rate=rate, seed=s) for rate in RATES[:3] for s in (0, 1)]
    assert halving_steps(runs, {}) == [(run, 1) for run in runs]
    right = {(1e-1, 0): 0.9, (1e-1, 1): 0.1, (1e-2, 0): 0.6, (1e-2, 1): 0.6, (1e-3, 0): 0.5, (1e-3, 1): 0.5}
    progress = {}
    for run in runs[:-1]:
        row = {"dev_loss": 1.0, "dev_accuracy": right[run.config["learning_rate"], run.config["seed"]]}
        progress[run.key] = Progress((row,))
    assert halving_steps(runs, progress) == [(runs[-1], 1)]  # no decision before all are there
    progress[runs[-1].key] = Progress((row,))
    assert halving_steps(runs, progress) == [(runs[2], 3), (runs[3], 3)]
    progress[runs[3].key] = Progress(ended=True)  # failed: its rate cannot be judged, and does not go on
    assert halving_steps(runs, progress) == [(runs[4], 3), (runs[5], 3)]  # of two that tie, the smaller rate


# ------------------------------------------------------------------------------- sweeps of runs that only pretend to be


def pretend(quality, log=None):
    """A `perform` that trains nothing: dev loss is |log10(rate) - quality| / epoch, and a rate above 1 diverges."""

    def perform(config, folder, bases, stop):
        folder.mkdir(exist_ok=True)
        metrics, rate = folder / "metrics.jsonl", config["learning_rate"]
        rows = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
        for epoch in range(len(rows) + 1, config["epochs"] + 1):
            loss = (
                math.nan if rate > 1 and epoch == 2 else abs(math.log10(rate) - quality) / epoch + config["seed"] / 99
            )
            row = {"epoch": epoch, "step": epoch, "train_loss": 1.0, "dev_loss": loss, "dev_accuracy": 1 / (1 + loss)}
            rows.append(finite(row))
            metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
            if log is not None:
                log.append((rate, config["seed"], epoch))
            if math.isnan(loss):
                break
            if stop and stop(row):
                raise TrainingInterrupted("stopped")
        broken = rows[-1]["dev_loss"] is None
        result = {"status": "diverged" if broken else "completed", "config": config, "records": {"train": 1, "test": 1}}
        result |= {"trainable": 1, "total": 9, "ratio": 1 / 9, "cut_prompts": 0, "steps": len(rows), "history": rows}
        result |= {"best_epoch": 1 if broken else len(rows), "test": {"accuracy": 0.5}, "stamp": {"command": ""}}
        write_json(folder / "result.json", result)

    return perform


def sweep_of(folder, runs, quality=-3, **keywords):
    """What each call performs: (rate, seed, epoch), in order."""
    log = []
    counts = run_sweep(runs, folder, perform=pretend(quality, log), **keywords)
    assert counts["leased"] == 0
    return log


def grid(rates=RATES, seeds=(0, 1), **changes) -> list[PlannedRun]:
    return [planned(learning_rate=rate, seed=seed, **changes) for rate in rates for seed in seeds]


@pytest.mark.parametrize("quality", [-1, -3, -6])
def test_the_promising_rate_is_finished_and_the_hopeless_are_stopped_at_once(quality, tmp_path):
    log = sweep_of(tmp_path / "s", grid(), quality, halving=True)
    reached = {rate: max(epoch for r, _, epoch in log if r == rate) for rate in RATES}
    assert reached[10.0**quality] == 5 and sorted(reached.values()) == [1, 1, 1, 1, 3, 5]
    assert len(log) == len(set(log)) == 2 * (6 * 1 + 2 * 2 + 1 * 2)  # of 60 epochs
    ledger = open_ledger(SweepFolder(tmp_path / "s"))
    assert ledger.counts()["done"] == 2 and ledger.counts()["pending"] == 10
    notes = sorted(row["error"] for row in ledger.rows("pending"))
    assert notes == ["stopped after epoch 1 of 5"] * 8 + ["stopped after epoch 3 of 5"] * 2
    assert {row["attempts"] for row in ledger.rows("pending")} == {0}
    assert len(list((tmp_path / "s" / "work").glob("*/metrics.jsonl"))) == 10
    assert sweep_of(tmp_path / "s", grid(), quality, halving=True) == []


def test_groups_do_not_compete_with_each_other(tmp_path):
    runs = [*grid(ratio=1e-3), *grid(method="lora", ratio=None)]
    both = sweep_of(tmp_path / "s", runs, halving=True)
    assert both == 2 * sweep_of(tmp_path / "t", grid(), halving=True)
    assert open_ledger(SweepFolder(tmp_path / "s")).counts()["done"] == 4


def test_what_diverges_is_a_result_and_the_others_go_on(tmp_path):
    log = sweep_of(tmp_path / "s", grid((1e30, 1e-3, 1e-4), (0,)), 30, halving=True)
    assert log[:3] == [(1e30, 0, 1), (1e-3, 0, 1), (1e-4, 0, 1)] and log[3:] == [(1e30, 0, 2)]
    ledger = open_ledger(SweepFolder(tmp_path / "s"))
    assert ledger.counts() == {"pending": 2, "leased": 0, "done": 0, "diverged": 1, "failed": 0}


@pytest.mark.parametrize("halving", HALVING)
@pytest.mark.parametrize("budget", [0.1, 1, 2.5, 100])
def test_the_budget_is_kept(halving, budget, tmp_path):
    log = sweep_of(tmp_path / "s", grid(), halving=halving, budget=budget)
    whole = 24 if halving else 60
    assert len(log) <= 5 * budget and len(log) >= min(whole, 5 * budget - 4.99)
    if not halving:
        assert open_ledger(SweepFolder(tmp_path / "s")).counts()["done"] == len(log) / 5 == min(12, int(budget))


@pytest.mark.parametrize("halving", HALVING)
def test_many_small_calls_do_what_one_does(halving, tmp_path):
    """So an interruption changes no decision, and the same grid gives the same again."""
    runs, parts = [*grid(seeds=(0,)), *grid(seeds=(0,), ratio=1e-2)], []
    whole = sweep_of(tmp_path / "one", runs, halving=halving, budget=50)
    while part := sweep_of(tmp_path / "many", runs, halving=halving, budget=1):
        parts += part
    assert parts == whole and len(whole) == (24 if halving else 60)
    assert sweep_of(tmp_path / "again", runs, halving=halving, budget=50) == whole


@needs_optuna
def test_the_sampler_takes_groups_in_turn_and_its_seed_decides(tmp_path):
    runs = [*grid(ratio=1e-3), *grid(method="lora", ratio=None)]
    sweep_of(tmp_path / "s", runs, budget=6)
    done = [row["config"]["method"] for row in open_ledger(SweepFolder(tmp_path / "s")).rows("done")]
    assert sorted(done) == ["lora"] * 3 + ["random_masking"] * 3
    runs = [planned(learning_rate=rate, ratio=r) for rate in RATES for r in (1e-1, 1e-2, 1e-3)]
    orders = {tuple(sampled_steps(runs, {}, seed)[0][0].key for _ in range(2)) for seed in range(20)}
    assert len(orders) > 5 and all(one == two for one, two in orders)


@needs_optuna
def test_the_sampler_learns(tmp_path):
    """It finds, on 60 rates with one good one, better rates than drawing without replacement would."""
    rates, found = [10 ** (-6 + 5 * n / 59) for n in range(60)], []
    for seed in range(4):
        log = sweep_of(tmp_path / f"s{seed}", grid(rates, (0,), epochs=1), budget=20, seed=seed)
        found.append(sorted(abs(math.log10(rate) + 3) for rate, _, _ in log)[:10][-1])
    nearest = sorted(abs(math.log10(rate) + 3) for rate in rates)
    assert sum(found) / 4 < nearest[20]  # by chance, half of the 20 lie nearer than about the 30th


class Stop(Listener):
    def __init__(self, after):
        self.left = after

    def begun(self, lease, counts):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("halving", HALVING)
def test_ctrl_c_is_no_decision(halving, tmp_path):
    runs, folder = grid(), tmp_path / "s"
    whole = sweep_of(tmp_path / "whole", runs, halving=halving, budget=8)
    for after in (3, 0, 7):
        with pytest.raises(TrainingInterrupted, match="same command"):
            sweep_of(folder, runs, halving=halving, budget=8, listener=Stop(after))
        assert open_ledger(SweepFolder(folder)).counts()["leased"] == 0

    def interrupted(config, place, bases, stop):
        raise TrainingInterrupted("Ctrl-C, and not by halving")

    part = {"halving": halving, "budget": 100}
    with pytest.raises(TrainingInterrupted, match="same command"):
        run_sweep(runs, folder, perform=interrupted, **part)
    ledger = open_ledger(SweepFolder(folder))
    assert ledger.counts()["leased"] == 0 and {row["attempts"] for row in ledger.rows("pending")} == {0}
    sweep_of(folder, runs, **part)
    results = {path.parent.name for path in (tmp_path / "whole").glob("runs/*/result.json")}
    assert whole and results <= {path.parent.name for path in folder.glob("runs/*/result.json")}


def test_errors_are_the_runs_own(tmp_path):
    def failing(config, folder, bases, stop):
        if config["learning_rate"] == 1e-3:
            raise ConfigError("no")
        if config["learning_rate"] == 1e-4 and not list(tmp_path.glob("away")):
            (tmp_path / "away").touch()
            raise OSError("file system away")
        pretend(-2)(config, folder, bases, stop)

    counts = run_sweep(grid((1e-2, 1e-3, 1e-4), (0,)), tmp_path / "s", perform=failing, halving=True)
    assert (counts["done"], counts["failed"], counts["pending"]) == (1, 1, 1)


# ----------------------------------------------------------------------------------------------------------- real runs


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("halving")
    fixed = tiny_settings(folder, epochs=2, train_size=24, ratio=1e-2)
    grid = {"fixed": fixed, "axes": {"learning_rate": [1e-2, 1e30, 1e-3, 1e-4]}}
    (folder / "grid.yaml").write_text(yaml.safe_dump(grid))
    runs = plan(expand(grid))
    assert run_sweep(runs, folder / "undisturbed")["done"] == 3
    return folder


def test_a_sweep_without_halving_completes_what_halving_stopped_bit_for_bit(places, tmp_path):
    folder, command = tmp_path / "sweep", ("sweep", "run", places / "grid.yaml", "--output", tmp_path / "sweep")
    runs = plan(expand(yaml.safe_load((places / "grid.yaml").read_text())))
    process = SERVER.Process(target=run_sweep, args=(runs, folder), kwargs={"halving": True})
    process.start()
    deadline = time.monotonic() + 120
    while len(list(folder.glob("work/*/checkpoint.safetensors"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()  # the second run is under way, or about to be put aside
    process.join()
    answer = call(*command, "--halving")
    assert answer.exit_code == 0 and "2 pending, 1 done, 1 diverged" in answer.stdout, answer.output
    assert "without --halving and --budget, the same command completes the rest" in answer.stdout
    assert "2 of the pending ones were stopped early" in call("sweep", "status", folder).stdout
    assert len(list(folder.glob("work/*/checkpoint.safetensors"))) == 2
    row = summarize(read_runs(folder)[0]).iloc[0]
    assert "2 stopped early (at " in row["missing"] and row["finished"] == 2
    assert call("sweep", "export", folder, "--csv", tmp_path / "part.csv").exit_code == 0
    answer = call(*command)
    assert answer.exit_code == 0 and "3 done, 1 diverged" in answer.stdout and "rest" not in answer.stdout
    assert table(folder) == table(places / "undisturbed") and adapters(folder) == adapters(places / "undisturbed")
    assert not list(folder.glob("work/*"))


# -------------------------------------------------------------------------------------------------------- command line


def test_flags_that_do_not_fit_are_one_line(places, tmp_path, monkeypatch):
    command = ("sweep", "run", places / "grid.yaml", "--output", tmp_path / "sweep")
    refused(call(*command, "--budget", 0), "budget", "above 0")
    refused(call(*command, "--halving", "--engine", "ray"), "--engine")
    monkeypatch.setitem(sys.modules, "optuna", None)
    refused(call(*command, "--budget", 3), "pip install optuna")
    assert not (tmp_path / "sweep").exists()
    assert sweep_of(tmp_path / "s", grid(), halving=True, budget=3)  # needs no library
    assert call("sweep", "run", "--help").stdout.count("--halving") >= 2
