"""The page of the book that shows the ledger of claims; see `rmbook.claims`."""

from collections.abc import Sequence
from pathlib import Path

from rmbook.claims import COMMAND, STATUSES
from rmbook.results import describe_stamp

PAGE = Path(__file__).resolve().parent.parent / "book" / "claims.md"
TOP = f"""(ch-claims)=
# What the paper claims, and what we found

Every numbered figure, table and result of the paper {{cite:p}}`xu2024random`, and the main claims of its text. Each
leads to the chapter where it is shown, to the test that covers the code behind it, and to the recorded evidence. The
page is written by `{COMMAND}` from the recorded results; no number in it is typed in, and a test fails when it and the
results differ.

"""


def claims_page(entries: Sequence[dict]) -> str:
    """The ledger as MyST Markdown.

    Args:
        entries: as `rmbook.claims.write_ledger` returns them.
    """
    counts = {status: sum(entry["status"] == status for entry in entries) for status in STATUSES}
    lines = [TOP, "| Status | Claims | Meaning |", "|---|---|---|"]
    lines += [f"| {_status(status)} | {counts[status]} | {meaning} |" for status, meaning in STATUSES.items()]
    for status in STATUSES:
        chosen = [entry for entry in entries if entry["status"] == status]
        if chosen:
            lines += ["", f"## {status.capitalize()}", ""]
            lines += [line for entry in chosen for line in _entry(entry)]
    return "\n".join([*lines, "", "```{bibliography}", ":filter: docname in docnames", "```", ""])


def _entry(entry: dict) -> list[str]:
    sources = ", ".join(entry["sources"])
    lines = [f"(claim-{entry['name']})=", f"### {sources}: {entry['statement']}", ""]
    evidence = entry["evidence"]
    if evidence:
        seeds = f"; {evidence['seeds']} seeds" if evidence["seeds"] else ""
        spread = f", standard deviation {evidence['spread']:.3g}" if evidence["spread"] is not None else ""
        lines += [f"**Found:** {evidence['says']}", ""]
        lines += [f"Decided by {evidence['value']:.4g}{spread}{seeds}; asked for: {evidence['asked']}.", ""]
    if entry["remark"]:
        lines += [entry["remark"], ""]
    lines += [f"Chapter: {{doc}}`{entry['chapter']}`. Test: `{entry['test']}`.", ""]
    if entry["stamps"]:
        wall = evidence["wall_seconds"]
        lines += [":::{dropdown} Where the numbers come from"]
        lines += [
            f"- {'computed from the theory' if n == 'computed' else f'`results/{n}.json`'}: {_line(s)}"
            for n, s in entry["stamps"].items()
        ]
        lines += [
            f"- all runs together: {wall / 60:.0f} minutes"
            if wall >= 90
            else f"- all runs together: {wall:.0f} seconds"
        ] * bool(wall)
        lines += [":::", ""]
    return lines


def _line(stamp: dict) -> str:
    return describe_stamp({"stamp": stamp}).replace("made by: ", "made by: `") + "`"


def _status(status: str) -> str:
    return f"**{status}**"
