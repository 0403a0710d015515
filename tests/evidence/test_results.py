"""Recorded results: complete stamps, atomic files, resumable recording, and the grid of the first record."""

import json
import re

import pandas as pd
import pytest
import torch

from rmbook import stamps as results
from rmbook.evidence import first_finetune, recording
from rmbook.evidence.first_finetune import LEARNING_RATES, SEEDS, run, summary
from rmbook.evidence.recording import load_recorded, recorded_path
from rmbook.files import write_json
from rmbook.stamps import describe_stamp, stamp

RECORDS = sorted(path.stem for path in recorded_path("x").parent.glob("*.json"))


@pytest.mark.parametrize("name", RECORDS)
def test_every_record_has_a_complete_stamp(name):
    made = load_recorded(name)["stamp"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", made["date"])
    assert re.fullmatch(r"[0-9a-f]{40}", made["commit"]), "record from a clean checkout"
    assert made["command"].startswith("python ")
    assert made["hardware"]["cpu"] and made["hardware"]["cores"] and made["hardware"]["threads"]
    assert set(results.PACKAGES) | {"python"} <= set(made["versions"])


def test_a_stamp_says_what_is_here():
    made = stamp("python -m something")
    assert made["versions"]["torch"] == torch.__version__ and made["hardware"]["threads"] == torch.get_num_threads()
    line = describe_stamp({"stamp": made})
    assert made["date"] in line and "python -m something" in line and made["commit"][:9] in line


def test_an_unknown_record_lists_those_there_are():
    with pytest.raises(FileNotFoundError, match="no recorded result 'nothing'.*first_finetune"):
        load_recorded("nothing")


def test_writing_is_all_or_nothing(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1} and list(tmp_path.iterdir()) == [path]


# ------------------------------------------------------------------------------------------- the first experiment


def test_the_record_holds_the_whole_grid_and_no_best_is_at_its_edge():
    recorded = load_recorded("first_finetune")
    runs = pd.DataFrame(recorded["runs"])
    assert len(runs) == len(SEEDS) * sum(map(len, LEARNING_RATES.values()))
    for method, cells in runs.groupby("method"):
        assert sorted(cells["learning_rate"].unique()) == sorted(LEARNING_RATES[method])
        assert (cells.groupby("learning_rate")["seed"].nunique() == len(SEEDS)).all()
    assert (runs["steps"][runs["status"] == "completed"] == 5 * 256 / 8).all()
    for method, rate in summary(recorded["runs"])["learning_rate"].items():
        assert min(LEARNING_RATES[method]) < rate < max(LEARNING_RATES[method]), f"widen the grid of {method}"


def test_one_recorded_run_can_be_made_again():
    """On another machine rounding differs, and with it a few of the 500 test sentences."""
    recorded = load_recorded("first_finetune")["runs"]
    old = next(r for r in recorded if r["method"] == "density 0.01" and r["learning_rate"] == 3e-2 and r["seed"] == 1)
    new = run("density 0.01", 3e-2, 1, progress=False)
    assert new["trainable"] == old["trainable"] and new["steps"] == old["steps"]
    assert abs(new["test_accuracy"] - old["test_accuracy"]) < 4


def test_the_learning_rate_is_chosen_by_dev_and_never_by_test():
    rows = [
        {"method": "a", "learning_rate": rate, "seed": seed, "dev_accuracy": dev, "test_accuracy": test, "trainable": 1}
        for rate, dev, test in ((1e-3, 90, 50), (1e-2, 80, 99))
        for seed in range(2)
    ]
    best = summary(rows)
    assert best.loc["a", "learning_rate"] == 1e-3 and best.loc["a", "test"] == 50 and best.loc["a", "runs"] == 2


def test_an_unknown_method_is_named():
    with pytest.raises(ValueError, match='method must be "full", "lora" or "density D"'):
        run("dense 0.1", 1e-3, 0)


def test_recording_goes_on_after_a_kill(tmp_path, monkeypatch):
    """Killed in the middle of writing a line: what was finished is kept, the torn run is run again, none twice."""
    monkeypatch.setattr(recording, "recorded_path", lambda name: tmp_path / f"{name}.json")
    monkeypatch.setattr(first_finetune, "LEARNING_RATES", {"a": (1.0, 2.0), "b": (1.0,)})
    monkeypatch.setattr(first_finetune, "score", lambda model, split: 50.0)
    monkeypatch.setattr(first_finetune, "base_model", lambda: None)
    ran = []

    def fake_run(method, learning_rate, seed, progress):
        if len(ran) == 4 and not (tmp_path / "second").exists():
            raise KeyboardInterrupt
        ran.append((method, learning_rate, seed))
        return {
            "method": method,
            "learning_rate": learning_rate,
            "seed": seed,
            "dev_accuracy": 1.0,
            "test_accuracy": 1.0,
            "trainable": 1,
        }

    monkeypatch.setattr(first_finetune, "run", fake_run)
    with pytest.raises(KeyboardInterrupt):
        first_finetune.record()
    (partial,) = tmp_path.iterdir()
    whole = partial.read_bytes()
    partial.write_bytes(whole[:-7])  # the fourth line is torn
    (tmp_path / "second").touch()
    first_finetune.record()
    assert len(ran) == 4 + 6 and ran[3] == ran[4]
    written = json.loads((tmp_path / "first_finetune.json").read_text())
    cells = [(r["method"], r["learning_rate"], r["seed"]) for r in written["runs"]]
    assert len(cells) == len(set(cells)) == 9 and not partial.exists()
