"""Endings of a command: one line on standard error for every mistake, and its exit code.

2 for what came in, 1 for the machine (a full disk, too little memory) and for defects of this program, 130 for Ctrl-C.
With RMBOOK_TRACEBACK in the environment an error goes on instead, with its trace.
"""

import errno
import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from rmbook.cli import interrupt
from rmbook.errors import RmbookError, printable

LONGEST_LINE = 400
FROM_INPUT = {errno.ENAMETOOLONG, errno.ELOOP, errno.EROFS, errno.EINVAL, errno.ENOTEMPTY, errno.ENXIO, errno.EXDEV}
FILES = (FileNotFoundError, FileExistsError, PermissionError, NotADirectoryError, IsADirectoryError)


class OneLineGroup(TyperGroup):
    """A group of commands that ends as this module says."""

    def main(self, *arguments, standalone_mode: bool = True, **keywords):
        """Run the command line; see click."""
        if not standalone_mode:
            return super().main(*arguments, standalone_mode=False, **keywords)
        try:
            interrupt.running()
            try:
                code = super().main(*arguments, standalone_mode=False, **keywords)
            except Exception as error:
                if "RMBOOK_TRACEBACK" in os.environ:
                    raise
                code = _report(error)
        except KeyboardInterrupt:  # also one while an error was reported
            code = _say(interrupt.LINE, 130)
        _end_output()
        interrupt.all_said(code if isinstance(code, int) else 0)
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx):
        """Run a command; click would take a KeyboardInterrupt for itself."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted("interrupted.") from None


class Interrupted(RmbookError):
    """Ctrl-C, outside of training."""

    exit_code = 130


def _report(error: Any) -> int:
    if hasattr(error, "format_message"):  # click's own; typer may bring a copy of click, so its classes are no help
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
            return error.exit_code
        return _say(f"rmbook: {error.format_message()}", error.exit_code)
    if isinstance(error, typer.Abort):
        return _say(interrupt.LINE, 130)
    if isinstance(error, RmbookError):
        return _say(f"rmbook: {error}", error.exit_code)
    if isinstance(error, FILES) or (isinstance(error, OSError) and error.errno in FROM_INPUT):
        return _say(f"rmbook: {error}", 2)
    if isinstance(error, ValueError | ImportError):
        return _say(f"rmbook: {error}", 2)
    if isinstance(error, OSError):
        return _say(f"rmbook: {error}", 1)
    if isinstance(error, MemoryError | RecursionError):
        return _say(f"rmbook: too large for this machine's memory ({type(error).__name__}).", 1)
    return _say(f"rmbook: a defect of rmbook, {type(error).__name__}: {error} (RMBOOK_TRACEBACK=1 shows where)", 1)


def _say(line: str, code: int) -> int:
    typer.echo(printable(line, LONGEST_LINE), err=True)
    return code


def _end_output() -> None:
    """Write out what is left; what cannot be written, as on a full disk, would come up again at Python's end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
