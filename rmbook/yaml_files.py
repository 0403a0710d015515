"""YAML files of settings and grids, read by the rules of YAML 1.2, and with limits: they may come from strangers.

PyYAML reads YAML 1.1, in which 1e-4 is text, and `no` and `on` are truth values. Here 1e-4 is a number, `no` is text.
Refused is what makes a file mean something else than it seems to: a name that occurs twice, references to other parts
of the file, and types of programs.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import yaml

from rmbook.errors import ConfigError, reason
from rmbook.files import UnreadableFileError, read_bytes, unique_names

LARGEST = 2**18  # bytes of a file; this many take seconds
DEEPEST = 50  # levels of lists and mappings


def read_yaml(path: str | os.PathLike, name: str | None = None) -> Any:
    """Read a YAML or JSON file.

    Args:
        path: of the file.
        name: what to call it in messages; the path if None.

    Raises:
        ConfigError: it is missing, no regular file, too large or not such YAML; one line that says where.
    """
    path, name = Path(path), name or str(path)
    try:
        text = read_bytes(path, LARGEST).decode("utf-8-sig")
    except UnreadableFileError as error:
        raise ConfigError(str(error)) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{name} is not YAML: it is not text in UTF-8.") from None
    return parse_json(text, name) if path.suffix == ".json" else parse_yaml(text, name)


def parse_json(text: str, name: str) -> Any:
    """Return what is in a text of JSON.

    Raises:
        ConfigError: it is not JSON, or a name occurs twice.
    """
    try:
        return json.loads(text, object_pairs_hook=unique_names)
    except RecursionError:
        raise ConfigError(f"{name} is not JSON that can be read: it has too many levels.") from None
    except ValueError as error:
        raise ConfigError(f"{name} is not JSON: {reason(error, 200)}") from None


def parse_yaml(text: str, name: str) -> Any:
    """Return what is in a text of YAML: mappings, lists, text, numbers, true, false and null.

    Raises:
        ConfigError: it is not such YAML.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - it makes plain values only
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        said = " ".join((error.problem or error.context or "").split())
    except yaml.reader.ReaderError as error:
        where, said = "", f"character {error.position + 1} is a control character"
    raise ConfigError(f"{name} is not YAML: {where}{said[:200]}") from None


class _Loader(yaml.SafeLoader):
    """PyYAML's parser with the types of YAML 1.2 and no others."""

    yaml_implicit_resolvers, yaml_constructors = {}, {}
    depth = 0

    def compose_node(self, parent, index):
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _problem(event, "references (&name, *name) are not taken: write it out")
        self.depth += 1
        if self.depth > DEEPEST:
            raise _problem(event, f"it has more than {DEEPEST} levels")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode):
                raise _problem(key, "a name must be text")
            if key.value in seen:
                raise _problem(key, f"{key.value[:60]!r} occurs twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_text(self, node) -> str:
        try:  # JSON writes characters beyond 16 bits as pairs
            return self.construct_scalar(node).encode("utf-16", "surrogatepass").decode("utf-16")
        except ValueError:
            raise _problem(node, "half a character: it is not Unicode") from None

    def construct_truth(self, node) -> bool:
        text = self.construct_scalar(node).lower()
        if text not in ("true", "false"):
            raise _problem(node, f"{text[:60]!r} is neither true nor false")
        return text == "true"

    def construct_number(self, node) -> int | float:
        text = self.construct_scalar(node)
        try:
            if re.fullmatch(_INTEGER, text):
                return int(text, 0 if text[:2] in ("0o", "0x") else 10)
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError:
            raise _problem(node, f"{text[:60]!r} is not a number") from None


def _problem(place: yaml.Node | yaml.Event, text: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=text, problem_mark=place.start_mark)


_INTEGER = r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"
_FLOAT = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
_KINDS = {  # of a plain scalar: how it is written, and how it may begin
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""], _Loader.construct_yaml_null),
    "bool": ("true|True|TRUE|false|False|FALSE", list("tTfF"), _Loader.construct_truth),
    "float": (f"{_INTEGER}|{_FLOAT}", list("-+0123456789."), _Loader.construct_number),
    "str": (None, [], _Loader.construct_text),
    "seq": (None, [], _Loader.construct_yaml_seq),
    "map": (None, [], _Loader.construct_yaml_map),
    "int": (None, [], _Loader.construct_number),
}
for _name, (_written, _begins, _make) in _KINDS.items():
    _Loader.add_constructor(f"tag:yaml.org,2002:{_name}", _make)
    if _written is not None:
        _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"(?:{_written})$"), _begins)
_Loader.add_constructor(None, _Loader.construct_undefined)
