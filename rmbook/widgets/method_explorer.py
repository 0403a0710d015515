"""One measure of many runs at a time, in order, with one run to compare the others with: both chosen on the page."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from rmbook.widgets.page import Figure, rounded, table_html


class MethodExplorer(Figure):
    """A list of measures and a list of runs to choose from, over a chart with a line a run.

    Args:
        table: numbers; index: names of runs, without repeats; a column a measure. NaN where there is none.
        measures: shown as they stand here: column to its words with the unit.
        groups: one a run; the runs of the chosen run's group have filled marks.
        halves: half widths of an interval, by measure, one a run; drawn as lines.
        logarithmic: measures, all positive, on a logarithmic axis.
        first: measure and run that are shown at first.
        title: what a screen reader calls the figure.

    Raises:
        ValueError: names that are not there, repeat, or a measure that a logarithmic axis cannot show.
    """

    KIND = "method_explorer"

    def __init__(
        self,
        table: pd.DataFrame,
        measures: Mapping[str, str],
        groups: pd.Series,
        *,
        first: tuple[str, str],
        halves: Mapping[str, pd.Series] | None = None,
        logarithmic: tuple[str, ...] = (),
        title: str = "Runs by one measure",
    ):
        halves = dict(halves or {})
        if missing := [name for name in (*measures, *halves, *logarithmic) if name not in table.columns]:
            raise ValueError(f"measures must be columns of the table, got {missing[0]!r}.")
        if not table.index.is_unique or first[0] not in measures or first[1] not in table.index:
            raise ValueError(f"first must name a measure and one of the runs, each once, got {first!r}.")
        if wrong := [name for name in logarithmic if not (table[name].dropna() > 0).all()]:
            raise ValueError(f"a logarithmic axis shows positive numbers only: {wrong[0]!r} has others.")
        self.table, self.measures, self.first, self.title = table[list(measures)], dict(measures), first, title
        self.groups = groups.reindex(table.index).astype(str)
        self.halves = {name: half.reindex(table.index) for name, half in halves.items()}
        self.logarithmic = logarithmic

    def _data(self) -> dict[str, Any]:
        return {
            "title": self.title, "first": list(self.first), "measures": self.measures, "runs": list(self.table.index),
            "groups": list(self.groups), "logarithmic": list(self.logarithmic),
            "values": {name: [*map(rounded, self.table[name])] for name in self.measures},
            "halves": {name: [*map(rounded, half)] for name, half in self.halves.items()},
        }  # fmt: skip

    def _table(self) -> str:
        measure = self.first[0]
        values = self.table[measure].dropna().sort_values(ascending=False)
        rows = [["run", self.measures[measure]], *([run, f"{value:.4g}"] for run, value in values.items())]
        return table_html(f"{self.title}. With JavaScript, measure and run can be chosen.", rows)

    def __repr__(self) -> str:
        return f"MethodExplorer({len(self.table)} runs, {len(self.measures)} measures)"
