"""The ledger of claims: computed evidence equals what is written, nothing points nowhere, nothing lacks its stamp."""

import ast
import json
import re
from pathlib import Path

import pytest

from rmbook.errors import ConfigError
from rmbook.evidence.claim import SETTINGS, STATUSES, Claim, Evidence, claims_folder, decide, read_ledger, write_ledger
from rmbook.evidence.claims import CLAIMS, read_claims
from rmbook.evidence.claims_page import PAGE, claims_page
from rmbook.evidence.recording import load_recorded
from rmbook.files import write_json

ROOT = Path(__file__).resolve().parents[2]
BY_NAME = {claim.name: claim for claim in CLAIMS}
WRITTEN = read_ledger()
NUMBERED = [f"Figure {n}" for n in range(1, 12)] + [f"Table {n}" for n in range(1, 10)]
NUMBERED += ["Theorem 5.1", "Proposition 5.2", "Proposition 5.3", "Lemma A.1"]


def test_every_numbered_item_of_the_paper_is_in_the_ledger():
    sources = {source for claim in CLAIMS for source in claim.sources}
    assert not [item for item in NUMBERED if not any(re.fullmatch(item + "[a-d]?", source) for source in sources)]
    assert len(BY_NAME) == len(CLAIMS)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"evidence": "[hessian_fall, vit, before]"}, "claim made: no function hessian_fall .* hessian_falls"),
        ({"cel": "cell"}, "claim made: .* 'cel'"),
        ({"cell": None}, "claim made: .* 'cell'"),
    ],
)
def test_a_claim_with_a_wrong_name_is_refused(tmp_path, changes, message):
    names = ("statement", "chapter", "cell", "test")
    row = {"name": "made", "sources": "[Table 1]"} | dict.fromkeys(names, "text") | changes
    lines = [f"{name}: {value}" for name, value in row.items() if value]
    (tmp_path / "claims.yaml").write_text("- " + "\n  ".join(lines))
    with pytest.raises(ConfigError, match=message):
        read_claims(tmp_path / "claims.yaml")


def test_there_is_one_file_a_claim():
    assert WRITTEN.keys() == BY_NAME.keys()


@pytest.mark.parametrize("name", BY_NAME)
def test_written_evidence_is_what_the_records_give(name):
    entry, written = BY_NAME[name].entry(), WRITTEN[name]
    found, expected = (content.pop("evidence") for content in (written | {"stamps": None}, entry))
    assert {n: v for n, v in written.items() if n not in ("stamps", "evidence")} == {
        n: v for n, v in entry.items() if n != "evidence"
    }
    assert (found is None) == (expected is None)
    if found:
        numbers = ("value", "wall_seconds")
        for number in numbers:  # simulations round otherwise on other processors
            same = found[number] == expected[number] or found[number] == pytest.approx(expected[number], rel=1e-3)
            assert same, number
        if BY_NAME[name].records:
            assert found == expected


@pytest.mark.parametrize("name", BY_NAME)
def test_what_was_measured_has_complete_stamps(name):
    claim, written = BY_NAME[name], WRITTEN[name]
    if claim.measure is None:
        assert written["status"] == "not run" and written["stamps"] == {} and claim.remark and claim.setting is None
        return
    assert claim.setting in SETTINGS and written["status"] in STATUSES
    assert set(written["stamps"]) == (set(claim.records) or {"computed"})
    for record, stamp in written["stamps"].items():
        assert re.fullmatch("[0-9a-f]{40}", stamp["commit"]), f"{record} was recorded from changed code"
        assert stamp["date"] and stamp["command"] and stamp["hardware"]["cpu"] and stamp["versions"]["torch"]
        if record != "computed":
            assert stamp == load_recorded(record)["stamp"]
    if claim.setting == "small models":
        assert written["status"] in ("trend only", "inconclusive") and written["evidence"]["interval"]
    assert (written["status"] in ("re-read",)) <= (claim.setting == "printed numbers")


@pytest.mark.parametrize("name", BY_NAME)
def test_chapter_cell_and_test_exist(name):
    claim = BY_NAME[name]
    notebook = json.loads((ROOT / "book" / f"{claim.chapter}.ipynb").read_text())
    cells = {cell["id"]: "".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"}
    assert claim.cell in cells, f"{claim.chapter} has no code cell {claim.cell}"
    assert "assert" in cells[claim.cell], f"cell {claim.cell} of {claim.chapter} asserts nothing"
    file, _, function = claim.test.partition("::")
    tree = ast.parse((ROOT / file).read_text())
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, claim.test


def test_the_page_shows_the_ledger():
    assert PAGE.read_text() == claims_page([WRITTEN[claim.name] for claim in CLAIMS])
    assert claims_folder() == ROOT / "results" / "claims"


# ------------------------------------------------------------------------------------------------------- how it works
def claim(verdict="holds", setting="as stated", **changes) -> Claim:
    found = Evidence("It is 2.", 2.0, "at least 1", verdict, (1.5, 2.5), "bases", 5, 3, 0.5, 0.25, 100.0)
    fixed = {"records": (), "measure": lambda: found, "setting": setting}
    return Claim("made", ("Figure 99",), "Two is more than one.", "intro", "cell", "tests/x.py::y", **(fixed | changes))


@pytest.mark.parametrize(
    "verdict, setting, status",
    [
        ("holds", "as stated", "reproduced"),
        ("holds", "printed numbers", "re-read"),
        ("holds", "small models", "trend only"),
        ("contradicted", "as stated", "contradicted"),
        ("contradicted", "printed numbers", "contradicted"),
        ("contradicted", "small models", "trend only"),  # bad news of small models counts for as much as good news
        *(("inconclusive", setting, "inconclusive") for setting in SETTINGS),
    ],
)
def test_the_status_follows_from_evidence_and_setting(verdict, setting, status):
    assert claim(verdict, setting).entry()["status"] == status
    assert claim(measure=None).entry()["status"] == "not run"


def test_a_computation_needs_no_interval():
    assert decide("It is 2.", 2.0, "at least 1", True).holds
    assert decide("It is 2.", 2.0, "at least 3", False).verdict == "contradicted"


def test_a_file_is_written_once_and_again_only_when_the_evidence_changes(tmp_path):
    write_ledger([claim()], tmp_path)
    first = (tmp_path / "made.json").read_bytes()
    content = json.loads(first)
    content["stamps"]["computed"]["date"] = "2000-01-01"
    write_json(tmp_path / "made.json", content)
    write_ledger([claim()], tmp_path)
    assert json.loads((tmp_path / "made.json").read_text()) == content  # the same evidence keeps its stamp
    write_ledger([claim("contradicted")], tmp_path)
    assert json.loads((tmp_path / "made.json").read_text())["stamps"]["computed"]["date"] != "2000-01-01"
    write_ledger([], tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_page_names_number_spread_seeds_chapter_and_stamp():
    entry = claim().entry() | {"stamps": {"science/vit_grid": load_recorded("science/vit_grid")["stamp"]}}
    page = claims_page([entry, claim(measure=None, remark="Needs eight GPUs.").entry() | {"stamps": {}, "name": "no"}])
    for part in (
        "Figure 99",
        "It is 2.",
        "**Result for the claim:**",
        "between 1.5 and 2.5",
        "standard deviation 0.5 between bases, standard deviation 0.25 between seeds",
        "5 bases, 3 seeds each",
        "at least 1",
        "{doc}`intro`",
        "1.7 minutes",
    ):
        assert part in page, part
    assert load_recorded("science/vit_grid")["stamp"]["command"] in page and "Needs eight GPUs." in page
    assert "| **reproduced** | 1 |" in page and "| **not run** | 1 |" in page
