"""Models and records that are made on this machine, for grids that need no network: "made:opt", "made:sentences"."""

import functools
from collections.abc import Callable
from pathlib import Path

from rmbook.errors import ConfigError, closest
from rmbook.files import replacing_folder
from rmbook.offline.digits import cache_folder
from rmbook.offline.offline_files import tiny_checkpoint, write_generated_records
from rmbook.offline.tiny_clip import make_tiny_clip, write_digits
from rmbook.stamps import source_fingerprint

MADE = ("made:opt", "made:llama", "made:sentences", "made:clip", "made:digits")
SENTENCES = {"train": 2000, "test": 1000}


def resolve(name: str) -> str:
    """The folder that a name stands for.

    "made:opt", "made:llama" and "made:clip" are checkpoints, "made:sentences" records of SST-2, "made:digits" mirrored
    digits in MNIST's files. Each is made when it is first asked for, some 10 s for a checkpoint, and then kept in
    rmbook's cache. Other names are given back as they are.

    Raises:
        ConfigError: it begins with "made:" and is none of these.
    """
    if not name.startswith("made:"):
        return name
    if name not in MADE:
        raise ConfigError(f"{name} cannot be made: {closest(name, MADE)}")
    kind = name.removeprefix("made:")
    if kind == "sentences":
        return str(_kept("made-sentences", "rmbook.offline.offline_files", functools.partial(write_generated_records, **SENTENCES)))
    if kind == "clip":
        return str(_kept("made-clip", "rmbook.offline.tiny_clip", make_tiny_clip))
    if kind == "digits":
        return str(_kept("made-digits", "rmbook.offline.tiny_clip", write_digits))
    return str(tiny_checkpoint(kind))


def _kept(name: str, module: str, write: Callable[[Path], object]) -> Path:
    """A folder in the cache, written if it is not there yet, by this or earlier code of the module."""
    folder = cache_folder() / f"{name}-{source_fingerprint(module)[:8]}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            with replacing_folder(folder) as temporary:
                write(temporary)
        except OSError:  # another process was faster
            if not folder.is_dir():
                raise
    return folder
