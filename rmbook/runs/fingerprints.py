"""Hashes of all that a run's outcome depends on: settings, examples, base weights and this package's code."""

import fnmatch
import functools
import hashlib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

from rmbook.errors import shown
from rmbook.files import digest_files
from rmbook.json_files import each_named, mapping, text
from rmbook.models.files import FILES, ModelError, find_commit
from rmbook.runs.config import RunConfig
from rmbook.stamps import source_fingerprint
from rmbook.tasks.catalog import find_task
from rmbook.version import __version__

PLACES = ("model", "revision", "data_dir")  # where things are: the fingerprints say what they are
IDENTITY = ("data", "weights", "code")
NUMBERS = ("learning_rate", "ratio", "density", "dropout", "weight_decay", "max_grad_norm")


@dataclass(frozen=True)
class PlannedRun:
    """A run with its identity.

    Attributes:
        key: `run_key`.
        config: all settings, fit for JSON; folders are absolute, and a model of the hub has its commit.
        identity: fingerprints: "data", "weights" and "code".

    Raises:
        TypeError, ValueError: these are none; they may come from a file.
    """

    key: str
    config: dict
    identity: dict[str, str]

    def __post_init__(self):
        if not is_key(self.key):
            raise ValueError(f"{shown(self.key)} is no key of a run")
        if not mapping(self.config) or not each_named(text)(self.identity) or not self.identity.keys() <= set(IDENTITY):
            raise ValueError(f"the run {self.key} has no settings or no identity")
        json.dumps(self.config, ensure_ascii=False).encode()  # it has no half characters


def is_key(key: object) -> bool:
    """Return whether it can be the key of a run, which becomes the name of a folder."""
    return type(key) is str and re.fullmatch(r"[\w-]{1,100}", key) is not None


def plan_run(config: RunConfig, code: str | None = None) -> PlannedRun:
    """Find out what a run depends on; a file is read once a process, unless it changes.

    Args:
        config: the settings.
        code: fingerprint of the code that is to carry it out; `code_fingerprint` if None.

    Raises:
        TaskError, ModelError: examples or model cannot be found.
    """
    weights, commit = weights_fingerprint(config.model, config.revision)
    model = config.model if commit else str(Path(config.model).expanduser().resolve())
    data_dir = config.data_dir and str(Path(config.data_dir).expanduser().resolve())
    config = replace(config, revision=commit, model=model, data_dir=data_dir)
    data = data_fingerprint(config.task, config.data_dir)
    identity = {"data": data, "weights": weights, "code": code or code_fingerprint()}
    return PlannedRun(run_key(config, identity), config.to_dict(), identity)


def describe_inputs(config: RunConfig) -> dict[str, str]:
    """Fingerprints of a run's examples, "data", and of its base model, "weights".

    Raises:
        TaskError, ModelError: examples or model cannot be found.
    """
    weights, _ = weights_fingerprint(config.model, config.revision)
    return {"data": data_fingerprint(config.task, config.data_dir), "weights": weights}


def run_key(config: RunConfig, identity: dict[str, str]) -> str:
    """Identity of a run: the first 32 hex digits of a SHA-256 of its settings and of three fingerprints.

    Folders' names do not enter, so that a sweep can be moved, and 1 is the same learning rate as 1.0.

    Args:
        config: the settings.
        identity: "data", "weights" and "code".
    """
    settings = {name: value for name, value in config.to_dict().items() if name not in PLACES}
    settings |= {name: float(settings[name]) for name in NUMBERS if settings[name] is not None}
    return settings_key(settings, identity)


def settings_key(settings: dict, identity: dict[str, str]) -> str:
    """Return the first 32 hex digits of a SHA-256 of any run's settings and fingerprints."""
    return hashlib.sha256(json.dumps([settings, identity], sort_keys=True).encode()).hexdigest()[:32]


def data_fingerprint(task: str, data_dir: str | None) -> str:
    """Return the fingerprint of a task's examples: see `rmbook.tasks.task.Task.fingerprint`.

    Raises:
        TaskError: a file is missing.
    """
    return find_task(task).fingerprint(data_dir)


def weights_fingerprint(model: str, revision: str | None) -> tuple[str, str | None]:
    """Return the fingerprint of a checkpoint with its tokenizer: a hash of its files, or the hub's name and commit.

    Returns:
        (fingerprint, commit); the commit is None for a folder, and else what the run is to use as its revision.

    Raises:
        ModelError: no such model, or the hub is out of reach and its cache does not say which commit it is.
    """
    folder = find_commit(model, revision)
    if Path(model).expanduser().is_dir():
        files = [path.name for path in folder.iterdir() if path.is_file()]  # a pipe would be waited for
        names = sorted(name for name in files if any(fnmatch.fnmatch(name, f) for f in FILES))
        return digest_files({name: folder / name for name in names}), None
    if not re.fullmatch("[0-9a-f]{40}", folder.name):
        raise ModelError(f"cannot tell the commit of {model} from {folder}: give a folder, or --set revision=COMMIT.")
    return f"{model}@{folder.name}", folder.name


@functools.cache
def code_fingerprint() -> str:
    """Version of rmbook and a hash of the modules that a run can reach from `rmbook.runs.run`.

    Docstrings and comments do not enter, nor do modules that no run needs, such as those of figures: 7,000 runs do not
    become another version's by a better sentence. Python's minor version does, as its syntax trees have other forms.
    """
    return f"{__version__}+{source_fingerprint('rmbook.runs.run')[:16]}"
