"""Ctrl-C at any moment, also while libraries are loaded and twice in a row: one line, exit code 130, within seconds.

While a run trains, `rmbook.training.checkpoint` has its own handler, which writes a checkpoint first.
"""

import os
import signal
import threading
from types import SimpleNamespace

LINE = "rmbook: interrupted."
_state = SimpleNamespace(installed=False, running=False, said=False, count=0, allowed=1, patience=5.0)


def install() -> None:
    """Handle Ctrl-C from now on; for a process that is the command, not for one that imports this package."""
    if _state.installed or threading.current_thread() is not threading.main_thread():
        return
    _state.installed = True
    signal.signal(signal.SIGINT, _handle)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()


def running() -> None:
    """Have Ctrl-C raise KeyboardInterrupt from now on: the command is there to report it."""
    _state.running = True


def wait_for_workers() -> None:
    """Let the first Ctrl-C take its time, for an engine whose workers write checkpoints; the third one ends at once."""
    _state.allowed, _state.patience = 2, 3600.0


def all_said(code: int) -> None:
    """End the process in silence at Ctrl-C from now on: libraries that are at their ends would print their traces."""
    _state.said = True
    if _state.installed:
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(code))


def _handle(number, frame) -> None:
    _state.count += 1
    if _state.count > _state.allowed or not _state.running or _importing(frame):
        _end()
    raise KeyboardInterrupt


def _importing(frame) -> bool:
    """Return whether a module is being loaded: nothing is written then, and many libraries garble the exception."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _watch(reader: int) -> None:
    """End the process if a signal is lost: in a library that swallows the exception, or in a call that takes long."""
    while number := os.read(reader, 1):
        if number[0] == signal.SIGINT and signal.getsignal(signal.SIGINT) is _handle:
            timer = threading.Timer(_state.patience, _end)
            timer.daemon = True
            timer.start()


def _end() -> None:
    if not _state.said:
        _state.said = True
        os.write(2, f"{LINE}\n".encode())
    os._exit(130)
