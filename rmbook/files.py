"""Files and folders that are written completely or not at all, and files of others that are read with care."""

import contextlib
import functools
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class UnreadableFileError(Exception):
    """A file that is truncated, altered, too large, of another format, or no regular file; one line."""


def check_writable(path: Path) -> None:
    """Raise OSError if `path` cannot become a file, before work is done whose result would go there."""
    with contextlib.suppress(FileNotFoundError):
        path.with_name(f".{path.name}.12345678").lstat()  # the longest name that `replacing` uses; below a file
    if not path.resolve().parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: its folder does not exist; create it first.")
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder; name a file.")
    if not os.access(path.resolve().parent, os.W_OK | os.X_OK):
        raise PermissionError(f"cannot write {path}: you have no permission to write in its folder; choose another.")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary file beside `path` to write to; it takes `path`'s place in one step if the block succeeds.

    On any error, an interruption included, the temporary file is removed and an older `path` stays as it was. Through a
    symbolic link the file that it points to is replaced, and the link stays.

    Raises:
        OSError: `path` is a FIFO, a socket, a device or a folder, or it cannot be written.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise OSError(f"cannot write {path}: {_kind(path)}; choose another name, or remove it.")
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o644)  # mkstemp makes private files; these are for sharing
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


@contextlib.contextmanager
def replacing_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary folder to write to; it becomes `folder`, new or empty, in one step if the block succeeds.

    Unlike a file, a folder with content cannot be exchanged in one step, so it is refused.

    Raises:
        FileExistsError: `folder` has content, or is a file.
        FileNotFoundError: its parent does not exist.
    """
    folder = Path(folder).resolve()  # of a link to an empty folder, that folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not an empty folder; name a new one, or remove it first.")
    if not folder.parent.is_dir():
        raise FileNotFoundError(
            f"cannot save {folder.name}: the folder {folder.parent} does not exist; create it first."
        )
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp makes private folders; these are for sharing
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary)
        raise


def read_bytes(path: str | os.PathLike, limit: int, whole: bool = True) -> bytes:
    """Read at most `limit` bytes of a regular file; never wait for a FIFO, a socket or a device.

    Args:
        path: the file.
        limit: in bytes.
        whole: refuse a longer file, instead of reading its beginning.

    Raises:
        UnreadableFileError: it is longer, no regular file, or cannot be read.
    """
    try:
        if not os.path.isfile(path):
            raise UnreadableFileError(f"{path} cannot be read: {_kind(path)}.")
        with open(path, "rb") as file:
            text = file.read(limit)
            if whole and file.read(1):
                raise UnreadableFileError(f"{path} has more than {limit:,} bytes, more than such a file can need.")
            return text
    except OSError as error:
        raise UnreadableFileError(f"{path} cannot be read: {error.strerror or error}.") from None


def _kind(path: str | os.PathLike) -> str:
    # What is there in a file's place, in words.
    if not os.path.exists(path):
        return "there is no such file"
    mode = os.stat(path).st_mode
    kinds = {"a folder": stat.S_ISDIR, "a FIFO": stat.S_ISFIFO, "a socket": stat.S_ISSOCK}
    return f"it is {next((name for name, is_it in kinds.items() if is_it(mode)), 'a device')}, not a file"


def write_json(path: Path, data: Any) -> None:
    """Write `data` as JSON, completely or not at all."""
    with replacing(path) as temporary, open(temporary, "w") as file:
        json.dump(data, file, indent=1)
        file.write("\n")


def digest_files(paths: dict[str, Path]) -> str:
    """Return the SHA-256 of files' contents and of the names that they have in `paths`, not of where they are."""
    digests = {}
    for name, path in paths.items():
        found = os.stat(path)
        digests[name] = _digest_file(path, found.st_ino, found.st_size, found.st_mtime_ns)
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


@functools.cache
def _digest_file(path: Path, *state: int) -> str:
    """SHA-256 of a file, read again only if its state is another one."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
