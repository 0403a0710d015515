"""Errors and messages that several rooms share."""

import difflib
import reprlib
from collections.abc import Iterable
from typing import Any

LONGEST_VALUE, LONGEST_MESSAGE = 60, 2000


class RmbookError(Exception):
    """A mistake that a user can put right; its text is one line that says what came, what was expected and what to do.

    Attributes:
        exit_code: of the command that ends with it: 2 for what came in, 1 for the machine, 130 for Ctrl-C.
    """

    exit_code = 2

    def __str__(self) -> str:
        """Return the text as one line, whatever names and values from outside are in it."""
        return printable(super().__str__(), LONGEST_MESSAGE)


class ConfigError(RmbookError, ValueError):
    """A setting is missing, unknown or out of range."""


class TaskError(RmbookError, ValueError):
    """A task, its examples or its prompts cannot be used."""


def closest(value: object, known: Iterable) -> str:
    """Return the second half of a message on an unknown name: up to three names that are like it, or what is known.

    Capitals do not count, nor does what stands before a slash: "OPT-13" is like "facebook/opt-13b".
    """
    names = [str(name) for name in known]
    short = {name.split("/")[-1].casefold(): name for name in names}
    close = difflib.get_close_matches(str(value)[-LONGEST_VALUE:].split("/")[-1].casefold(), short, n=3)
    if close:
        return f"did you mean {' or '.join(short[name] for name in close)}?"
    return f"known are {', '.join(names)}." if len(names) <= 20 else f"known are {', '.join(names[:3])} and others."


def shown(value: Any) -> str:
    """Return a value as a message shows it: about 60 characters, control characters and line ends escaped."""
    try:
        text = _SHORT.repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        text = f"a number of {value.bit_length():,} bits"
    return printable(text, LONGEST_VALUE)


def reason(error: Exception, longest: int = 120) -> str:
    """Return the text of an error as part of a message of one line; its kind if it has no text."""
    return printable(str(error), longest) or type(error).__name__


def first_line(error: Exception, longest: int = 120) -> str:
    """Return the kind and the text of an error as part of a message of one line."""
    return f"{type(error).__name__}: {printable(str(error), longest)}"


def is_memory_shortage(error: Exception) -> bool:
    """Tell whether an error says that memory ran out, the machine's or a GPU's: what was read is not to blame."""
    from accelerate.utils.memory import should_reduce_batch_size  # only where something went wrong: it loads torch

    mapped = "Cannot allocate memory" in str(error)  # what torch and safetensors say of a file, in errors of any kind
    return isinstance(error, MemoryError) or mapped or should_reduce_batch_size(error)


def printable(text: str, longest: int) -> str:
    """Return a text as one line, cut in the middle to `longest` characters; what steers a terminal is escaped."""
    if len(text) > 8 * longest:  # of a million characters only the ends matter
        text = text[: 4 * longest] + text[-4 * longest :]
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(text.split()))
    if len(text) <= longest:
        return text
    end = (longest - 5) // 3
    return f"{text[: longest - 5 - end]} ... {text[len(text) - end :]}"


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = LONGEST_VALUE
_SHORT.maxlevel = 3
