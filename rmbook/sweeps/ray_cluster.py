"""Ray: finding or starting a cluster, and what runs on it. Ray is an extra, and is imported when it is asked for."""

import contextlib
import logging
import math
import os
import pickle
import platform
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch

from rmbook.errors import first_line
from rmbook.models.reuse import BaseModels
from rmbook.runs.fingerprints import code_fingerprint
from rmbook.sweeps.driver import Perform, SweepError, perform_run
from rmbook.training.checkpoint import TrainingInterrupted, handling

STARTS = 3  # attempts: Ray gives its own processes 30 s, which on a busy machine they may not meet the first time
VISIBLE_SECONDS = 15.0  # until a new file is seen on a network's file system
OBJECTS = 100 * 2**20  # bytes of memory for what travels between processes: settings and errors


def import_ray():
    """Import Ray; raises SweepError if it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise SweepError(
            'the engine ray needs Ray: pip install "rmbook[cluster]" (or pip install ray); '
            "--engine embedded, the default, needs nothing."
        ) from None
    return ray


@contextlib.contextmanager
def joined_cluster(ray, address: str | None, workers: int | None, cpus: float) -> Iterator[None]:
    """Join a cluster for the block, or start one that has room for `workers`, and leave it at the end.

    Args:
        ray: the module.
        address, workers, cpus: see `rmbook.sweeps.ray_engine.run_sweep_ray`.

    Raises:
        SweepError: there is no cluster at the address, or none can be started.
    """
    if ray.is_initialized():
        yield
        return
    with handling(signal.getsignal(signal.SIGTERM), signal.SIGTERM):  # Ray puts its own there
        try:
            _join(ray, address or os.environ.get("RAY_ADDRESS") or "local", workers and math.ceil(workers * cpus))
            yield
        finally:
            ray.shutdown()


def _join(ray, address: str, cpus: int | None) -> None:
    arguments: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if local := address == "local":
        arguments |= {"include_dashboard": False, "object_store_memory": OBJECTS, "num_cpus": cpus}
    children = set(psutil.Process().children(recursive=True))
    for left in range(STARTS - 1 if local else 0, -1, -1):
        try:
            ray.init(address, **arguments)
            return
        except Exception as error:  # noqa: BLE001 - which errors say so varies between versions
            ray.shutdown()
            for process in set(psutil.Process().children(recursive=True)) - children:  # it leaves those that started
                with contextlib.suppress(psutil.Error):
                    process.kill()
            if not left:
                what = "no Ray cluster can be started here" if local else f"no Ray cluster answers at {address}"
                raise SweepError(f"{what} ({first_line(error)}).") from None


def check_shares(**shares: float | None) -> None:
    """Raise ValueError for numbers of CPUs or GPUs that Ray cannot give to a run."""
    for name, share in shares.items():
        least_fits = share is None or share > 0 or (share == 0 and name.startswith("gpu"))
        if not least_fits or (share and share > 1 and share % 1):  # of an infinite one the rest is no number
            raise ValueError(f"{name} must be a positive number, and a whole one above 1, got {share:g}.")


def room(ray, cpus: float, gpus: float | None) -> tuple[int, float]:
    """Return how many runs fit on the cluster at a time, and how many GPUs each gets.

    Raises:
        SweepError: not even one fits.
    """
    has = ray.cluster_resources()
    gpus = min(1.0, has.get("GPU", 0)) if gpus is None else gpus
    fitting = int(min(has.get("CPU", 0) / cpus, has.get("GPU", 0) / gpus if gpus else math.inf))
    if not fitting:
        raise SweepError(
            f"a run is to have {cpus:g} CPUs and {gpus:g} GPUs, but the Ray cluster has {has.get('CPU', 0):g} and "
            f"{has.get('GPU', 0):g}: lower --cpus-per-run or --gpus-per-run, or add machines."
        )
    return fitting, gpus


def terminate(process: int) -> None:
    """Ask a process of this machine to stop: a run under way writes its checkpoint first."""
    os.kill(process, signal.SIGTERM)


class Worker:
    """A process of Ray's that performs one run after the other, in its main thread."""

    def __init__(self, cpus: float, gpus: float, perform: Perform = perform_run):
        if not gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # newer versions of Ray would show it all of them
        torch.set_num_threads(max(1, int(cpus)))  # Ray has set OMP_NUM_THREADS alike
        self._perform, self.bases = perform, BaseModels()

    def greet(self, presence: Path) -> dict:
        """Say where this worker is, what code it has, and whether it sees a file that the driver has just made."""
        import ray

        end = time.monotonic() + VISIBLE_SECONDS
        while not (seen := presence.exists()) and time.monotonic() < end:
            time.sleep(0.2)
        node = ray.get_runtime_context().get_node_id()
        return {"host": platform.node(), "process": os.getpid(), "node": node, "sees": seen, "code": code_fingerprint()}

    def perform(self, config: dict, folder: Path) -> Exception | None:
        """Perform a run. An error is returned: if it were raised, Ray would wrap its own text around it."""
        try:
            self._perform(config, folder, self.bases, None)
            return None
        except TrainingInterrupted as error:
            return InterruptedError(str(error))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this run's
            try:
                return pickle.loads(pickle.dumps(error))
            except Exception:  # noqa: BLE001 - not every error can travel
                return RuntimeError(f"{type(error).__name__}: {error}")
