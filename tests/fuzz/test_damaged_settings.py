"""Damaged files of settings and grids: what they mean, or one line, at once and before anything is written."""

import json
import random

from command_line import call
from fuzzing import ODD, contents, damaged_bytes, damaged_value, ended_well, refusal, seeds, within_limits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rmbook.runs.config import RunConfig, make_config, read_config
from rmbook.sweeps.grid import expand, grid_files, override, read_grid
from rmbook.yaml_files import parse_yaml

SETTINGS = {"model": "nowhere", "data_dir": "nowhere", "task": "RTE", "learning_rate": 1e-2, "method": "lora"}
SETTINGS |= {"settings": {"rank": 4}, "targets": ["a", "b"], "seed": 1, "epochs": 2, "dropout": 0.1}
GRID = b"""fixed: {model: nowhere, task: RTE, epochs: 5}
axes:
  method:
    - {method: lora, settings: {rank: 4}}
    - {method: random_masking, ratio: 1e-3}
  learning_rate: [1e-3, 1e-4]
  seed: [0, 1, 2]
except:
  - {method: lora, learning_rate: 1e-3}
"""
LINES = (b"a: &a [x, x]\n", b"b: *a\n", b"!!python/object/apply:os.system ['true']\n", b"? [1]\n: 2\n", b"seed: 1\n")
LINES += (b"axes: {seed: [" + b"0," * 3000 + b"]}\n", b"- " * 3000 + b"\n", b"{" * 3000, b"--- \n", b"<<: 1\n")


def test_files_of_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed in seeds(60):
        draw = random.Random(seed)
        path = tmp_path / draw.choice(("s.json", "s.yaml"))
        value = json.dumps(damaged_value(draw, SETTINGS) if draw.random() < 0.6 else SETTINGS).encode()
        path.write_bytes(damaged_bytes(draw, value) if draw.random() < 0.5 else value)
        before = contents(tmp_path)
        with within_limits(seed):
            answer = call("train", "--config", path, "--output", tmp_path / "run")
        assert not ended_well(answer, (seed, path.read_bytes()[:300])), "there is no such model"
        assert contents(tmp_path) == before
        path.unlink()


def test_grids(tmp_path):
    path = tmp_path / "grid.yaml"
    shipped = [file.read_bytes() for file in grid_files() if b"made:" not in file.read_bytes()]
    for seed in seeds(80):
        draw = random.Random(seed)
        content = draw.choice((GRID, GRID, *shipped))
        if draw.random() < 0.4:
            place = content.find(b"\n", draw.randrange(len(content))) + 1
            content = content[:place] + draw.choice(LINES) + content[place:]
        elif draw.random() < 0.5:
            content = json.dumps(damaged_value(draw, parse_yaml(content.decode(), "grid"))).encode()
        else:
            content = damaged_bytes(draw, content)
        path.write_bytes(content)
        values = {draw.choice(("seed", "epochs", "x", "settings")): draw.choice(ODD)} if draw.random() < 0.2 else {}
        found = []

        def read():
            found.extend(expand(override(read_grid(path), values), 500))  # noqa: B023 - called at once

        refusal(read, (seed, content[:300]))
        assert all(type(config) is RunConfig for config in found)
    for content in LINES:
        path.write_bytes(content)
        with within_limits(content):
            assert not ended_well(call("sweep", "run", path, "--output", tmp_path / "sweep"), content)
        assert list(tmp_path.iterdir()) == [path]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
NAMES = st.sampled_from([*SETTINGS, "ratio", "density", "batch_size", "max_length", "fixed", "axes", "except"])


@settings(derandomize=True, max_examples=len(seeds(60)), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(NAMES, JSON, max_size=4))
def test_any_values(values):
    def read():
        assert type(make_config(SETTINGS | values)) is RunConfig

    refusal(read, values)
    refusal(lambda: expand(values), values)
    refusal(lambda: expand({"fixed": SETTINGS, "axes": values}, 100), values)


@settings(derandomize=True, max_examples=len(seeds(150)), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=60) | st.text("{}[]:,-!&*?|>'\"#%@` \n\tab01.e", max_size=60))
def test_any_text(text):
    refusal(lambda: parse_yaml(text, "text"), text)


def test_a_sound_file_of_settings_is_taken(tmp_path):
    (tmp_path / "s.json").write_text(json.dumps(SETTINGS))
    assert make_config(read_config(tmp_path / "s.json")).epochs == 2
    (tmp_path / "grid.yaml").write_bytes(GRID)
    assert len(expand(read_grid(tmp_path / "grid.yaml"))) == 9
