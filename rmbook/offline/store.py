"""The one place for what is made on this machine: a cache folder, where each thing is made once, and again if damaged.

What makes the things imports this module; `rmbook.offline.made` knows them by name.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from platformdirs import user_cache_dir

from rmbook.files import digest_file, replacing_folder

LIST = "made.json"  # SHA-256 of each file of a folder, as it was made


def cache_folder() -> Path:
    """Return the folder of what rmbook has made once: RMBOOK_CACHE, or the user's cache folder for rmbook."""
    return Path(os.environ.get("RMBOOK_CACHE") or user_cache_dir("rmbook"))


def kept(
    name: str, write: Callable[[Path], object], settings: Sequence = (), sources: Sequence[str | Path] = ()
) -> Path:
    """A folder in the cache; written if it is not there, or if a file in it is no longer what was written.

    Args:
        name: first part of the folder's name.
        write: fills the empty folder that it is called with.
        settings: what the content depends on, in an order of its own; part of the folder's name, as a hash.
        sources: files that the content depends on, such as the code that makes it; likewise.
    """
    key = hashlib.sha256(repr(tuple(settings)).encode())
    for path in sources:
        key.update(Path(path).read_bytes())
    folder = cache_folder() / f"{name}-{key.hexdigest()[:12]}"
    if not _is_whole(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            with replacing_folder(folder) as temporary:
                write(temporary)
                (temporary / LIST).write_text(json.dumps(_digests(temporary), indent=1) + "\n")
        except OSError:
            if not _is_whole(folder):  # else another process was faster: its folder is as good
                raise
    return folder


def _is_whole(folder: Path) -> bool:
    try:
        return json.loads((folder / LIST).read_text()) == _digests(folder)
    except (OSError, ValueError):
        return False


def _digests(folder: Path) -> dict[str, str]:
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: digest_file(path) for name, path in files.items() if name != LIST}


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Within this context torch computes with one thread: sums in another order would make another model.

    For models so small that is as fast as several.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def find_packaged(package: str, name: str) -> Path | None:
    """Return the path of a file in an installed package, None if it is not there; none of the package's code runs."""
    spec = importlib.util.find_spec(package)
    paths = [Path(place) / name for place in (spec.submodule_search_locations if spec else None) or []]
    return next((path for path in paths if path.is_file()), None)
