"""Writing files completely or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


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
