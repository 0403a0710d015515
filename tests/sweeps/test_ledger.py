"""The ledger: each run is given to one process, nothing is lost or counted twice, and no clock decides."""

import contextlib
import multiprocessing
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from rmbook.runs.fingerprints import PlannedRun
from rmbook.sweeps.ledger import STATES, Ledger, read_ledger
from rmbook.sweeps.ledger_file import LOG_CALLS, LedgerError
from rmbook.sweeps.liveness import Presence

FORK = multiprocessing.get_context("fork")


def planned(count):
    return [PlannedRun(f"run{number:05}", {"seed": number}, {"code": "1"}) for number in range(count)]


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger.sqlite", "me")


def test_runs_are_given_in_order_and_once_and_their_results_kept(ledger):
    ledger.add(planned(3))
    ledger.add(planned(3))  # a second time changes nothing
    leases = [ledger.claim() for _ in range(3)]
    assert [lease.config["seed"] for lease in leases] == [0, 1, 2] and ledger.claim() is None
    assert ledger.finish(leases[0], "done", {"score": 0.1 + 0.2}) == "done"
    assert ledger.finish(leases[1], "diverged", {"score": None}) == "diverged"
    assert ledger.finish(leases[2], "failed", error="ConfigError: no") == "failed"
    assert ledger.finish(leases[0], "failed") == "lost"  # it is finished
    assert [row["state"] for row in ledger.rows()] == list(STATES[2:])
    assert ledger.rows()[0]["result"] == {"score": 0.1 + 0.2}
    assert ledger.counts() == {"pending": 0, "leased": 0, "done": 1, "diverged": 1, "failed": 1}


def test_a_process_gets_only_what_it_asked_for(tmp_path):
    one, two = (Ledger(tmp_path / "ledger.sqlite", name) for name in ("one", "two"))
    one.add(planned(4)[:3])
    two.add(planned(4)[2:])
    assert [two.claim().key, two.claim().key] == ["run00002", "run00003"] and two.claim() is None
    assert two.counts(wanted=True)["leased"] == 2 and two.counts()["pending"] == 2


@pytest.mark.parametrize("counted", [True, False])
def test_attempts_end_where_they_count_and_a_tried_run_goes_to_the_end(counted, tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite", "me", max_attempts=3)
    ledger.add(planned(2))
    seen = []
    while len(seen) < 20 and (lease := ledger.claim()):
        seen.append((lease.config["seed"], lease.attempt))
        wanted = "failed" if counted and lease.attempt == 3 else "pending"
        assert ledger.release(lease, counted=counted, error="OSError: no such luck") == wanted
    if counted:
        assert seen == [(0, 1), (1, 1), (0, 2), (1, 2), (0, 3), (1, 3)]
        assert {row["state"] for row in ledger.rows()} == {"failed"}
        assert {row["error"] for row in ledger.rows()} == {"OSError: no such luck"}
        ledger.reset(ledger.keys("failed"))
        assert ledger.claim().attempt == 1
    else:
        assert seen == [(0, 1)] * 20


def test_who_lost_a_lease_is_not_heard(tmp_path):
    gone = set()
    ledgers = {name: Ledger(tmp_path / "ledger.sqlite", name, gone=lambda owner, beat: owner in gone) for name in "ab"}
    for ledger in ledgers.values():
        ledger.add(planned(1))
    old = ledgers["a"].claim()
    assert ledgers["b"].claim() is None
    gone.add("a")  # wrongly
    new = ledgers["b"].claim()
    assert (new.attempt, ledgers["a"].holds(old), ledgers["b"].holds(new)) == (2, False, True)
    assert ledgers["a"].finish(old, "failed") == ledgers["a"].release(old) == "lost"
    gone.clear()
    assert ledgers["b"].release(new) == "pending"
    again = ledgers["a"].claim()  # the same owner has it again, by another claim
    assert ledgers["a"].finish(old, "failed") == "lost" and ledgers["a"].finish(again, "done", {"score": 1}) == "done"


class Sweep(RuleBasedStateMachine):
    """Three processes that claim, finish, die and come back, against a dict."""

    @initialize(count=st.integers(1, 6))
    def begin(self, count):
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "ledger.sqlite"
        self.gone, self.names, self.leases, self.finished = set(), 0, [], {}
        self.count, self.attempts = count, dict.fromkeys((run.key for run in planned(count)), 0)
        self.ledgers = {}
        for _ in range(3):
            self.new_process()

    def new_process(self):
        self.names += 1
        name = f"p{self.names}"
        gone = lambda owner, beat: owner in self.gone  # noqa: E731
        self.ledgers[name] = Ledger(self.path, name, gone=gone, max_attempts=4)
        self.ledgers[name].add(planned(self.count))

    @rule(which=st.integers(0, 2))
    def claim(self, which):
        name = sorted(self.ledgers)[which]
        lease = self.ledgers[name].claim()
        held = {key for key, holder in self.holders().items() if holder not in self.gone}
        open_runs = [k for k, n in self.attempts.items() if k not in self.finished and k not in held and n < 4]
        assert (lease is None) == (not open_runs)
        if lease:
            assert lease.key in open_runs and lease.attempt == self.attempts[lease.key] + 1
            self.attempts[lease.key] += 1
            self.leases = [entry for entry in self.leases if entry[0].key != lease.key] + [(lease, name)]

    def holders(self):
        return {lease.key: name for lease, name in self.leases}

    @rule(data=st.data(), state=st.sampled_from(STATES[2:]))
    def finish(self, data, state):
        if mine := [entry for entry in self.leases if entry[1] not in self.gone]:
            lease, name = data.draw(st.sampled_from(mine))
            assert self.ledgers[name].finish(lease, state, {"by": name}) == state
            assert self.ledgers[name].finish(lease, "failed") == "lost"
            self.finished[lease.key] = state
            self.leases.remove((lease, name))

    @rule(data=st.data(), counted=st.booleans())
    def release(self, data, counted):
        if mine := [entry for entry in self.leases if entry[1] not in self.gone]:
            lease, name = data.draw(st.sampled_from(mine))
            assert self.ledgers[name].release(lease, counted=counted) != "lost"
            self.attempts[lease.key] -= not counted
            self.leases.remove((lease, name))

    @rule(which=st.integers(0, 2))
    def die(self, which):
        name = sorted(self.ledgers)[which]
        self.ledgers.pop(name).close()
        self.gone.add(name)
        self.new_process()

    @invariant()
    def counts_agree(self):
        if hasattr(self, "ledgers"):
            counts = next(iter(self.ledgers.values())).counts()
            assert sum(counts.values()) == self.count
            for state in STATES[2:4]:
                assert counts[state] == sum(final == state for final in self.finished.values())

    def teardown(self):
        for ledger in self.ledgers.values():
            ledger.close()
        self.folder.cleanup()


TestSweep = Sweep.TestCase
TestSweep.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


def claim_all(path, name, start, results):
    start.wait()
    ledger = Ledger(path, name)
    ledger.add(planned(200))
    claimed = []
    while lease := ledger.claim():
        claimed.append(lease.key)
        ledger.finish(lease, "done", {"by": name})
    results.put((name, claimed))


@pytest.mark.parametrize("time", range(5))
def test_four_processes_begin_a_ledger_at_once_and_claim_every_run_exactly_once(time, tmp_path):
    start, results = FORK.Barrier(4), FORK.Queue()
    arguments = [(tmp_path / "ledger.sqlite", f"p{number}", start, results) for number in range(4)]
    processes = [FORK.Process(target=claim_all, args=entry) for entry in arguments]
    for process in processes:
        process.start()
    claimed = dict(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    assert sorted(key for keys in claimed.values() for key in keys) == [run.key for run in planned(200)]
    rows = Ledger(tmp_path / "ledger.sqlite", "reader").rows()
    assert {row["key"]: row["result"]["by"] for row in rows} == {
        k: name for name, keys in claimed.items() for k in keys
    }


# ----------------------------------------------------------------------------------------------------------- presence


HOLDER = """
import sys, time
from pathlib import Path
from rmbook.sweeps.liveness import Presence
presence = Presence(Path(sys.argv[1]))
print(presence.name, flush=True)
time.sleep(60)
"""


def test_a_killed_process_is_known_to_be_gone_at_once(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    name = holder.stdout.readline().strip()
    watcher = Presence(tmp_path)
    assert not watcher.gone(name, 0) and not watcher.gone(watcher.name, 0)
    holder.kill()
    holder.wait()
    assert watcher.gone(name, 0)


def test_elsewhere_only_a_heartbeat_that_stands_still_for_long_tells(tmp_path):
    now = [1000.0]
    watcher = Presence(tmp_path, lease_seconds=60, monotonic=lambda: now[0])
    far = "othermachine-17-0123abcd"
    for beat in range(5):  # the first look proves nothing, and each beat begins the time anew
        assert not watcher.gone(far, beat)
        now[0] += 59
        assert not watcher.gone(far, beat)
    now[0] += 2
    assert watcher.gone(far, 4)
    assert not watcher.gone(far, 5)  # it lives after all


def test_no_lease_depends_on_the_time_of_day(tmp_path, monkeypatch):
    """The clock is set back by 30 years, then forward by 60: nobody loses a lease, and the dead still do."""
    dead = set()
    owner, other = (Ledger(tmp_path / "l.sqlite", name, gone=lambda o, b: o in dead) for name in ("owner", "other"))
    other.add(planned(1))
    owner.add(planned(1))
    lease = owner.claim()
    for year in ("1996", "2056"):
        monkeypatch.setattr("rmbook.sweeps.ledger._now", lambda year=year: f"{year}-01-01T00:00:00Z")
        monkeypatch.setattr("time.time", lambda year=year: (int(year) - 1970) * 31557600.0)
        owner.beat()
        assert other.claim() is None and owner.holds(lease)
    dead.add("owner")
    assert other.claim().attempt == 2


# --------------------------------------------------------------------------------------------------- files that break


def fill_the_disk(path, results):
    ledger = Ledger(path, "me")
    ledger.add(planned(50))
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
    finished = 0
    try:
        while lease := ledger.claim():
            ledger.finish(lease, "done", {"text": "x" * 10_000})
            finished += 1
    except LedgerError as error:
        results.put((finished, str(error)))


def test_a_full_disk_is_one_error_and_loses_nothing(tmp_path):
    path, results = tmp_path / "ledger.sqlite", FORK.Queue()
    process = FORK.Process(target=fill_the_disk, args=(path, results))
    process.start()
    finished, said = results.get(timeout=60)
    process.join()
    assert "disk" in said and "same command" in said and "\n" not in said
    ledger = Ledger(path, "next", gone=lambda owner, beat: True)
    assert finished > 3 and ledger.counts()["done"] == finished and sum(ledger.counts().values()) == 50
    ledger.add(planned(50))
    while lease := ledger.claim():
        assert ledger.finish(lease, "done", {}) == "done"
    assert ledger.counts() == dict.fromkeys(STATES, 0) | {"done": 50}


def test_the_log_of_writes_does_not_grow_with_the_number_of_runs(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite", "me")
    ledger.add(planned(2 * LOG_CALLS + 10))
    while lease := ledger.claim():
        ledger.finish(lease, "done", {})
    without_log = sqlite3.connect(f"file:{tmp_path}/ledger.sqlite?immutable=1", uri=True)
    (moved,) = without_log.execute("SELECT count(*) FROM runs WHERE state = 'done'").fetchone()
    without_log.close()
    assert moved == 2 * LOG_CALLS  # all up to the last call that emptied it


def test_a_damaged_file_says_what_to_do(tmp_path):
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"no ledger" * 1000)
    with pytest.raises(LedgerError, match="move it away"):
        Ledger(path, "me")
    with pytest.raises(LedgerError, match="cannot use"):
        Ledger(tmp_path / "nowhere" / "ledger.sqlite", "me")


@pytest.mark.parametrize(
    "statements", ["CREATE TABLE notes (text)", "CREATE TABLE runs (key TEXT)", "PRAGMA user_version = 7"]
)
def test_another_programs_database_is_refused_by_name_and_left_alone(statements, tmp_path):
    path = tmp_path / "ledger.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.executescript(statements)
    before = path.read_bytes()
    for use in (lambda: Ledger(path, "me"), lambda: read_ledger(path)):
        with pytest.raises(LedgerError, match=r"ledger\.sqlite is no ledger of this version.*move it away"):
            use()
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_ledger_from_before_it_had_a_version_is_read(ledger):
    ledger.add(planned(2))
    ledger._db.execute("PRAGMA user_version = 0")
    assert len(read_ledger(ledger.path)) == len(Ledger(ledger.path, "you").rows()) == 2


NOBODY = 65534


def read_as(user, path, results):
    if user is not None:
        os.setuid(user)
    try:
        results.put(read_ledger(path))
    except LedgerError as error:
        results.put(error)


@pytest.mark.parametrize("left", ["closed", "in use", "killed", "copied"])
@pytest.mark.parametrize("user", [None, NOBODY])
def test_reading_changes_nothing_and_needs_no_right_to_write(left, user):
    if user and os.geteuid():
        pytest.skip("only root can be another user")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder) / "ledger.sqlite"
        ledger = Ledger(path, "me")
        ledger.add(planned(3))
        ledger.finish(ledger.claim(), "done", {"score": 1})
        rows, place = ledger.rows(), path
        if left == "closed":
            ledger.close()
        if left in ("killed", "copied"):
            place = path.parent / "elsewhere" / path.name
            place.parent.mkdir(mode=0o755)
            for end in ("", "-wal", "-shm") if left == "killed" else ("", "-wal"):
                shutil.copy(f"{path}{end}", f"{place}{end}")
        before = {found: found.read_bytes() for found in place.parent.iterdir() if found.is_file()}
        results = FORK.Queue()
        process = FORK.Process(target=read_as, args=(user, place, results))
        process.start()
        assert results.get(timeout=60) == rows
        process.join()
        after = {found: found.read_bytes() for found in place.parent.iterdir() if found.is_file()}
        assert after.keys() == before.keys() and after[place] == before[place]
        ledger.close()


def claim_and_release(path, ready):
    ledger = Ledger(path, "victim")
    ledger.add(planned(20))
    ready.set()
    while lease := ledger.claim():
        ledger.release(lease)


@pytest.mark.parametrize("delay", [0.03, 0.0517, 0.0744])
def test_a_kill_within_a_transaction_leaves_the_state_before_it(delay, tmp_path):
    path, ready = tmp_path / "ledger.sqlite", FORK.Event()
    victim = FORK.Process(target=claim_and_release, args=(path, ready))
    victim.start()
    ready.wait()
    time.sleep(delay)
    victim.kill()
    victim.join()
    ledger = Ledger(path, "next", gone=lambda owner, beat: owner == "victim")
    ledger.add(planned(20))
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)
    keys = [ledger.claim().key for _ in range(20)]
    assert sorted(keys) == [run.key for run in planned(20)]
