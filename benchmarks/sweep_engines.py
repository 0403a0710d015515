"""What engines of sweeps do beyond performing runs: keep the model loaded, and perform several at a time."""

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from tiny_sweeps import contents, tiny_runs

from rmbook.files import write_json
from rmbook.models.reuse import BaseModels
from rmbook.runs.config import make_config
from rmbook.runs.run import start_run
from rmbook.sweeps.listener import Listener
from rmbook.sweeps.ray_cluster import import_ray, joined_cluster
from rmbook.sweeps.ray_engine import run_sweep_ray

KINDS = (
    *({"method": "random_masking", "density": density} for density in (1.0, 0.1, 0.01, 0.001)),
    {"method": "structured_masking", "ratio": 1e-2},
    {"method": "lora"},
    {"method": "full"},
    {"method": "bitfit"},
    {"method": "prefix"},
    {"method": "adapter", "dropout": 0.2},
    {"method": "adalora", "settings": {"initial_rank": 12}},
    {"method": "random_masking", "ratio": 1e-3, "mixed_precision": "bf16", "gradient_checkpointing": True},
)
RATES = (1e-2, 1e-3, 1e30, 1e-1, 1e-4)  # with one of them runs diverge
TIMED = ("seconds", "tokens_per_second", "peak_memory", "stamp")


def measure_reuse(folder: Path, count: int, seed: int) -> dict:
    """Runs on one loaded model against the same runs in fresh processes; AssertionError if a bit differs."""
    torch.set_num_threads(1)
    base, configs = tiny_runs(folder, 2, epochs=2)[1].config | {"ratio": None}, []
    for number in range(count):
        turn, kind = divmod(number, len(KINDS))
        chosen = KINDS[kind] | {"learning_rate": RATES[turn % len(RATES)], "seed": turn}
        configs.append(make_config(base | chosen))
    random.Random(seed).shuffle(configs)
    started = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda number: _train_alone(folder, number, configs[number]), range(count)))
    alone, bases = time.perf_counter() - started, BaseModels()
    started = time.perf_counter()
    for number, config in enumerate(configs):
        start_run(config, folder / "kept" / str(number), progress=False, bases=bases)
    kept = time.perf_counter() - started
    outcomes = [[_outcome(folder / how / str(number)) for number in range(count)] for how in ("kept", "fresh")]
    differing = [config.to_dict() for config, one, other in zip(configs, *outcomes, strict=True) if one != other]
    assert not differing, differing
    return {
        "runs": count,
        "identical": count - len(differing),
        "diverged": sum(result["status"] == "diverged" for result, _ in outcomes[0]),
        "methods": sorted({config.method for config in configs}),
        "loads": bases.loads,
        "runs_after_full_finetuning": sum(config.method == "full" for config in configs[:-1]),
        "seconds_fresh_two_at_a_time": alone,
        "seconds_kept": kept,
    }


def _train_alone(folder: Path, number: int, config) -> None:
    settings, output = folder / f"{number}.json", folder / "fresh" / str(number)
    write_json(settings, config.to_dict())
    command = [sys.executable, "-m", "rmbook", "train", "--config", settings, "--output", output, "--quiet"]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _outcome(folder: Path) -> tuple[dict, bytes]:
    result, adapter = json.loads((folder / "result.json").read_text()), folder / "adapter.safetensors"
    untimed = {name: value for name, value in result.items() if name not in TIMED}
    return untimed, adapter.read_bytes() if adapter.exists() else b""


class Moments(Listener):
    """When the first run began."""

    first = None

    def begun(self, lease, counts):
        """Look at the clock."""
        self.first = self.first or time.perf_counter()


def measure_ray(folder: Path, count: int) -> dict:
    """One worker against two, in the order 1, 2, 2, 1.

    "all" is the whole call; "working" leaves out what comes before the first run begins: the start of the workers,
    which import torch. The start of Ray itself is in neither.
    """
    torch.set_num_threads(1)
    load, trial = os.getloadavg()[0], make_config(tiny_runs(folder, 2, train_size=240, epochs=2)[1].config)
    start_run(trial, folder / "warm", progress=False)
    started = time.perf_counter()
    start_run(trial, folder / "trial", progress=False)
    epochs = max(1, round(2 * 4.0 / (time.perf_counter() - started)))  # so that a run takes some 4 s
    runs = tiny_runs(folder, 2 * count + 2, train_size=240, epochs=epochs)
    runs = [run for run in runs if run.config["learning_rate"] < 0.06][:count]  # those that diverge are short
    times, digests, started = {"all": {1: 0.0, 2: 0.0}, "working": {1: 0.0, 2: 0.0}}, set(), time.perf_counter()
    with joined_cluster(import_ray(), None, 2, 1):
        ray_start = time.perf_counter() - started
        for number, workers in enumerate((1, 2, 2, 1)):
            place, moments, started = folder / str(number) / "sweep", Moments(), time.perf_counter()
            counts = run_sweep_ray(runs, place, workers=workers, listener=moments)
            ended = time.perf_counter()
            assert counts["done"] == count, counts
            times["all"][workers] += (ended - started) / 2
            times["working"][workers] += (ended - moments.first) / 2
            digests.add(hashlib.sha256(repr(sorted(contents(place).items())).encode()).hexdigest())
    assert len(digests) == 1, "one worker and two gave different results"
    return {
        "runs": count,
        "epochs": epochs,
        "load_before": load,
        "seconds_a_run": times["working"][1] / count,
        "seconds_ray_start": ray_start,
        "seconds_one_worker": {name: entry[1] for name, entry in times.items()},
        "seconds_two_workers": {name: entry[2] for name, entry in times.items()},
        "times_one_worker": {name: entry[1] / entry[2] for name, entry in times.items()},
        "identical": True,
    }
