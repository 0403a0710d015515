"""The ledger of the paper's claims: what each says, what was measured here, and whether it held.

A claim's evidence is computed from recorded results (or, for the theory, at once), so that it cannot drift from them:
`rmbook claims` writes results/claims/*.json and the page book/claims.md, and a test does the same and compares. On that
page only the remarks are written by hand.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rmbook.evidence.recording import load_recorded, recorded_path
from rmbook.files import write_json
from rmbook.stamps import stamp

COMMAND = "rmbook claims"
SETTINGS = {
    "as stated": "the claim itself was tested",
    "printed numbers": "computed from the paper's printed numbers, not from runs of ours",
    "small models": "tested on models and data smaller than the paper's",
}
STATUSES = {
    "reproduced": "The claim itself was tested here, at its own scale, and it held.",
    "re-read": "The paper's printed numbers support it; nothing was run here.",
    "trend only": "Smaller models and data than the paper's show a clear trend, for the claim or against it.",
    "inconclusive": "The interval of our measurement allows both the claim and its opposite.",
    "contradicted": "Our measurement, at the claim's own scale, excludes it.",
    "not run": "It needs hardware or weights that we did not have; nothing was measured.",
}
VERDICTS = {
    "holds": "for the claim",
    "contradicted": "against the claim",
    "inconclusive": "neither for nor against the claim",
}


@dataclass(frozen=True)
class Evidence:
    """A measured number, and what was asked of it.

    Attributes:
        says: one sentence with the number, for readers.
        value: the number that decides.
        asked: the condition on it, and why this one, for readers. It was set before the measurement.
        verdict: a key of `VERDICTS`.
        interval: its 95 % interval, or None where nothing is drawn.
        unit: what the interval is over: "bases" (pretrained models) or "seeds" (of the one model); "" without one.
        bases, seeds: how many pretrained models, and runs with other seeds on each; 0 where nothing is drawn.
        between_bases, between_seeds: standard deviations, or None.
        wall_seconds: of all runs behind it; 0 where they take no time to speak of.
    """

    says: str
    value: float
    asked: str
    verdict: str
    interval: tuple[float, float] | None = None
    unit: str = ""
    bases: int = 0
    seeds: int = 0
    between_bases: float | None = None
    between_seeds: float | None = None
    wall_seconds: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether the claim held."""
        return self.verdict == "holds"


def decide(says: str, value: float, asked: str, holds: bool, seeds: int = 0) -> Evidence:
    """Return evidence that needs no interval: a computation, or so many draws that their spread is nothing."""
    return Evidence(says, value, asked, "holds" if holds else "contradicted", seeds=seeds)


@dataclass(frozen=True)
class Claim:
    """A claim of the paper.

    Attributes:
        name: the name of its file.
        sources: where the paper has it: "Figure 4a", "Table 1", "Theorem 5.1".
        statement: what it says.
        chapter: where a reader of the book sees it; the file's name without ending.
        cell: id of the cell there that asserts it, or that shows the paper's own numbers.
        test: "tests/FILE.py::NAME", which covers the code behind it.
        setting: a key of `SETTINGS`; None if it was not run.
        records: names of the recorded results that the evidence is computed from.
        measure: computes the evidence; None if it was not run.
        remark: what a reader should know.
    """

    name: str
    sources: tuple[str, ...]
    statement: str
    chapter: str
    cell: str
    test: str
    setting: str | None = None
    records: tuple[str, ...] = ()
    measure: Callable[[], Evidence] | None = None
    remark: str = ""

    def status(self, evidence: Evidence | None) -> str:
        """Return a key of `STATUSES`: small models show no more than a trend, for good news and bad alike."""
        if evidence is None:
            return "not run"
        if evidence.verdict == "inconclusive":
            return "inconclusive"
        if self.setting == "small models":
            return "trend only"
        held = "re-read" if self.setting == "printed numbers" else "reproduced"
        return held if evidence.holds else "contradicted"

    def entry(self) -> dict:
        """Return all that the claim's file holds but the stamps."""
        evidence = self.measure() if self.measure else None
        content = {
            "name": self.name,
            "sources": list(self.sources),
            "statement": self.statement,
            "status": self.status(evidence),
            "evidence": None if evidence is None else _rounded(asdict(evidence)),
            "setting": self.setting,
            "chapter": self.chapter,
            "cell": self.cell,
            "test": self.test,
            "remark": self.remark,
        }
        return content

    def stamps(self) -> dict[str, dict]:
        """Return the recorded results' stamps by their names; one of now, where the evidence is computed at once."""
        if self.measure is None:
            return {}
        return {name: load_recorded(name)["stamp"] for name in self.records} or {"computed": stamp(COMMAND)}


def _rounded(evidence: dict) -> dict:
    """Round to six digits: more would differ between processors. What is not known (nan) is null."""

    def short(value):
        if isinstance(value, tuple):
            return [short(part) for part in value]
        return (float(f"{value:.6g}") if math.isfinite(value) else None) if isinstance(value, float) else value

    return {name: short(value) for name, value in evidence.items()}


def claims_folder() -> Path:
    """Return the folder of the ledger's files."""
    return recorded_path("claims/x").parent


def read_ledger() -> dict[str, dict]:
    """Return the ledger as it is written, by claim."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(claims_folder().glob("*.json"))}


def write_ledger(claims: Sequence[Claim], folder: Path | None = None) -> list[dict]:
    """Compute all evidence and write one file a claim; a file whose content has not changed keeps its stamps.

    Returns:
        What is in the files now, in the order of the claims.
    """
    folder, written = folder or claims_folder(), []
    folder.mkdir(parents=True, exist_ok=True)
    for claim in claims:
        path, entry = folder / f"{claim.name}.json", claim.entry()
        before = json.loads(path.read_text()) if path.exists() else {}
        kept = before.get("stamps", {})
        stamps = kept if entry == {n: v for n, v in before.items() if n != "stamps"} and "computed" in kept else None
        written.append(entry | {"stamps": claim.stamps() if stamps is None else stamps})
        if written[-1] != before:
            write_json(path, written[-1])
    names = {claim.name for claim in claims}
    for path in folder.glob("*.json"):
        if path.stem not in names:
            path.unlink()
    return written
