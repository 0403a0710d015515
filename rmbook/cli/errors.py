"""TODO."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End with one line on standard error. The exit code is 2 for what came in, 1 for the machine, 130 for Ctrl-C.

    With RMBOOK_TRACEBACK in the environment the error goes on instead, with its trace.
    """
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("rmbook: interrupted.", err=True)
        raise typer.Exit(130) from None
    except Exception as error:
        code = _exit_code(error)
        if code is None or "RMBOOK_TRACEBACK" in os.environ:
            raise
        typer.echo(f"rmbook: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(code) from None


def _exit_code(error: Exception) -> int | None:
    """None for what is a defect of this program, and deserves its trace."""
    from rmbook.adapters.errors import AdapterError
    from rmbook.runs.folder import RunError
    from rmbook.runs.run import MemoryShortage
    from rmbook.training.checkpoint import CheckpointError, TrainingInterrupted

    codes = {TrainingInterrupted: 130, MemoryShortage: 1}
    files = (FileNotFoundError, FileExistsError, PermissionError, NotADirectoryError, IsADirectoryError)
    codes |= dict.fromkeys((ValueError, RunError, AdapterError, CheckpointError, *files), 2) | {OSError: 1}
    return next((code for kind, code in codes.items() if isinstance(error, kind)), None)
