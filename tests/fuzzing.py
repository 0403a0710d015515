"""Random damage, and what must hold whatever was damaged: the tools of tests/fuzz.

Everything is drawn from seeds, so a failure names the number that brings it back. RMBOOK_FUZZ multiplies the counts:
RMBOOK_FUZZ=10 tries ten times as much as `make test` does.
"""

import contextlib
import copy
import json
import os
import random
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from rmbook.cli.errors import FILES
from rmbook.errors import RmbookError

FACTOR = 0.4 * float(os.environ.get("RMBOOK_FUZZ", "1"))  # the counts in the tests are those of RMBOOK_FUZZ=2.5
LONGEST = 400
BUSY_SECONDS, WAITING_SECONDS = 10, 120  # of the processor; of the clock, for what waits: other programs may be busy
MOST_MEMORY = 2**30  # bytes by which a test may make this process grow
ODD = (  # in place of a value
    *(None, True, False, 0, -1, 1.5, -0.0, 1e308, 10**30, 2**63, float("nan"), float("inf"), float("-inf")),
    *("", " ", "0", "nan", "x" * 5000, "\ud800", "a\0b", "a\nb", "\x1b[31m", "../..", "é😀", "random_masking"),
    *([], [[]], {}, [None], [1, 2], {"a": 1}, {"": {}}, [{}] * 50, [0] * 2000),
)

MARKS = (b"\0", b"\xef\xbb\xbf", b"\n", b"\r", b"\t", b'"', b"\\ud800", b"[" * 3000, b"\xed\xa0\x80", b"1e999")


class Hang(BaseException):
    """Something took too long; no error that a reader may take for its own."""


def seeds(number: int) -> range:
    """The seeds of a test that tries so many times in `make test`."""
    return range(max(1, round(number * FACTOR)))


def damaged_bytes(draw: random.Random, content: bytes) -> bytes:
    """The content with one to three kinds of damage: bits, cuts, repeats, marks, what a disk or an editor does."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        size = len(content)
        place, length = draw.randrange(size + 1), draw.choice((1, 2, 4, 8, 64, 512))
        piece = content[place : place + length]
        new = draw.choice(
            (
                bytes([piece[0] ^ 1 << draw.randrange(8)]) + piece[1:] if piece else b"\x01",
                b"",
                piece * 2,
                bytes(len(piece)),
                b"\xff" * len(piece),
                draw.randbytes(length),
                draw.choice(MARKS),
            )
        )
        kind = draw.randrange(10)
        if kind == 0:
            content = content[:place]
        elif kind == 1:
            content = b"\xef\xbb\xbf" + content
        elif kind == 2:
            content = content[place:] + content[:place]
        elif kind == 3:
            content = draw.choice((b"", content + content, content + new, content.decode("latin-1").encode("utf-16")))
        else:
            content = content[:place] + new + content[place + length :]
    return content


def damaged_value(draw: random.Random, value):
    """A JSON value in which something, anywhere, is missing, of another name, type or range, or there too often."""
    value = copy.deepcopy(value)
    for _ in range(draw.choice((1, 1, 1, 2))):
        if not isinstance(value, dict | list) or draw.random() < 0.05:
            value = copy.deepcopy(draw.choice(ODD))
            continue
        holder = value
        while True:
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            if not keys:
                break
            key = draw.choice(keys)
            if not isinstance(holder[key], dict | list) or not holder[key] or draw.random() < 0.3:
                break
            holder = holder[key]
        if not keys:
            continue
        kind = draw.randrange(8)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[draw.choice(("", "x", "\ud800", key.upper(), key + " "))] = holder.pop(key)
        elif kind == 2:
            holder[key] = [holder[key]]
        elif kind == 3:
            holder[key] = str(holder[key])
        elif kind == 4 and isinstance(holder[key], int | float):
            holder[key] = draw.choice((-holder[key], holder[key] + 1, holder[key] * 10**6, holder[key] + 0.5))
        else:
            holder[key] = copy.deepcopy(draw.choice(ODD))
    return value


def damaged_json(draw: random.Random, text: str) -> bytes:
    """A JSON text, damaged in a value or in its bytes."""
    if draw.random() < 0.3:
        return damaged_bytes(draw, text.encode())
    return json.dumps(damaged_value(draw, json.loads(text))).encode()


def refusal(read: Callable, label: object) -> Exception | None:
    """Call a reader of something damaged, and return its refusal, None if it took it.

    A refusal is one of the errors that the command line ends with as 2, in one line.
    """
    try:
        with within_limits(label):
            read()
    except click.ClickException as error:
        return error
    except Exception as error:
        assert isinstance(error, (RmbookError, *FILES)), (label, repr(error)[:500])
        assert getattr(error, "exit_code", 2) == 2, (label, repr(error)[:500])
        assert "\n" not in str(error), (label, str(error)[:500])
        return error
    return None


@contextlib.contextmanager
def within_limits(label: object) -> Iterator[None]:
    """Raise `Hang` in what takes too long; fail if the process has grown too much."""

    def hang(number, frame):
        raise Hang(f"{label}: no end after {BUSY_SECONDS} s")

    before = {number: signal.signal(number, hang) for number in (signal.SIGPROF, signal.SIGALRM)}
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.setitimer(signal.ITIMER_PROF, BUSY_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WAITING_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - grown)  # kilobytes on Linux
    assert grown < MOST_MEMORY, (label, f"{grown:,} bytes more")


def ended_well(answer, label: object) -> bool:
    """Check how a command ended; True if it took what came."""
    if answer.exit_code == 0:
        return True
    assert answer.exit_code == 2 and isinstance(answer.exception, SystemExit), (label, answer.exit_code, answer.output)
    line = answer.stderr.removesuffix("\n")
    assert line.startswith("rmbook: ") and len(line) <= LONGEST and line.isprintable(), (label, answer.stderr[:500])
    assert answer.stdout == "", (label, answer.stdout[:500])
    return False


def contents(folder: Path) -> dict[str, bytes | None]:
    """All that is in a folder, by its place in it."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }
