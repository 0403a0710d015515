"""The flags of the command line, made from the declarations of settings.

Each is a text, or None where it is not given, so that a settings file or a default can speak; `rmbook.settings` turns
it into a value and says what is wrong with it.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from rmbook.errors import ConfigError, shown
from rmbook.files import check_writable
from rmbook.settings import expand_home, find_setting, help_text, kinds_of, parse, parse_pairs


def path_flag(*names: str, help: str) -> Any:
    """A flag that names a file or a folder; ~ is a home folder."""
    return typer.Option(*names, help=help, show_default=False, metavar="PATH", callback=_expanded)


def _expanded(path: str | None) -> str | None:
    return path and expand_home(path)


Run = Annotated[
    str | None, typer.Argument(help="Folder of a run.", show_default=False, metavar="[RUN]", callback=_expanded)
]
Sweep = Annotated[
    str, typer.Argument(help="Folder of a sweep.", show_default=False, metavar="SWEEP", callback=_expanded)
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]


def check_outputs(wanted: dict[str, tuple[str | None, str]]) -> None:
    """Check files to write, by flag with the ending that their names must have, before anything is computed."""
    for flag, (path, ending) in wanted.items():
        if path and not path.endswith(ending):
            raise ConfigError(f"{flag} takes a name that ends in {ending}, got {shown(path)}.")
        if path:
            check_writable(Path(path))


def takes(kind: type, *names: str) -> Callable[[Callable], Callable]:
    """Give a command a flag for each setting of a dataclass, or for those of some names.

    The command gets, as its first argument, a dict of the settings that were given, parsed and checked.
    """
    entries = [find_setting(kind, name) for name in names] or dataclasses.fields(kind)

    def decorate(command: Callable) -> Callable:
        own = list(inspect.signature(command).parameters.values())[1:]
        flags = [
            inspect.Parameter(entry.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_flag(entry))
            for entry in entries
        ]

        @functools.wraps(command)
        def with_flags(**values):
            texts = {entry.name: values.pop(entry.name) for entry in entries}
            return command({e.name: _value(e, texts[e.name]) for e in entries if texts[e.name] is not None}, **values)

        named = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in [*flags, *own]]
        setattr(with_flags, "__signature__", inspect.Signature(named))  # noqa: B010 - typed as a function without one
        with_flags.__annotations__ = {parameter.name: parameter.annotation for parameter in [*flags, *own]}
        return with_flags

    return decorate


def _flag(entry: dataclasses.Field) -> Any:
    name, kinds = entry.name.replace("_", "-"), kinds_of(entry)
    names = entry.metadata["flags"] or [f"--{name}/--no-{name}" if bool in kinds else f"--{name}"]
    text = "PATH" if entry.metadata["path"] else "TEXT"
    known = {int: "INTEGER", float: "NUMBER", dict: "NAME=VALUE", bool: None, str: text}
    metavar = next(metavar for kind, metavar in known.items() if kind in kinds)
    option = typer.Option(*names, help=help_text(entry), metavar=metavar, show_default=False)
    shape = bool if bool in kinds else list[str] if dict in kinds else str
    return Annotated[shape | None, option]


def _value(entry: dataclasses.Field, given: Any) -> Any:
    if bool in kinds_of(entry):
        return given
    return parse_pairs(given) if dict in kinds_of(entry) else parse(entry, given)
