"""The folder of a sweep: what is done in it is true, whatever a ledger says.

    SWEEP/runs/KEY/      a finished run; a fine-tuning run is there as `rmbook.start_run` leaves it
    SWEEP/work/KEY.XXX/  a run under way, or interrupted
    SWEEP/grids/         all runs that were asked for
    SWEEP/ledger.sqlite  who works on what

Two steps of the file system decide what becomes of a run, each of which happens or not and has one winner. Whoever
takes a run up gives its folder in work/ a new name: a process that had it before and lives after all finds its paths
gone. Whoever finishes a run moves the folder to runs/: the second one finds the place taken, so no run counts twice.

What is measured stands in a run's result.json: a JSON object with at least "status" ("completed" or "diverged") and
"config". Everything else in it is optional.
"""

import contextlib
import hashlib
import json
import os
import shlex
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rmbook.files import UnreadableFileError, replacing, write_json
from rmbook.json_files import count, fields, number, optional, read_json
from rmbook.runs.fingerprints import PlannedRun
from rmbook.runs.result import RESULT, STAMP, RunError, check_result

TIMED = ("seconds", "tokens_per_second", "peak_memory", "processes")
PLACE = ("date", "commit", "hardware")
COUNTED = ("trainable", "total", "cut_prompts", "steps", "epochs_finished", "best_epoch")
LOSSES = ("train_loss", "dev_loss", "dev_accuracy")
SUMMARY = {name: RESULT.get(name, count) for name in (*COUNTED, "ratio", "test")}
SUMMARY |= dict.fromkeys(LOSSES, optional(number)) | {"timing": fields(RESULT | STAMP)}  # kinds of `outcome`'s fields
STATES_OF_RESULTS = {"completed": "done", "diverged": "diverged"}


class SweepFolder:
    """A sweep's folder.

    Args:
        path: of the folder.
        new: it is to be written to, and made if it is not there.

    Raises:
        RunError: there is no sweep in it, but something else, or nothing where `new` is False.
    """

    def __init__(self, path: str | os.PathLike, new: bool = False):
        self.path = Path(path).resolve()
        self.runs, self.work, self.grids = (self.path / name for name in ("runs", "work", "grids"))
        self.ledger, self.owners = self.path / "ledger.sqlite", self.path / "owners"
        content = set(os.listdir(self.path)) if self.path.is_dir() else set()
        if not self.grids.is_dir() and (not new or content):
            what = "is no folder of a sweep" if content else "has no sweep"
            raise RunError(f"{path} {what}: begin one by `rmbook sweep run GRID --output FOLDER`, in a new folder.")
        for folder in (self.grids, self.runs, self.work) if new else ():  # whoever only reads makes nothing
            folder.mkdir(parents=True, exist_ok=True)

    def keep_plan(self, runs: Sequence[PlannedRun]) -> None:
        """Write down what was asked for, in a file that is named by its content."""
        text = json.dumps([asdict(run) for run in runs], indent=1)
        path = self.grids / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
        if not path.exists():
            with replacing(path) as temporary:
                temporary.write_text(text)

    def plans(self) -> list[PlannedRun]:
        """Return all runs that were ever asked for."""
        found = {}
        for path in sorted(self.grids.glob("*.json")):
            try:
                found |= {run.key: run for run in (PlannedRun(**entry) for entry in read_json(path))}
            except (UnreadableFileError, ValueError, TypeError):
                raise RunError(f"{path} is damaged: remove it, and run its grid again; nothing is lost.") from None
        return list(found.values())

    def result(self, key: str) -> dict | None:
        """Return what is in result.json of a run; None if it is not finished, or the file is damaged."""
        with contextlib.suppress(OSError):
            return _read_result(self.runs / key)
        return None

    def take_up(self, key: str, config: dict) -> Path:
        """Return a folder for a run that no other process has: that of an earlier attempt renamed, or a new one.

        Args:
            key: of the run.
            config: its settings; in the folder may be those from before its model was moved.
        """
        folder = self.work / f"{key}.{uuid.uuid4().hex[:8]}"
        for earlier in (*self.work.glob(f"{key}.*"), self.runs / key):
            try:
                os.rename(earlier, folder)
            except OSError:  # there is none, or another process was faster
                continue
            for rest in folder.glob(".*"):  # what a kill left of files that were being written
                rest.unlink()
            if (folder / "result.json").exists() and not _read_result(folder):  # it must not pass for a finished run
                (folder / "result.json").unlink()
            write_json(folder / "config.json", config)
            break
        return folder

    def commit(self, key: str, folder: Path) -> dict:
        """Make a finished run the result of its key, if there is none yet; return whichever came first.

        Raises:
            RunError: what the run left is not a result.
            OSError: the folder cannot be read or moved, or is another process's by now.
        """
        final = self.runs / key
        if not (result := _read_result(folder)):
            raise RunError(f"the run left a result.json without status and settings in {folder}.")
        if "stamp" in result:
            result["stamp"]["command"] = shlex.join(["rmbook", "train", "--config", str(final / "config.json")])
            write_json(folder / "result.json", result)
        for path in (*folder.iterdir(), folder):
            _to_disk(path)
        if not (first := self.result(key)):
            try:
                if final.exists():  # a run that another tool has begun, such as a job of Slurm's that was killed
                    os.rename(final, self.work / f"{key}.{uuid.uuid4().hex[:8]}")
                os.rename(folder, final)
            except OSError:
                if not (first := self.result(key)):
                    raise
        for rest in self.work.glob(f"{key}.*"):
            shutil.rmtree(rest, ignore_errors=True)
        return first or result


def _read_result(folder: Path) -> dict | None:
    """Return the result of the run in a folder, None if it is damaged; raises OSError if it cannot be read."""
    content = (folder / "result.json").read_bytes()
    try:
        result = json.loads(content)
        check_result(result, ("status", "config"))
        outcome(result)
        return result
    except (ValueError, LookupError, RecursionError):
        return None


def outcome(result: dict) -> tuple[str, dict]:
    """Return state and summary of a finished run, from its result.json: always the same for the same run.

    Returns:
        ("done" or "diverged", summary). What the result does not say is left out. Under "timing" are the numbers that
        would be others at another time.
    """
    summary = {name: result[name] for name in SUMMARY if name in RESULT and name in result}
    if (history := result.get("history")) is not None:
        best = history[result["best_epoch"] - 1] if result["best_epoch"] else {}
        summary["epochs_finished"] = len(history)
        summary |= {name: best.get(name) for name in LOSSES}
    timing = {name: result[name] for name in TIMED if name in result}
    if stamp := result.get("stamp"):
        timing |= {name: stamp.get(name) for name in PLACE}
    return STATES_OF_RESULTS[result["status"]], summary | {"timing": timing}


def _to_disk(path: Path) -> None:
    """Have the operating system write it out: after that not even a loss of power takes it away."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # some file systems cannot do it for folders
        pass
    finally:
        os.close(handle)
