"""The parts that every engine needs for a sweep: claims, folders, results, failures, and a heartbeat.

An engine only executes: it takes a run and its folder from `Driver.claim`, calls `perform` for it, in whatever process,
and tells `Driver.conclude` how that ended.

What a run is, `perform` decides: a function of a module, called as `perform(config, work, bases, stop)`. It carries the
run with the settings `config` out in the folder `work`, or resumes it if the folder holds an interrupted one, and
leaves `result.json` there (see `rmbook.sweeps.folder`). `bases` keeps models loaded from one run to the next. `stop`
may be None; else it is called with each finished epoch's row, and True asks for a checkpoint and `TrainingInterrupted`.
"""

import contextlib
import errno
import os
import re
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from rmbook.errors import ConfigError, first_line
from rmbook.models.reuse import BaseModels
from rmbook.runs.config import make_config
from rmbook.runs.fingerprints import PlannedRun
from rmbook.runs.memory import MemoryShortage
from rmbook.runs.result import RunError
from rmbook.runs.run import resume_run, start_run
from rmbook.sweeps.folder import SweepFolder, outcome
from rmbook.sweeps.ledger import Lease, Ledger
from rmbook.sweeps.ledger_file import LedgerError
from rmbook.sweeps.liveness import LEASE_SECONDS, MAX_ATTEMPTS, Presence
from rmbook.sweeps.state import open_ledger
from rmbook.training.checkpoint import CheckpointError

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}  # no run can be written: trying others is no use


class SweepError(OSError):
    """The sweep cannot continue on this machine as it is; nothing is lost."""


Perform = Callable[[dict, Path, BaseModels | None, Callable[[dict], bool] | None], None]


def perform_run(
    config: dict,
    work: Path,
    bases: BaseModels | None = None,
    stop: Callable[[dict], bool] | None = None,
) -> None:
    """Perform one fine-tuning run up to its result.json, or resume it; in any process.

    Args:
        config: the settings, those of `rmbook.RunConfig`.
        work: folder of the run; made if it is not there.
        bases: models that earlier runs of this process have loaded.
        stop: called with each finished epoch's row of metrics.jsonl; True asks for a stop.

    Raises:
        TrainingInterrupted: Ctrl-C, SIGTERM or `stop`; the same call resumes the run.
        Also what `rmbook.start_run` raises.
    """
    if work.exists():
        try:
            resume_run(work, progress=False, bases=bases, after_epoch=stop)
            return
        except (CheckpointError, RunError):  # damaged by a loss of power
            shutil.rmtree(work)
    start_run(make_config(config), work, progress=False, bases=bases, after_epoch=stop)


class Driver:
    """A process that works on a sweep; a context manager. At its end all that it has in hand is given back.

    Args:
        folder: of the sweep; a new one, or one that was begun.
        runs: what to do; `claim` gives out no others.
        lease_seconds: how long a process may show no sign of life before its runs are taken over.
        max_attempts: how often a run is begun at most when workers die or machines fail.
        retry_failed: begin failed runs again.
        gone: whether another process has to be given up; `rmbook.sweeps.liveness.Presence.gone` if None.

    Raises:
        ConfigError: lease_seconds is not positive, or not finite.
        RunError: the folder has other content.
        LedgerError: the ledger cannot be used.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        runs: Sequence[PlannedRun],
        *,
        lease_seconds: float = LEASE_SECONDS,
        max_attempts: int = MAX_ATTEMPTS,
        retry_failed: bool = False,
        gone: Callable[[str, int], bool] | None = None,
    ):
        if not 0 < lease_seconds < threading.TIMEOUT_MAX:
            raise ConfigError(f"lease_seconds must be a positive number of seconds, got {lease_seconds:g}.")
        self.place = SweepFolder(folder, new=True)
        self.place.keep_plan(runs)
        self.presence = Presence(self.place.owners, lease_seconds)
        name, self._pause = self.presence.name, lease_seconds / 10
        self.ledger = open_ledger(self.place, name, gone=gone or self.presence.gone, max_attempts=max_attempts)
        self.ledger.add(runs)
        self.ledger.reset(key for key in self.ledger.keys("done", "diverged") if not self.place.result(key))
        if retry_failed:
            self.ledger.reset(self.ledger.keys("failed"))

    def __enter__(self) -> "Driver":
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._heart.start()
        return self

    def __exit__(self, *error) -> None:
        self._ended.set()
        self._heart.join()
        with contextlib.suppress(LedgerError):  # on a full disk, too, the lock ends with the process, and so the leases
            self.ledger.release_all()
            self.presence.leave()
        self.ledger.close()

    def claim(self, key: str | None = None) -> tuple[Lease, Path] | None:
        """Take the next pending run, or that of a key, and a folder to perform it in; None if there is none."""
        while lease := self.ledger.claim(key):
            if result := self.place.result(lease.key):  # of a process that was killed before it could say so
                self.ledger.record(lease.key, *outcome(result))
                continue
            try:
                return lease, self.place.take_up(lease.key, lease.config)
            except OSError as error:
                self.give_up(lease, error)
        return None

    def settle(self, lease: Lease, folder: Path) -> str:
        """Make a performed run the result of its key; return "done", "diverged", or "lost" if another has it by now."""
        if not self.ledger.holds(lease):
            shutil.rmtree(folder, ignore_errors=True)
            return "lost"
        state, summary = outcome(self.place.commit(lease.key, folder))
        self.ledger.finish(lease, state, summary)
        return state

    def give_up(self, lease: Lease, error: Exception) -> str:
        """Note that a run could not be performed; return "pending" if it will be tried again, "failed", or "lost".

        Raises:
            SweepError: no run could be written here; this one is given back, and the attempt does not count.
        """
        text = first_line(error, 500)
        if _number(error) in NO_ROOM or isinstance(error, LedgerError):
            raise SweepError(
                f"no run can be written in {self.place.path} ({text}). Make room, then resume with the same command; "
                "nothing is lost."
            ) from error
        if not isinstance(error, OSError | MemoryShortage):  # the same would come of it each time
            return self.ledger.finish(lease, "failed", error=text)
        return self.ledger.release(lease, counted=True, error=text)

    def conclude(self, lease: Lease, folder: Path, error: Exception | None = None) -> tuple[str, str]:
        """Settle a run that was performed, or give it up if that raised an error.

        Returns:
            Its state, as from `settle` or `give_up`, and the error in one line, empty if there is none.

        Raises:
            SweepError: no run could be written here.
        """
        try:
            if error:
                raise error
            return self.settle(lease, folder), ""
        except SweepError:
            raise
        except Exception as problem:  # noqa: BLE001 - whatever it is, it is this run's; the others go on
            return self.give_up(lease, problem), first_line(problem, 500)

    def _beat(self) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(LedgerError):  # a disk that is full now may have room the next time
                own = Ledger(self.place.ledger, self.ledger.owner)  # SQLite's connections are of one thread each
                own.beat()
                own.close()
            self._ended.wait(self._pause)


def _number(error: BaseException) -> int | None:
    """Return the operating system's number of an error, which the safetensors library has in its text only."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None
