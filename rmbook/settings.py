"""Declaration of settings: each once, as a field of a dataclass with its type, default, bounds and help text.

The settings of a run (`rmbook.runs.config`), of the training loop (`rmbook.training.config`) and of each method
(`rmbook.methods.settings`) are such dataclasses. Their checks, the flags of the command line, its help and the paper's
protocol follow from the fields. Nothing here needs torch: a mistake in a flag is answered at once.
"""

import dataclasses
import json
import math
import os
import types
import typing
from dataclasses import MISSING, Field
from numbers import Integral, Real
from typing import Any

from rmbook.errors import ConfigError, closest, shown

COUNT = 10**9  # more examples, steps or tokens than any run has; a larger number is a slip
LONGEST_TEXT = 4096  # characters; Linux takes no longer path


def setting(
    help: str,
    default: Any = MISSING,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] = (),
    unset: str = "",
    flags: tuple[str, ...] = (),
    path: bool = False,
    paper: bool = False,
) -> Any:
    """A field of a dataclass of settings.

    Args:
        help: what it is, without a full stop.
        default: a value, or a dict that is copied; the setting must be given if there is none.
        least, above, most, below: bounds of numbers, of each one in a list.
        choices: the words that are allowed.
        unset: what happens if it is None, in words.
        flags: names on the command line; --NAME-WITH-HYPHENS if empty.
        path: whether it may name a file or folder, so that ~ is a home folder.
        paper: whether it decides the outcome, and the default is the paper's choice (appendix B).
    """
    limits = {"least": least, "above": above, "most": most, "below": below}
    metadata = limits | {"help": help, "choices": choices, "unset": unset, "flags": flags, "path": path, "paper": paper}
    value = {"default_factory": default.copy} if isinstance(default, dict) else {"default": default}
    return dataclasses.field(metadata=metadata, **value)


def same_setting(kind: type, name: str) -> Any:
    """The field of another dataclass of settings once more."""
    entry = find_setting(kind, name)
    return dataclasses.field(default=entry.default, metadata=entry.metadata)


def find_setting(kind: type, name: str) -> Field:
    """The field of a name."""
    return {entry.name: entry for entry in dataclasses.fields(kind)}[name]


def documented(kind: type) -> type:
    """Add the settings of a dataclass to its docstring."""
    lines = [f"    {entry.name}: {help_text(entry)}" for entry in dataclasses.fields(kind)]
    kind.__doc__ = "\n".join([(kind.__doc__ or "").rstrip(), "", "Attributes:", *lines])
    return kind


def check_settings(settings: Any) -> None:
    """Check all fields of an instance of a dataclass of settings, and give each its plain type.

    Raises:
        ConfigError: a value is of another type, or out of range.
    """
    for entry in dataclasses.fields(settings):
        object.__setattr__(settings, entry.name, check(entry, getattr(settings, entry.name)))


def check_names(names, kind: type) -> None:
    """Raise ConfigError if one of `names` is no setting in `kind`."""
    known = [entry.name for entry in dataclasses.fields(kind)]
    for name in names:
        if name not in known:
            raise ConfigError(f"unknown setting {shown(name)}: {closest(name, known)}")


def check(entry: Field, value: Any) -> Any:
    """Return a value in its plain type, or raise ConfigError if it is of another type or out of range."""
    for kind in kinds_of(entry):
        fits, found = _fitted(kind, value, entry.metadata)
        if fits:
            return found
    if isinstance(value, str) and entry.metadata["choices"] and float not in kinds_of(entry):
        raise ConfigError(f"unknown {entry.name} {shown(value)}: {closest(value, entry.metadata['choices'])}")
    raise ConfigError(f"{entry.name} must be {wanted(entry)}, got {shown(value)}.")


def parse(entry: Field, text: str) -> Any:
    """The value that a text of the command line stands for, checked as `check` does."""
    value = text
    for kind in (int, float):
        if kind in kinds_of(entry):
            try:
                value = kind(text)
            except ValueError:  # stays a text: `check` says what is wrong
                continue
            break
    if tuple[str, ...] in kinds_of(entry) and "," in text:
        value = tuple(name.strip() for name in text.split(","))
    return check(entry, value)


def parse_pairs(pairs: list[str]) -> dict[str, Any]:
    """Names and values from texts like rank=16, values as in JSON or else as text.

    Raises:
        ConfigError: a text is no pair, or a name comes twice.
    """
    found = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not (name and equals):
            raise ConfigError(f"--set takes NAME=VALUE, as in --set rank=16; got {shown(pair)}.")
        if name in found:
            raise ConfigError(f"--set {shown(name)} is given twice: give it once.")
        try:
            found[name] = json.loads(text)
        except json.JSONDecodeError:
            found[name] = text
        except (RecursionError, ValueError):  # deep nesting; a number of more than 4,300 digits
            raise ConfigError(f"--set {shown(name)}: the value {shown(text)} is too large or too deep.") from None
    return found


def wanted(entry: Field) -> str:
    """Return in words what a setting must be."""
    kinds = [kind for kind in kinds_of(entry) if kind is not types.NoneType]
    return " or ".join(_wanted(kind, entry.metadata) for kind in kinds)


def help_text(entry: Field) -> str:
    """Return the help text of a setting, with its choices and its default."""
    text, choices, unset = entry.metadata["help"], entry.metadata["choices"], entry.metadata["unset"]
    if choices:
        words = [f"{word} (default)" if word == entry.default else word for word in choices]
        more = {float: ["a number"], tuple[str, ...]: ["names of layers"]}
        words += [word for kind in kinds_of(entry) for word in more.get(kind, [])]
        text += f": {', '.join(words[:-1])} or {words[-1]}"
    if unset:
        text += f" [{unset}]"
    elif isinstance(entry.default, bool):
        text += " [yes]" if entry.default else ""
    elif entry.default not in (MISSING, None, *choices):
        text += f" [{entry.default:g}]"
    return f"{text}."


def kinds_of(entry: Field) -> tuple:
    """The types that a setting may have; dict for every kind of dict."""
    kinds = typing.get_args(entry.type) if isinstance(entry.type, types.UnionType) else (entry.type,)
    return tuple(dict if typing.get_origin(kind) is dict else kind for kind in kinds)


def expand_home(path: str) -> str:
    """The path with ~ or ~NAME at its start replaced by that user's home folder.

    Raises:
        FileNotFoundError: there is no such user.
    """
    expanded = os.path.expanduser(path)
    if path.startswith("~") and expanded == path:
        user = shown(path.split("/")[0])
        raise FileNotFoundError(f"there is no user whose home folder is {user}: write ./~ for a name that begins so.")
    return expanded


def _fitted(kind: Any, value: Any, limits: Any) -> tuple[bool, Any]:
    """Return whether a value is of a kind and within the limits, and the value in its plain type."""
    if kind is types.NoneType:
        return value is None, None
    if kind in (bool, dict):
        return isinstance(value, kind), value
    if kind is int:
        fits = isinstance(value, Integral) and not isinstance(value, bool) and _within(value, limits)
        return fits, int(value) if fits else None
    if kind is float:
        fits = isinstance(value, Real) and not isinstance(value, bool) and _within(value, limits)
        return fits, float(value) if fits else None
    if kind is str:
        if not isinstance(value, str) or not _is_text(value) or (limits["choices"] and value not in limits["choices"]):
            return False, None
        return True, expand_home(value) if limits["path"] else value
    if not isinstance(value, list | tuple) or not value:
        return False, None
    parts = [_fitted(typing.get_args(kind)[0], part, limits | {"choices": ()}) for part in value]
    return all(fits for fits, _ in parts), tuple(part for _, part in parts)


def _within(value: Real, limits: Any) -> bool:
    try:
        value = float(value)
    except OverflowError:
        return False
    return (
        math.isfinite(value)
        and (limits["least"] is None or value >= limits["least"])
        and (limits["above"] is None or value > limits["above"])
        and (limits["most"] is None or value <= limits["most"])
        and (limits["below"] is None or value < limits["below"])
    )


def _is_text(value: str) -> bool:
    """Return whether a string can be a path and be written: no lone surrogates, no zero byte, of bearable length."""
    return 0 < len(value) <= LONGEST_TEXT and "\0" not in value and not any("\ud800" <= c <= "\udfff" for c in value)


def _wanted(kind: Any, limits: Any) -> str:
    if kind is bool:
        return "true or false"
    if kind is dict:
        return "names with values"
    if kind is str:
        return ", ".join(limits["choices"]) or f"a text of 1 to {LONGEST_TEXT:,} characters"
    if kind not in (int, float):
        return "a list of names" if kind == tuple[str, ...] else f"a list with {_wanted(int, limits)} in each place"
    name, (least, above, most, below) = {int: "integer", float: "number"}[kind], list(limits.values())[:4]
    article = "an" if kind is int else "a"
    if most is None and below is None and (least == 0 or above == 0):
        return f"{'zero or ' if least == 0 else ''}a positive finite {name}"
    if least is not None and most is not None:
        return f"{article} {name} from {least:,} to {most:,}"
    low = f"of at least {least:,}" if least is not None else f"above {above}" if above is not None else ""
    high = f"at most {most:,}" if most is not None else f"below {below}" if below is not None else ""
    return f"{article} {name} {' and '.join(filter(None, (low, high)))}".rstrip()
