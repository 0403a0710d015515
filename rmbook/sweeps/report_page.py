"""A report as text: a table for the terminal, and a page of the book in MyST Markdown.

The page depends on the sweep's results alone: no time of day, no path of the machine that writes it.
"""

import re
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from rmbook.paper.tables import load_paper_table
from rmbook.stamps import describe_machine
from rmbook.sweeps.table import method_label
from rmbook.sweeps.verdicts import LEAST_SEEDS, VERDICTS

HEADER = ("task", "method", "best lr", "test", "seeds", "runs", "paper", "difference", "verdict")
MEANINGS = {
    "agrees": "the difference is within two standard errors; that is no proof of equality",
    "above": "better than the paper by more than two standard errors",
    "below": "worse than the paper by more than two standard errors",
    "too few seeds": f"fewer than the paper's {LEAST_SEEDS}: their spread says too little",
    "not comparable": "not the paper's model or settings, or not finished; the last tables say why",
}
RULES = Path(__file__).with_suffix(".md").read_text("utf-8").strip()  # the same on every page


def text_report(table: pd.DataFrame) -> str:
    """Return the report in plain text, aligned columns under the name of each model.

    Args:
        table: from `rmbook.sweeps.verdicts.compare`.
    """
    parts = []
    for model, rows in _models(table):
        cells = [[*HEADER, "why"], *((*_row(row), _why(row)) for _, row in rows.iterrows())]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
        parts.append("\n".join([_title(model, rows), *lines]))
    return "\n\n".join([*parts, f"verdicts: {_counted(table)}"])


def page(table: pd.DataFrame, stamps: Sequence[dict], name: str, command: str) -> str:
    """Return a page of the book.

    Args:
        table: from `rmbook.sweeps.verdicts.compare`.
        stamps: the results' stamps, from `rmbook.sweeps.report.read_runs`.
        name: name of the sweep.
        command: the command that makes the page.
    """
    runs, finished = int(table["runs"].sum()), int(table["finished"].sum())
    parts = [f"# Sweep {_plain(name)} beside the paper"]
    diverged, incomplete = int(table["diverged"].sum()), int((table["missing"] != "").sum())
    parts.append(
        f"{finished} of {runs} runs are finished, {diverged} of them by divergence; {incomplete} of {len(table)} cells "
        "are incomplete."
    )
    counts = Counter(table["verdict"])
    parts += [RULES, _markdown(("verdict", "cells", "meaning"), [(v, str(counts[v]), MEANINGS[v]) for v in VERDICTS])]
    for model, rows in _models(table):
        parts += [f"## {_plain(_title(model, rows))}", *_grids(rows)]
    parts += ["## Every cell", "Scores are percentages, with the standard deviation over seeds."]
    for model, rows in _models(table):
        cells = [(*_row(row), _why(row)) for _, row in rows.iterrows()]
        parts += [f"### {_plain(_title(model, rows))}: cells", _markdown((*HEADER, "why"), cells)]
    parts += ["## Where the numbers come from", *_stamp(stamps, name, command)]
    return "\n\n".join(parts) + "\n"


def _grids(rows: pd.DataFrame) -> list[str]:
    """Return scores, differences and learning rates in the paper's layout: a row a method, a column a task."""
    tasks = [task for task in _paper_order("task") if task in set(rows["task"])]
    labels = list(dict.fromkeys(rows.apply(_method, axis=1)))
    found = {(_method(row), row["task"]): row for _, row in rows.iterrows()}

    def grid(cell) -> str:
        lines = [[label, *(cell(found[label, t]) if (label, t) in found else "" for t in tasks)] for label in labels]
        return _markdown(("method", *tasks), lines)

    parts = ["Test scores, in parentheses the paper's:", grid(_score_beside)]
    if rows["paper"].notna().any():
        parts += ["Differences from the paper in points, and the verdicts:", grid(_verdict)]
    said = "Best learning rates, in parentheses the paper's. At an end of the grid, a better rate may lie outside:"
    return [*parts, said, grid(_rate_beside)]


def _row(row: pd.Series) -> tuple[str, ...]:
    diverged = f", {row['diverged']} diverged" if row["diverged"] else ""
    difference = _number(row["difference"], "+.1f")
    if difference and pd.notna(row["tolerance"]):
        difference += f" (2 errors: {row['tolerance']:.1f})"
    verdict = row["verdict"] + (", incomplete" if row["missing"] else "")
    return (
        row["task"],
        _method(row),
        _rate(row),
        _score(row),
        str(row["seeds"]),
        f"{row['finished']}/{row['runs']}{diverged}",
        _number(row["paper"], ".1f"),
        difference,
        verdict,
    )


def _why(row: pd.Series) -> str:
    reason, missing = row["reason"], row["missing"]
    return reason if missing in reason else "; ".join(filter(None, [reason, missing]))


def _score(row: pd.Series) -> str:
    spread = f" ± {row['deviation']:.1f}" if pd.notna(row["deviation"]) else ""
    return f"{row['score']:.1f}{spread}" if pd.notna(row["score"]) else ""


def _score_beside(row: pd.Series) -> str:
    beside = f"({row['paper']:.1f})" if pd.notna(row["paper"]) else ""
    return _words(_score(row), beside, "incomplete" if row["missing"] else "")


def _verdict(row: pd.Series) -> str:
    return _words(_number(row["difference"], "+.1f"), row["verdict"])


def _rate(row: pd.Series) -> str:
    edge = {"": "", "only one": " (only one)"}.get(row["edge"], f" ({row['edge']} of the grid)")
    tied = f" ({row['ties']} rates tie)" if row["ties"] > 1 else ""
    return _number(row["learning_rate"], "g") + edge + tied


def _rate_beside(row: pd.Series) -> str:
    paper = row["paper_learning_rate"]
    return _words(_number(row["learning_rate"], "g"), row["edge"], f"({paper:g})" if pd.notna(paper) else "")


def _method(row: pd.Series) -> str:
    return ", ".join(filter(None, [method_label(row), row["extra"]]))


def _models(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Return the rows of each model, in the paper's order of methods and tasks."""
    methods, tasks = _paper_order("method"), _paper_order("task")
    order = pd.DataFrame({"model": table["model"], "extra": table["extra"]})
    order["method"] = table["method"].map({name: place for place, name in enumerate(methods)}).fillna(len(methods))
    order["share"] = -table["ratio"].fillna(table["density"]).fillna(2)
    order["task"] = table["task"].map({name: place for place, name in enumerate(tasks)})
    places = order.sort_values(["model", "method", "share", "extra", "task"], kind="stable").index
    return list(table.loc[places].groupby("model", sort=False))


def _paper_order(column: str) -> list[str]:
    return list(pd.concat([load_paper_table(5), load_paper_table(2)])[column].unique())


def _title(model: str, rows: pd.DataFrame) -> str:
    paper = rows["paper_model"].iloc[0]
    return f"{model} as {paper}" if paper else model


def _counted(table: pd.DataFrame) -> str:
    counts = Counter(table["verdict"])
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])


def _stamp(stamps: Sequence[dict], name: str, command: str) -> list[str]:
    """Say when, where and by what code the results were made."""
    if not stamps:
        return ["No run is finished."]
    dates = sorted({str(stamp.get("date")) for stamp in stamps})
    machines = Counter(describe_machine(stamp.get("hardware") or {}) for stamp in stamps)
    versions = Counter(", ".join(f"{k} {v}" for k, v in stamp.get("versions", {}).items()) for stamp in stamps)
    commits = Counter(str(stamp.get("commit")) for stamp in stamps)
    lines = [("date", dates[0] + (f" to {dates[-1]}" if len(dates) > 1 else ""))]
    for title, counts in (("hardware", machines), ("versions", versions), ("commit", commits)):
        lines += [(title, f"{text} ({number} runs)") for text, number in sorted(counts.items())]
    lines += [("each run", f"rmbook train --config {shlex.quote(name)}/runs/RUN/config.json"), ("this page", command)]
    lines = [(title, _code(text) if title in ("each run", "this page") else _plain(text)) for title, text in lines]
    return [_markdown(("of the runs", ""), lines, plain=False)]


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]], plain: bool = True) -> str:
    lines = [header, ["---"] * len(header), *([_plain(cell) if plain else cell for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """Return text that Markdown and MyST leave as it is: no emphasis, links, mathematics, substitutions or columns."""
    return re.sub(r"([\\`*_{}\[\]<>|$~&#])", r"\\\1", " ".join(str(text).split()))


def _code(text: str) -> str:
    """Return a command as code, also within a table: two hyphens stay two, and line breaks are written as escapes."""
    text = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if "`" in text else ""
    return fence + space + text.replace("|", "\\|") + space + fence


def _number(value: float, form: str) -> str:
    return format(value, form) if pd.notna(value) else ""


def _words(*parts: str) -> str:
    return " ".join(filter(None, parts))
