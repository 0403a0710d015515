"""Recorded results: complete stamps, and files that are written whole or not at all."""

import json
import re

import pytest
import torch

from rmbook.evidence.recording import load_recorded, recorded_path
from rmbook.files import write_json
from rmbook.stamps import PACKAGES, describe_stamp, stamp

FOLDER = recorded_path("x").parent
RECORDS = sorted(f"{part}{path.stem}" for part in ("", "science/") for path in FOLDER.glob(f"{part}*.json"))


@pytest.mark.parametrize("name", RECORDS)
def test_every_record_has_a_complete_stamp(name):
    made = load_recorded(name)["stamp"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", made["date"])
    assert re.fullmatch(r"[0-9a-f]{40}", made["commit"]), "record from a clean checkout"
    assert made["command"].startswith("rmbook record ")
    assert made["hardware"]["cpu"] and made["hardware"]["cores"] and made["hardware"]["threads"]
    assert set(PACKAGES) | {"python"} <= set(made["versions"])


def test_a_stamp_says_what_is_here():
    made = stamp("rmbook record something")
    assert made["versions"]["torch"] == torch.__version__ and made["hardware"]["threads"] == torch.get_num_threads()
    line = describe_stamp({"stamp": made})
    assert made["date"] in line and "rmbook record something" in line and made["commit"][:9] in line


def test_an_unknown_record_lists_those_there_are():
    with pytest.raises(FileNotFoundError, match="no recorded result 'nothing'.*fine_tuning_opt"):
        load_recorded("nothing")


def test_writing_is_all_or_nothing(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1} and list(tmp_path.iterdir()) == [path]
