"""The page of the book that shows the ledger of claims; see `rmbook.evidence.claim`."""

from collections.abc import Sequence
from pathlib import Path

from rmbook.evidence.claim import COMMAND, STATUSES, VERDICTS
from rmbook.stamps import describe_stamp

PAGE = Path(__file__).resolve().parents[2] / "book" / "claims.md"
TOP = f"""(ch-claims)=
# What the paper claims, and what we found

This page lists every numbered figure, table and result of the paper {{cite:p}}`xu2024random`, and the main claims of
its text. Each entry names the chapter that shows it, the test of the code behind it, and the recorded evidence.
`{COMMAND}` writes this page from the recorded results: no measured number in it is typed in (only
the remarks are written by hand), and a test fails if the page and the results differ.

"""


def claims_page(entries: Sequence[dict]) -> str:
    """Return the ledger as MyST Markdown.

    Args:
        entries: as `rmbook.evidence.claim.write_ledger` returns them.
    """
    counts = {status: sum(entry["status"] == status for entry in entries) for status in STATUSES}
    lines = [TOP, "| Status | Claims | Meaning |", "|---|---|---|"]
    lines += [f"| **{status}** | {counts[status]} | {meaning} |" for status, meaning in STATUSES.items()]
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
        found = "Trend" if entry["status"] == "trend only" else "Result"
        lines += [f"**{found} {VERDICTS[evidence['verdict']]}:** {evidence['says']}", ""]
        lines += [f"Deciding value: {evidence['value']:.4g}{_spread(evidence)}. Required: {evidence['asked']}.", ""]
    if entry["remark"]:
        lines += [entry["remark"], ""]
    lines += [f"Chapter: {{doc}}`{entry['chapter']}`, cell `{entry['cell']}`. Test: `{entry['test']}`.", ""]
    if entry["stamps"]:
        lines += [":::{dropdown} Where the numbers come from"]
        for name, stamp in entry["stamps"].items():
            source = "computed when this page was written" if name == "computed" else f"`results/{name}.json`"
            lines.append(f"- {source}: {_line(stamp)}")
        if evidence["wall_seconds"]:
            lines.append(f"- all runs together: {evidence['wall_seconds'] / 60:.1f} minutes")
        lines += [":::", ""]
    return lines


def _spread(evidence: dict) -> str:
    seeds = f"{evidence['seeds']} seed{'s' * (evidence['seeds'] > 1)}"
    if evidence["interval"] is None:
        return f" ({seeds})" if evidence["seeds"] else ""
    where = f"{evidence['bases']} bases, {seeds} each" if evidence["unit"] == "bases" else f"{seeds} of one model"
    if None in evidence["interval"]:
        return f" ({where}: too few for an interval)"
    parts = [f"between {low:.3g} and {high:.3g}" for low, high in [evidence["interval"]]]
    names = {"between_bases": "between bases", "between_seeds": "between seeds"}
    parts += [f"standard deviation {evidence[n]:.2g} {name}" for n, name in names.items() if evidence[n] is not None]
    return f", {', '.join(parts)} ({where})"


def _line(stamp: dict) -> str:
    return describe_stamp({"stamp": stamp}).replace("made by: ", "made by: `") + "`"
