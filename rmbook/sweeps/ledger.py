"""The ledger of a sweep, one SQLite file: which runs there are, who works on which, and what came of them.

It says who works on what. Whether a run is done, its folder says (`rmbook.sweeps.folder`): a lost ledger loses nothing.

No lease depends on the time of day: one ends when its owner is gone in the sense of `rmbook.sweeps.liveness`. A lease
that was taken from an owner who lives after all does no harm: each claim of a run has a number, and whoever comes back
with an old number is not heard.
"""

import datetime
import functools
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rmbook.json_files import check_fields, count, fields, optional, text
from rmbook.runs.fingerprints import PlannedRun, is_key
from rmbook.sweeps.folder import SUMMARY
from rmbook.sweeps.ledger_file import MOVE_AWAY, DamagedLedgerError, LedgerFile, explaining, reading
from rmbook.sweeps.liveness import MAX_ATTEMPTS

STATES = ("pending", "leased", "done", "diverged", "failed")
STOPPED = "stopped after epoch"  # how the note of a pending run begins that `--halving` has put aside
SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
    key TEXT PRIMARY KEY, position INTEGER NOT NULL, config TEXT NOT NULL, identity TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'leased', 'done', 'diverged', 'failed')),
    owner TEXT, attempts INTEGER NOT NULL DEFAULT 0, claims INTEGER NOT NULL DEFAULT 0,
    result TEXT, error TEXT, claimed TEXT, ended TEXT
);
CREATE INDEX IF NOT EXISTS queue ON runs (state, attempts, position);
CREATE TABLE IF NOT EXISTS owners (owner TEXT PRIMARY KEY, beat INTEGER NOT NULL);
CREATE TEMP TABLE wanted (key TEXT PRIMARY KEY);
PRAGMA user_version = 1;
"""
VERSION = 1  # of this form; 0 if the form is the same and the file is from before it had a version
ROW = {"position": count, "attempts": count, "claims": count, "result": optional(fields(SUMMARY))}
ROW |= dict.fromkeys(("owner", "error", "claimed", "ended"), optional(text))
COLUMNS = "key position config identity state owner attempts claims result error claimed ended".split()


@dataclass(frozen=True)
class Lease:
    """A run in hand.

    Attributes:
        key: identity of the run.
        config, identity: as `rmbook.runs.fingerprints.PlannedRun` has them.
        attempt: how many times it was begun, this time included.
        claim: number of this claim, which is never used again for this run.
    """

    key: str
    config: dict
    identity: dict
    attempt: int
    claim: int


class Ledger:
    """The ledger as one process sees it; any number of processes of a machine may have it open.

    Args:
        path: the SQLite file; made if there is none.
        owner: unique name of this process.
        gone: whether the process of a name, with the heartbeat it last showed, has to be given up.
        max_attempts: how often a run is begun at most when workers die or machines fail.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        owner: str,
        *,
        gone: Callable[[str, int], bool] = lambda owner, beat: False,
        max_attempts: int = MAX_ATTEMPTS,
    ):
        self.path, self.owner, self.max_attempts, self._gone = Path(path), owner, max_attempts, gone
        self._file = LedgerFile(self.path, SCHEMA, functools.partial(_check, self.path))
        self._db, self._writing = self._file.db, self._file.writing
        self.close = self._db.close

    def add(self, runs: Iterable[PlannedRun], wanted: bool = True) -> None:
        """Add runs; those that are there already keep their state.

        Args:
            runs: planned runs. With the same key, settings can only differ in where files are.
            wanted: whether `claim` is to give them out: it gives those that were added so through this object.
        """
        rows = [(run.key, json.dumps(run.config), json.dumps(run.identity)) for run in runs]
        with self._writing() as db:
            first = db.execute("SELECT coalesce(max(position) + 1, 0) FROM runs").fetchone()[0]
            db.executemany(
                "INSERT INTO runs (key, position, config, identity) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (key) DO UPDATE SET config = excluded.config WHERE config != excluded.config",
                [(key, number, config, identity) for number, (key, config, identity) in enumerate(rows, first)],
            )
            if wanted:
                db.executemany("INSERT OR IGNORE INTO temp.wanted VALUES (?)", [(key,) for key, _, _ in rows])

    def claim(self, key: str | None = None) -> Lease | None:
        """Take the next pending run, or that of a key, the least often begun first; None if there is none."""
        with self._writing() as db:
            self._free_leases_of_the_dead()
            row = db.execute(
                "UPDATE runs SET state = 'leased', owner = ?, attempts = attempts + 1, claims = claims + 1, "
                "claimed = ?, error = NULL WHERE key = (SELECT key FROM runs WHERE state = 'pending' AND EXISTS "
                f"(SELECT 1 FROM temp.wanted WHERE wanted.key = runs.key) {'AND key = ?' if key else ''} "
                "ORDER BY attempts, position LIMIT 1) RETURNING key, config, identity, attempts, claims",
                (self.owner, _now(), *([key] if key else [])),
            ).fetchone()
            if not row:
                return None
            found = _content(self.path, dict(row))
        return Lease(*(found[name] for name in ("key", "config", "identity", "attempts", "claims")))

    def holds(self, lease: Lease) -> bool:
        """Return whether the lease is still this owner's."""
        with explaining(self.path):
            found = self._db.execute(f"SELECT 1 FROM runs WHERE {_MINE}", self._mine(lease)).fetchone()
        return found is not None

    def finish(
        self, lease: Lease, state: str, result: dict | None = None, error: str | None = None, uncount: int = 0
    ) -> str:
        """Write down the state of a run, and take `uncount` attempts back; return it, or "lost" as the lease is."""
        with self._writing() as db:
            changed = db.execute(
                "UPDATE runs SET state = ?, result = ?, error = ?, ended = ?, owner = NULL, attempts = attempts - ? "
                f"WHERE {_MINE}",
                (state, None if result is None else json.dumps(result), error, _now(), uncount, *self._mine(lease)),
            )
        self._file.empty_log()  # here, after a run, and not in `claim`
        return state if changed.rowcount == 1 else "lost"

    def release(self, lease: Lease, counted: bool = False, error: str | None = None) -> str:
        """Give a run back, as `finish` does: "pending", or "failed" if `counted` and this was its last attempt."""
        last = counted and lease.attempt >= self.max_attempts
        return self.finish(lease, "failed" if last else "pending", None, error, uncount=0 if counted else 1)

    def release_all(self) -> None:
        """Give back all runs that this owner has in hand; that counts as no attempt."""
        mine = "state = 'leased' AND owner = ?"
        with self._writing() as db:
            db.execute(
                f"UPDATE runs SET state = 'pending', owner = NULL, attempts = attempts - 1 WHERE {mine}", (self.owner,)
            )

    def record(self, key: str, state: str, result: dict) -> None:
        """Write down a result that was found in a run's folder, whatever the ledger says of the run."""
        with self._writing() as db:
            db.execute(
                "UPDATE runs SET state = ?, result = ?, error = NULL, owner = NULL, ended = ? WHERE key = ?",
                (state, json.dumps(result), _now(), key),
            )

    def note(self, key: str, text: str) -> None:
        """Write down why a pending run is pending."""
        with self._writing() as db:
            db.execute(
                "UPDATE runs SET error = ? WHERE key = ? AND state = 'pending' AND error IS NOT ?", (text, key, text)
            )

    def reset(self, keys: Iterable[str]) -> None:
        """Make runs pending again, with no attempts."""
        with self._writing() as db:
            db.executemany(
                "UPDATE runs SET state = 'pending', attempts = 0, result = NULL, error = NULL, ended = NULL "
                "WHERE key = ? AND state IN ('done', 'diverged', 'failed')",
                [(key,) for key in keys],
            )

    def beat(self) -> None:
        """Show that this owner lives: count its heartbeat up."""
        with self._writing() as db:
            db.execute(
                "INSERT INTO owners VALUES (?, 1) ON CONFLICT (owner) DO UPDATE SET beat = beat + 1", (self.owner,)
            )

    def counts(self, wanted: bool = False) -> dict[str, int]:
        """Return the number of runs in each state; with `wanted`, only of those added through this object."""
        part = "WHERE EXISTS (SELECT 1 FROM temp.wanted WHERE wanted.key = runs.key)" if wanted else ""
        with explaining(self.path):
            found = dict(map(tuple, self._db.execute(f"SELECT state, count(*) FROM runs {part} GROUP BY state")))
        return {state: found.get(state, 0) for state in STATES}

    def keys(self, *states: str) -> list[str]:
        """Return the keys of the runs in these states, in the order in which they were added."""
        query = f"SELECT key FROM runs WHERE state IN ({', '.join('?' * len(states))}) ORDER BY position"
        with explaining(self.path):
            return [_plain_key(self.path, key) for (key,) in self._db.execute(query, states)]

    def rows(self, *states: str) -> list[dict]:
        """Return all that is known of the runs in these states, of all if none is named; config and so on as dicts."""
        with explaining(self.path):
            return _rows(self.path, self._db, states or STATES)

    def _mine(self, lease: Lease) -> tuple:
        return lease.key, self.owner, lease.claim

    def _free_leases_of_the_dead(self) -> None:
        owners = self._db.execute(
            "SELECT owner, (SELECT beat FROM owners WHERE owners.owner = runs.owner) FROM runs WHERE state = 'leased' "
            "AND owner != ? GROUP BY owner",
            (self.owner,),
        )
        for owner, beat in owners.fetchall():
            if self._gone(owner, beat or 0):
                self._db.execute(
                    "UPDATE runs SET state = iif(attempts >= ?, 'failed', 'pending'), owner = NULL, "
                    "error = 'its process was killed or did not respond, attempt ' || attempts "
                    "WHERE state = 'leased' AND owner = ?",
                    (self.max_attempts, owner),
                )


def count_states(rows: Sequence[dict]) -> dict[str, int]:
    """Return the number of runs in each state, from their rows."""
    return {state: sum(row["state"] == state for row in rows) for state in STATES}


def read_ledger(path: Path) -> list[dict]:
    """Return `Ledger.rows` of a file, and change nothing; no rows if there is no file, or nothing in it.

    Raises:
        LedgerError: it cannot be read, or is no ledger (DamagedLedgerError).
    """
    if not path.exists():
        return []
    with reading(path) as db:
        return _rows(path, db, STATES) if _check(path, db) else []


def _check(path: Path, db: sqlite3.Connection) -> bool:
    """Return whether a ledger is in the database, and not nothing; raises DamagedLedgerError for anything else."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if not version and not db.execute("SELECT 1 FROM sqlite_master").fetchone():
        return False
    columns = [name for (name,) in db.execute("SELECT name FROM pragma_table_info('runs')")]
    if version not in (0, VERSION) or columns != COLUMNS:
        raise DamagedLedgerError(f"{path} is no ledger of this version of rmbook: {MOVE_AWAY}")
    return True


def _rows(path: Path, db: sqlite3.Connection, states: Sequence[str]) -> list[dict]:
    query = f"SELECT * FROM runs WHERE state IN ({', '.join('?' * len(states))}) ORDER BY position"
    return [_content(path, dict(row)) for row in db.execute(query, states)]


def _content(path: Path, row: dict) -> dict:
    """Return a row, or a part of one, with its JSON read; raises DamagedLedgerError if it was not written here."""
    try:
        row |= {name: row[name] and json.loads(row[name]) for name in _JSON if name in row}
        PlannedRun(row["key"], row["config"], row["identity"])
        check_fields(row, ROW)
    except (RecursionError, TypeError, ValueError) as error:
        raise DamagedLedgerError(f"{path} is damaged ({str(error)[:100]}): {MOVE_AWAY}") from None
    return row


def _plain_key(path: Path, key: str) -> str:
    if not is_key(key):
        raise DamagedLedgerError(f"{path} is damaged (a run's key is not one that rmbook makes): {MOVE_AWAY}")
    return key


_MINE = "key = ? AND owner = ? AND claims = ? AND state = 'leased'"
_JSON = ("config", "identity", "result")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")  # for people; nothing depends on it
