"""MNIST's own files, idx3-ubyte.gz and idx1-ubyte.gz, unpacked no further than their heads promise."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from rmbook.errors import TaskError

LARGEST = 10**9  # bytes; MNIST has 47 million


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Return the array in a file: zero, zero, 8 for uint8, number of dimensions; their sizes; the data.

    Raises:
        TaskError: it is no such file, or not whole.
    """
    head = 4 + 4 * dimensions
    try:
        if not path.is_file():  # a pipe would be waited for
            raise OSError("there is no such file")
        with gzip.open(path) as file:  # little can unpack to very much
            content = file.read(head)
            sizes = np.frombuffer(content[4:], ">u4").tolist() if len(content) == head else []
            if math.prod(sizes) <= LARGEST:
                content += file.read(math.prod(sizes) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise TaskError(f"{path} cannot be read ({type(error).__name__}: {error}): get it again.") from None
    if content[:4] != bytes((0, 0, 8, dimensions)) or len(content) != head + math.prod(sizes):
        raise TaskError(f"{path} is no whole idx{dimensions}-ubyte file: get it again.")
    return np.frombuffer(content, np.uint8, offset=head).reshape(sizes)


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write an array, uint8, as `read_idx` reads it; the same array gives the same bytes."""
    head = bytes((0, 0, 8, array.ndim)) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(gzip.compress(head + array.astype(np.uint8).tobytes(), mtime=0))
