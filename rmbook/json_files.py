"""JSON that comes back from disk, checked field by field: it may have been damaged, or written by a stranger.

A kind is a function that says whether a value is of it; `check_fields` compares a mapping with the kinds of its names.
"""

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rmbook.errors import shown
from rmbook.files import UnreadableFileError, read_bytes

LARGEST = 2**26  # bytes of a file of JSON
Kind = Callable[[Any], bool]


def read_json(path: str | os.PathLike) -> Any:
    """Return what is in a JSON file.

    Raises:
        UnreadableFileError: it is missing, no regular file, too large or no JSON; one line.
    """
    return _parsed(read_bytes(path, LARGEST), str(path))


def read_json_lines(path: Path, kind: Kind) -> list[dict]:
    """Return the JSON objects of a file with one a line; a last line that a kill has cut is left out.

    Args:
        path: of the file.
        kind: of each line.

    Raises:
        OSError: the file cannot be read.
        UnreadableFileError: a whole line is something else.
    """
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if line.endswith(b"\n"):
            rows.append(_parsed(line, f"{path}, line {number}"))
            if not kind(rows[-1]):
                raise UnreadableFileError(f"{path}, line {number}, is damaged.")
    return rows


def _parsed(text: bytes, name: str) -> Any:
    try:
        return json.loads(text)
    except UnicodeDecodeError:
        raise UnreadableFileError(f"{name} is damaged: it is not text in UTF-8.") from None
    except ValueError as error:
        raise UnreadableFileError(f"{name} is damaged: {' '.join(str(error).split())[:100]}.") from None
    except RecursionError:
        raise UnreadableFileError(f"{name} is damaged: it has too many levels.") from None


def check_fields(data: Any, kinds: Mapping[str, Kind], needed: tuple[str, ...] = ()) -> None:
    """Raise ValueError unless `data` maps names to values, and those in `kinds` are of their kind.

    Args:
        data: may have other names too.
        kinds: by name.
        needed: names that must be there.
    """
    if not isinstance(data, dict):
        raise ValueError(f"expected names with values, got {type(data).__name__}")
    if missing := [name for name in needed if name not in data]:
        raise ValueError(f"{missing[0]} is missing")
    for name, kind in kinds.items():
        if name in data and not kind(data[name]):
            raise ValueError(f"{name} cannot be {shown(data[name])}")


def fields(kinds: Mapping[str, Kind], needed: tuple[str, ...] = ()) -> Kind:
    """Return the kind of a mapping that `check_fields` accepts."""

    def kind(value: Any) -> bool:
        try:
            check_fields(value, kinds, needed)
        except ValueError:
            return False
        return True

    return kind


def each(kind: Kind) -> Kind:
    """Return the kind of lists whose entries are all of a kind."""
    return lambda value: isinstance(value, list) and all(map(kind, value))


def each_named(kind: Kind) -> Kind:
    """Return the kind of mappings whose values are all of a kind."""
    return lambda value: mapping(value) and all(map(kind, value.values()))


def optional(kind: Kind) -> Kind:
    """Return the kind of values that are of a kind, or null."""
    return lambda value: value is None or kind(value)


def count(value: Any) -> bool:
    """Return whether it is an integer of at least 0 that fits into 64 bits."""
    return type(value) is int and 0 <= value < 2**63


def number(value: Any) -> bool:
    """Return whether it is a finite number."""
    return type(value) is float and math.isfinite(value) or type(value) is int and abs(value) < 2**63


def text(value: Any) -> bool:
    """Return whether it is text that can be written: no half characters."""
    try:
        return type(value) is str and value.encode() is not None
    except UnicodeEncodeError:
        return False


def mapping(value: Any) -> bool:
    """Return whether it maps names that can be written to anything."""
    return isinstance(value, dict) and all(map(text, value))
