"""Whether another process is still alive, found out without the time of day.

Each process that works on a sweep locks a file of its own. The kernel releases the lock when the process ends, in
whatever way. So on one machine, a lock that can be taken proves that its process is dead; a process number that is
used again, or a clock that is set, cannot mislead. Where nothing is proved, heartbeats decide: a process whose counter
stands still for `lease_seconds` is given up. That is so for a process that hangs, and for one on another machine or
from before a restart of this one, which may have left a lease behind. The seconds are those of the watching process's
monotonic clock, so it watches for that long before it gives anyone up.
"""

import os
import platform
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows: nothing can be proved there, heartbeats decide
    fcntl = None

LEASE_SECONDS = 300.0  # without a sign of life, after which a process is given up
MAX_ATTEMPTS = 5  # how often a run is begun at most when its processes die or machines fail


class Presence:
    """This process, as other processes that use the same folder see it.

    Args:
        folder: one for all processes; made if need be.
        lease_seconds: how long a heartbeat may stand still.
        monotonic: seconds on a clock that nobody can set.

    Attributes:
        name: unique; begins with the machine.
        path: the file that this process locks.
    """

    def __init__(self, folder: Path, lease_seconds: float = LEASE_SECONDS, monotonic: Callable = time.monotonic):
        self.lease_seconds, self._monotonic, self._seen = lease_seconds, monotonic, {}
        self.folder, self.name = Path(folder), f"{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self._path(self.name)
        self._file = open(self.path, "w")
        if fcntl:
            fcntl.flock(self._file, fcntl.LOCK_EX)

    def gone(self, name: str, beat: int) -> bool:
        """Return whether a process has to be given up.

        Args:
            name: `name` of its `Presence`.
            beat: the count of its heartbeat.
        """
        return self._proved_gone(name) or self._stood_still(name, beat)

    def _stood_still(self, name: str, beat: int) -> bool:
        now = self._monotonic()
        seen, since = self._seen.get(name, (None, now))
        if seen != beat:
            self._seen[name] = (beat, now)
        return seen == beat and now - since > self.lease_seconds

    def _proved_gone(self, name: str) -> bool:
        """Return whether a process has certainly ended; False, too, where that cannot be told."""
        if not fcntl or name == self.name or not name.startswith(f"{_machine()}-"):
            return False
        path = self._path(name)
        try:
            with open(path) as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
        except OSError:  # held, or someone removed the file
            return False
        return True

    def leave(self) -> None:
        """Release the lock; give back all leases before."""
        self.path.unlink(missing_ok=True)
        self._file.close()

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.lock"


def _machine() -> str:
    """Return the identity of the running kernel, which containers on it share, or else the host's name."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
    except OSError:
        return platform.node().replace("-", "") or "unknown"
