"""Files and folders that are written completely or not at all, and files of others that are read with care."""

import contextlib
import functools
import hashlib
import json
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

HEADER_LIMIT = 2**22  # bytes of a safetensors file's header: enough for 10,000 masked layers, little to take apart
LARGE = 2**30  # bytes; a larger file that is mostly holes holds no numbers that were written
DTYPES = {  # of a safetensors file
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8},
    **{"U8": torch.uint8, "BOOL": torch.bool},
}


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
        raise PermissionError(f"cannot write {path}: its folder is not for you to write in.")


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


def write_safetensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file: completely or not at all, and the same bytes for the same content.

    The library writes metadata in another order each time; the header is sorted here.

    Raises:
        OSError: the disk is full, or another failure to write; see also `replacing`.
        ValueError: the header is longer than `read_safetensors` accepts.
    """
    with replacing(path) as temporary:
        try:
            safetensors.torch.save_file(tensors, temporary, metadata)
        except SafetensorError as error:  # the library's name for an error of the system
            raise OSError(f"cannot write {path}: {error}; is the disk full?") from None
        with open(temporary, "r+b") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
            text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
            if len(text) > size:
                raise ValueError(f"{path.name}: its sorted header has {len(text)} bytes, where {size} are reserved.")
            if size > HEADER_LIMIT:
                raise ValueError(f"{path.name}: {len(tensors)} tensors need a header of {size} > {HEADER_LIMIT} bytes.")
            file.seek(8)
            file.write(text.ljust(size))  # the format allows spaces at the end


@dataclass(frozen=True)
class Layout:
    """Type and shape of a tensor in a file."""

    dtype: torch.dtype
    shape: tuple[int, ...]


def read_header(path: str | os.PathLike) -> tuple[dict[str, str], dict[str, Layout]]:
    """Read the metadata of a safetensors file and the layout of its tensors, none of which is read.

    Everything is checked that can be: the header's size, that it describes the tensors one after the other, and that
    the file ends where they do. It takes a few megabytes, whatever the file says.

    Raises:
        UnreadableFileError: it is no such file.
    """
    text = read_bytes(path, HEADER_LIMIT + 8, whole=False)
    length, size = int.from_bytes(text[:8], "little"), os.stat(path).st_size
    if size < 8 or length > min(size - 8, HEADER_LIMIT):
        raise UnreadableFileError(
            f"{path} is no readable safetensors file: its header has {length} bytes, expected at most "
            f"{max(0, min(size - 8, HEADER_LIMIT))}; fetch it again."
        )
    try:
        header = json.loads(text[8 : 8 + length], object_pairs_hook=_without_repeats)
        metadata = header.pop("__metadata__", {})
        spans = [(*entry.pop("data_offsets"), Layout(DTYPES[entry.pop("dtype")], tuple(entry.pop("shape"))), name)
                 for name, entry in header.items() if len(entry) == 3]  # fmt: skip
        sound = len(spans) == len(header) and all(type(value) is str for value in metadata.values())
        end = 0
        for first, last, layout, _ in sorted(spans, key=lambda span: span[:2]):
            sound &= all(type(number) is int and 0 <= number < 2**48 for number in (first, last, *layout.shape))
            sound = sound and len(layout.shape) <= 8 and first == end
            sound = sound and last - first == math.prod(layout.shape) * layout.dtype.itemsize
            end = last
            if not sound:
                break
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError):
        sound = False
    if not sound or 8 + length + end != size:
        raise UnreadableFileError(
            f"{path} is no readable safetensors file: its header does not describe it; fetch it again."
        )
    blocks = getattr(os.stat(path), "st_blocks", None)  # of 512 bytes
    if size > LARGE and blocks is not None and 512 * blocks < size // 2:
        raise UnreadableFileError(f"{path} has {size:,} bytes, of which {512 * blocks:,} were written; fetch it again.")
    return metadata, {name: layout for _, _, layout, name in spans}


def read_safetensors(path: str | os.PathLike) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Read metadata and tensors of a safetensors file, after `read_header` has checked it.

    Raises:
        UnreadableFileError: it is no such file.
    """
    metadata, layouts = read_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            return metadata, {name: file.get_tensor(name) for name in layouts}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UnreadableFileError(f"{path} is no readable safetensors file ({error}); fetch it again.") from None


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


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def write_json(path: Path, data: Any) -> None:
    """Write `data` as JSON, completely or not at all."""
    with replacing(path) as temporary, open(temporary, "w") as file:
        json.dump(data, file, indent=1)
        file.write("\n")


def digest_tensors(tensors: dict[str, torch.Tensor], description: str) -> str:
    """Return the SHA-256 of a description and of the names, dtypes, shapes and bytes of tensors."""
    digest = hashlib.sha256(description.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(b"|")
        hash_tensor(digest, name, tensor)
    return digest.hexdigest()


def hash_tensor(digest: Any, name: str, tensor: torch.Tensor) -> None:
    """Add the name, dtype, shape and bytes of a tensor to a digest of `hashlib`."""
    tensor = tensor.detach().cpu().contiguous()
    digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy())


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
