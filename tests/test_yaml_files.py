"""YAML 1.2's plain values, and one line for everything else."""

import json
import math
import os
from importlib.resources import files
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rmbook.errors import ConfigError
from rmbook.yaml_files import DEEPEST, LARGEST, parse_yaml, read_yaml

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
NAMES = st.text(max_size=80)  # YAML's names have at most 1,024 characters, and a letter may be written as twelve
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3))


@given(VALUES)
def test_what_json_writes_is_read_back(value):
    for ascii_only in (True, False):
        text = json.dumps(value, ensure_ascii=ascii_only)
        if all(letter.isprintable() for letter in text):
            assert parse_yaml(text, "x") == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("1e-05", 1e-5), ("1E5", 1e5), (".5", 0.5), ("5.", 5.0), ("+5", 5), ("-.inf", -math.inf)]
    + [("0123", 123), ("0x1F", 31), ("0o17", 15), ("1_000", "1_000"), ("1:30", "1:30"), ("2020-01-01", "2020-01-01")]
    + [("no", "no"), ("on", "on"), ("yes", "yes"), ("true", True), ("False", False), ("~", None), ("", None)]
    + [("1e400", math.inf), ("<<: {a: 1}", {"<<": {"a": 1}}), ('"\\ud83d\\ude00"', "😀"), ("!!str 5", "5"), ("=", "=")],
)
def test_values_are_those_of_yaml_1_2(text, value):
    found = parse_yaml(text, "x")
    assert found == value and type(found) is type(value)
    assert math.isnan(parse_yaml(".NaN", "x"))


@pytest.mark.parametrize(
    ("text", "part"),
    [("a: 1\nb: 2\na: 3", "line 3: 'a' occurs twice"), ("{a: {b: 1, b: 2}}", "'b' occurs twice")]
    + [("a: &x [1]\nb: *x", "line 2: references"), ("[" * (DEEPEST + 1), "levels"), ("[" * 100_000, "levels")]
    + [("- " * 200 + "1", "levels"), ("? [1]\n: 2", "must be text"), ("{", "line 1"), ("\t- a", "line 1")]
    + [("!!python/object:os.system x", "tag"), ("!!binary aaaa", "tag"), ("!!timestamp x", "tag"), ("!foo x", "tag")]
    + [("!!int x", "'x' is not a number"), ("!!bool maybe", "'maybe'"), ("!!float [1]", "scalar")]
    + [("9" * 5000, "number")]
    + [('"\\ud800"', "Unicode"), ("\x00", "control character"), ("--- 1\n--- 2", "document"), ("a: b: c", "line 1")],
)
def test_everything_else_is_refused_in_one_line(text, part):
    with pytest.raises(ConfigError) as raised:
        parse_yaml(text, "grid.yaml")
    said = str(raised.value)
    assert said.startswith("grid.yaml is not YAML: ") and part in said and "\n" not in said and len(said) < 300


def test_an_alias_bomb_is_refused_before_it_expands(tmp_path):
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    with pytest.raises(ConfigError, match="references"):
        read_yaml(tmp_path / "bomb.yaml")


def test_files_that_cannot_be_read_are_one_line(tmp_path):
    (tmp_path / "large.yaml").write_text("x" * (LARGEST + 1))
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff")
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbfa: 1e-4")
    os.mkfifo(tmp_path / "fifo.yaml")
    for name, part in (("large", "bytes"), ("latin", "UTF-8"), ("missing", "no such file"), ("fifo", "not a file")):
        with pytest.raises(ConfigError, match=part):
            read_yaml(tmp_path / f"{name}.yaml")
    with pytest.raises(ConfigError, match="not a file"):
        read_yaml(tmp_path)
    assert read_yaml(tmp_path / "bom.yaml") == {"a": 1e-4}


def test_ready_made_grids_are_the_same_for_pyyaml_but_for_its_text_numbers():
    def with_numbers(value):
        if isinstance(value, dict):
            return {name: with_numbers(entry) for name, entry in value.items()}
        if isinstance(value, list):
            return [with_numbers(entry) for entry in value]
        return float(value) if isinstance(value, str) and value[:1].isdigit() else value

    for path in Path(str(files("rmbook.sweeps"))).glob("grid_files/*.yaml"):
        assert read_yaml(path) == with_numbers(yaml.safe_load(path.read_text())), path
