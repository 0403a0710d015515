"""Sweeps: what bookkeeping costs, what Ray brings, and whether disturbances or kept models change the results.

    python benchmarks/sweep.py ledger [--runs 10000]
    python benchmarks/sweep.py overhead [--runs 20]
    python benchmarks/sweep.py chaos [--runs 200] [--kills 30] [--seed 0]
    python benchmarks/sweep.py reuse [--runs 50] [--seed 0]
    python benchmarks/sweep.py ray [--runs 16]
    each with [--write] to record it in results/benchmarks/

chaos makes a grid of real tiny runs twice: undisturbed, and by two drivers of which one is killed (SIGKILL) at random
moments and started anew. In between the disk is full for one, the clock of one is set back by ten years, the files of
runs under way are torn after both were killed, and the ledger is lost. Then the two final tables and all trained
weights must have the same bytes. The tests have the same in small.

reuse performs runs of all methods one after the other on one loaded model, and each in a process of its own
(`rmbook train`); results and adapters must agree bit for bit. ray compares one worker with two, on runs of some 4 s and
one thread each; it is worth recording on two idle cores only, and prints the load before.
"""

import argparse
import json
import multiprocessing
import random
import resource
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from recorded import write_result
from sweep_engines import measure_ray, measure_reuse
from tiny_sweeps import contents, tiny_runs

from rmbook.runs.config import make_config
from rmbook.runs.fingerprints import PlannedRun
from rmbook.runs.run import start_run
from rmbook.sweeps.display import LineListener
from rmbook.sweeps.driver import perform_run
from rmbook.sweeps.folder import SweepFolder
from rmbook.sweeps.ledger import Ledger
from rmbook.sweeps.local import run_sweep
from rmbook.sweeps.state import open_ledger
from rmbook.sweeps.table import sweep_table

SERVER = multiprocessing.get_context("forkserver")


# -------------------------------------------------------------------------------------------------------------- ledger


def measure_ledger(folder: Path, count: int) -> dict:
    """Seconds for claims, finishes and the status of a ledger, of which half is done."""
    config = make_config({"model": "a/b", "task": "RTE", "learning_rate": 1e-2, "ratio": 1e-4}).to_dict()
    runs = [PlannedRun(f"{number:032x}", config | {"seed": number}, {"code": "x"}) for number in range(count)]
    place = SweepFolder(folder / "sweep", new=True)
    place.keep_plan(runs)
    ledger, times = Ledger(place.ledger, "me"), {"claim": [], "finish": []}
    started = time.perf_counter()
    ledger.add(runs)
    found = {"runs": count, "add_seconds": time.perf_counter() - started}
    result = {"test": {"accuracy": 0.5}, "timing": {"seconds": 1.0}, "trainable": 1, "total": 2, "dev_loss": 0.1}
    for number in range(count):
        before = time.perf_counter()
        lease = ledger.claim()
        claimed = time.perf_counter()
        if number % 2:
            ledger.release(lease, counted=True)
        else:
            ledger.finish(lease, "done", result)
        times["claim"].append(claimed - before)
        times["finish"].append(time.perf_counter() - claimed)
    for name, values in times.items():
        found[name] = {
            "median": statistics.median(values),
            "p99": sorted(values)[int(0.99 * count)],
            "max": max(values),
        }
    for name, call in (
        ("counts_seconds", ledger.counts),
        ("status_seconds", lambda: open_ledger(place).counts()),  # with a look into the folders of unfinished runs
        ("table_seconds", lambda: sweep_table(ledger.rows())),
    ):
        before = time.perf_counter()
        call()
        found[name] = time.perf_counter() - before
    return found


# ------------------------------------------------------------------------------------------------------------ overhead


def measure_overhead(folder: Path, count: int) -> dict:
    """Seconds of a sweep outside of its runs, and its runs against the same ones called directly, in turns."""
    runs = tiny_runs(folder, count, train_size=240, epochs=5)
    start_run(make_config(runs[1].config), folder / "warm", progress=False)
    bare, inside = [], []

    def timed(config, work, bases, stop):
        calls = [
            (bare, lambda: start_run(make_config(config), folder / "bare" / work.name, progress=False)),
            (inside, lambda: perform_run(config, work, bases, stop)),
        ]
        for times, call in calls if len(bare) % 2 else reversed(calls):
            started = time.perf_counter()
            call()
            times.append(time.perf_counter() - started)

    started = time.perf_counter()
    run_sweep(runs, folder / "sweep", perform=timed, listener=LineListener())
    wall = time.perf_counter() - started
    outside = (wall - sum(bare) - sum(inside)) / count
    slower = statistics.median(one / other for one, other in zip(inside, bare, strict=True)) - 1
    return {
        "runs": count,
        "seconds_a_run": sum(bare) / count,
        "seconds_outside_of_a_run": outside,
        "runs_in_a_sweep_slower_by": slower,
        "overhead_at_10_seconds": outside / 10,
    }


# --------------------------------------------------------------------------------------------------------------- chaos


def drive(runs, folder, mishap):
    """One driver; `mishap` is what is wrong with its machine."""
    if mishap == "full disk":
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    elif mishap == "clock set back":
        now = time.time
        time.time = lambda: now() - 10 * 365.25 * 86400
    try:
        run_sweep(runs, folder, max_attempts=30)
    except OSError as error:
        print(f"  {mishap}: {error}"[:140], file=sys.stderr)


def measure_chaos(folder: Path, count: int, kills: int, seed: int) -> dict:
    """Disturb a sweep and compare it with an undisturbed one; raises AssertionError if they differ."""
    chance, runs = random.Random(seed), tiny_runs(folder, count)
    started = time.perf_counter()
    run_sweep(runs, folder / "calm" / "sweep")
    found = {"runs": count, "kills": kills, "seed": seed, "undisturbed_seconds": time.perf_counter() - started}
    disturbed, started = folder / "wild" / "sweep", time.perf_counter()
    moments = sorted(chance.uniform(0, 0.95) * count for _ in range(kills))
    mishaps = {kills // 5: "full disk", 2 * kills // 5: "clock set back", 3 * kills // 5: "torn files"}
    mishaps[4 * kills // 5] = "lost ledger"
    drivers, midway = [_start(runs, disturbed), _start(runs, disturbed)], 0
    for number, moment in enumerate(moments):
        while len(list(disturbed.glob("runs/*"))) < moment and any(driver.is_alive() for driver in drivers):
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.5))
        mishap, which = mishaps.get(number), chance.randrange(2)
        midway += bool(list(disturbed.glob("work/*/config.json")))
        for driver in drivers if mishap in ("torn files", "lost ledger") else drivers[which : which + 1]:
            driver.kill()
            driver.join()
        if mishap == "torn files":
            for path in disturbed.glob("work/*/*"):
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        if mishap == "lost ledger":
            for path in disturbed.glob("ledger.sqlite*"):
                path.unlink()
        drivers = [d if d.is_alive() else _start(runs, disturbed, mishap) for d in drivers]
    for driver in drivers:
        driver.join()
    counts = run_sweep(runs, disturbed, max_attempts=30)
    found |= {"disturbed_seconds": time.perf_counter() - started, "kills_within_a_run": midway, "counts": counts}
    attempts = [row["attempts"] for row in open_ledger(SweepFolder(disturbed)).rows()]
    found |= {"most_attempts_since_the_ledger_was_lost": max(attempts), "mishaps": sorted(mishaps.values())}
    calm, wild = (contents(path) for path in (folder / "calm" / "sweep", disturbed))
    assert counts["pending"] == counts["leased"] == counts["failed"] == 0, counts
    assert calm == wild, "the disturbed sweep differs"
    assert len(list(disturbed.glob("runs/*"))) == count and not list(disturbed.glob("work/*"))
    return found | {"identical": True, "table_bytes": len(calm["table.csv"])}


def _start(runs, folder, mishap=None):
    process = SERVER.Process(target=drive, args=(runs, folder, mishap))
    process.start()
    return process


def main() -> None:
    """Measure, print, and record if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["ledger", "overhead", "chaos", "reuse", "ray"])
    parser.add_argument("--runs", type=int)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="where to work; a temporary folder by default")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        if arguments.what == "ledger":
            found = measure_ledger(folder, arguments.runs or 10_000)
        elif arguments.what == "overhead":
            found = measure_overhead(folder, arguments.runs or 20)
        elif arguments.what == "reuse":
            found = measure_reuse(folder, arguments.runs or 50, arguments.seed)
        elif arguments.what == "ray":
            found = measure_ray(folder, arguments.runs or 16)
        else:
            SERVER.set_forkserver_preload(["rmbook.sweeps.local"])
            found = measure_chaos(folder, arguments.runs or 200, arguments.kills, arguments.seed)
    finally:
        shutil.rmtree(folder)
    print(json.dumps(found, indent=1))
    if arguments.write:
        write_result(f"sweep_{arguments.what}", found)


if __name__ == "__main__":
    main()
