"""Files of tensors: safetensors, written completely and read with care, and digests of what they hold."""

import hashlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from rmbook.errors import is_memory_shortage
from rmbook.files import UnreadableFileError, read_bytes, replacing, unique_names

HEADER_LIMIT = 2**22  # bytes of a safetensors file's header: enough for 10,000 masked layers, little to take apart
LARGE = 2**30  # bytes; a larger file that is mostly holes holds no numbers that were written
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
DTYPES = {  # of a safetensors file
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8},
    **{"U8": torch.uint8, "BOOL": torch.bool},
}


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
        header = json.loads(text[8 : 8 + length], object_pairs_hook=unique_names)
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
        MemoryError: its tensors do not fit in memory.
    """
    metadata, layouts = read_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            return metadata, {name: file.get_tensor(name) for name in layouts}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        if is_memory_shortage(error):
            raise MemoryError(f"{path} does not fit in memory ({error})") from None
        raise UnreadableFileError(f"{path} is no readable safetensors file ({error}); fetch it again.") from None


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
