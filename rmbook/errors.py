"""Errors and messages that several rooms share."""

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """A setting of a run is missing, unknown or out of range; one line that says what to do."""


class TaskError(ValueError):
    """A task, its examples or its prompts cannot be used; one line that says what to do."""


def closest(value: object, known: Iterable) -> str:
    """Second half of a message on an unknown name: up to three names that are like it, or else what is known.

    Capitals do not count, nor does what stands before a slash: "OPT-13" is like "facebook/opt-13b".
    """
    names = [str(name) for name in known]
    short = {name.split("/")[-1].casefold(): name for name in names}
    close = difflib.get_close_matches(str(value).split("/")[-1].casefold(), short, n=3)
    if close:
        return f"did you mean {' or '.join(short[name] for name in close)}?"
    return f"known are {', '.join(names)}." if len(names) <= 20 else f"known are {', '.join(names[:3])} and others."
