"""Errors and messages that several rooms share."""

import difflib


class ConfigError(ValueError):
    """A setting of a run is missing, unknown or out of range; one line that says what to do."""


def closest(value: object, known) -> str:
    """Second half of a message on an unknown name."""
    close = difflib.get_close_matches(str(value), [str(name) for name in known], n=3)
    return f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(known)}."
