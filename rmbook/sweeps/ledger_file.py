"""One SQLite file that several processes of a machine read and write: transactions, waiting, and errors in one line.

SQLite's write-ahead log needs shared memory: all processes that have the file open must be on one machine. Whoever only
reads writes nothing, not even beside the file, so that the folder may be another person's.
"""

import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

from rmbook.errors import RmbookError

BUSY_SECONDS = 60.0  # how long another process's transaction is waited for
MOVE_AWAY = "move it away; the same command makes it again from the folders of the runs."
LOG_CALLS = 256  # after so many calls of `empty_log` the write-ahead log is moved into the file


class LedgerError(OSError):
    """The ledger cannot be read or written: a full disk, a damaged file; one line that says what to do."""


class DamagedLedgerError(RmbookError, LedgerError):
    """What lies in the ledger's place is damaged, or of another program; one line that says what to do."""


class LedgerFile:
    """A SQLite file to write to, in which nothing is half written, whatever is killed.

    A loss of power may take the last transactions; it cannot damage the file.

    Args:
        path: the file; made if there is none.
        schema: statements that make what is not there yet.
        check: raises LedgerError for the content of another program.

    Attributes:
        db: the connection, for the thread that made it.

    Raises:
        LedgerError: the file cannot be used.
    """

    def __init__(self, path: Path, schema: str, check: Callable[[sqlite3.Connection], object]):
        self.path, self._calls = path, 0
        with explaining(path):
            self.db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
            self.db.row_factory = sqlite3.Row
            check(self.db)
            self.db.execute("PRAGMA synchronous = NORMAL")
            self.db.execute("PRAGMA wal_autocheckpoint = 0")  # else any transaction may have to wait for the disk
            until = time.monotonic() + BUSY_SECONDS
            while not self._begin_log(last=time.monotonic() > until):
                time.sleep(0.01)
            self.db.executescript(schema)

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Have all of the block happen, or nothing, while no other process writes."""
        with explaining(self.path):
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield self.db
                self.db.execute("COMMIT")
            except BaseException:
                self.db.rollback()
                raise

    def empty_log(self) -> None:
        """Now and then, move the write-ahead log into the file: the one thing that waits for the disk, some 10 ms."""
        self._calls += 1
        if self._calls % LOG_CALLS == 0:
            with suppress(sqlite3.OperationalError):  # a full disk: nothing is lost, as the log keeps it
                self.db.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def _begin_log(self, last: bool) -> bool:
        """Here SQLite does not wait, as it does elsewhere: several processes that begin a file at once collide."""
        try:
            self.db.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if last or "locked" not in str(error):
                raise
            return False
        return True


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a ledger to read it, and change nothing: no file is made, and none is locked for longer than a query.

    Raises:
        LedgerError: it cannot be read.
    """
    log, shared = (path.with_name(path.name + end) for end in ("-wal", "-shm"))
    with explaining(path), ExitStack() as stack:
        option = "mode=ro"  # among processes that write, or after a kill, SQLite needs the shared memory that they left
        if not log.exists() or not log.stat().st_size:
            option = "mode=ro&immutable=1"  # everything is in the file; else SQLite would make a log to read it
        elif not shared.exists():
            copy = Path(stack.enter_context(tempfile.TemporaryDirectory())) / path.name
            shutil.copy(log, copy.with_name(log.name))
            path = Path(shutil.copy(path, copy))
        db = stack.enter_context(closing(sqlite3.connect(f"{path.as_uri()}?{option}", uri=True)))
        db.row_factory = sqlite3.Row
        yield db


@contextmanager
def explaining(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into `LedgerError`."""
    try:
        yield
    except sqlite3.OperationalError as error:
        reasons = {"locked": "does a process hang that uses it?", "readonly": "may you write there?"}
        reasons |= {"decode": "is it damaged?"}
        why = next((why for word, why in reasons.items() if word in str(error)), "is the disk full?")
        onward = "Change that, and resume with the same command; nothing is lost."
        kind = DamagedLedgerError if "decode" in str(error) else LedgerError
        raise kind(f"cannot use {path} ({error}): {why} {onward}") from None
    except sqlite3.DatabaseError as error:
        if type(error) is not sqlite3.DatabaseError:  # a defect of this program
            raise
        raise DamagedLedgerError(f"{path} is damaged ({error}): {MOVE_AWAY}") from None
