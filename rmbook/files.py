"""Writing files and folders completely or not at all, and the same content as the same bytes."""

import contextlib
import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` to write to; it takes `path`'s place in one step if the block succeeds.

    On any error, an interruption included, the temporary file is removed and an older `path` stays as it was.
    """
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
    """A temporary folder to write to; it becomes `folder`, new or empty, in one step if the block succeeds.

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


def write_safetensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file: completely or not at all, and the same bytes for the same content.

    The library writes metadata in another order each time; the header is sorted here.
    """
    with replacing(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, metadata)
        with open(temporary, "r+b") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
            text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
            if len(text) > size:
                raise ValueError(f"{path.name}: its sorted header has {len(text)} bytes, where {size} are reserved.")
            file.seek(8)
            file.write(text.ljust(size))  # the format allows spaces at the end


def write_json(path: Path, data: Any) -> None:
    """Write `data` as JSON, completely or not at all."""
    with replacing(path) as temporary, open(temporary, "w") as file:
        json.dump(data, file, indent=1)
        file.write("\n")


def digest_tensors(tensors: dict[str, torch.Tensor], description: str) -> str:
    """SHA-256 of a description and of the names, dtypes, shapes and bytes of tensors."""
    digest = hashlib.sha256(description.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"|{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def digest_files(paths: dict[str, Path]) -> str:
    """SHA-256 of files' contents and of the names that they have in `paths`, not of where they are."""
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
