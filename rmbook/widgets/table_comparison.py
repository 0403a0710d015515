"""Two rows of a table of scores side by side: every difference with its uncertainty, to be chosen on the page."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from rmbook.widgets.page import Figure, table_html

VERDICTS = ("cannot be told", "on these examples", "distinguishable")  # also in table_comparison.js
LEGEND = (
    "Thick bar: what repeating both rows on the same test examples would change (95 %). Thin bar: the same on other "
    "test examples, drawn for each row by itself. ○ the thick bar holds zero: cannot be told. ◐ only the thin bar "
    "holds zero: a difference on these examples. ● neither holds zero: distinguishable."
)


class TableComparison(Figure):
    """A choice of a model and of two rows of its scores, and what can be told of their differences.

    Two intervals belong to each difference of two scores a and b, in points: the inner one reaches t sqrt(2) s to each
    side, s the spread of one score under repetition; the outer one t sqrt(2 s^2 + a (100 - a) / n + b (100 - b) / n),
    as if the rows had been tested on separate examples. Rows that share their examples have less than the outer one.

    Args:
        scores: in percent; index (model, row), one column a task.
        spreads: s of each task, in points.
        counts: n, test examples of each task.
        quantile: t, Student's for the degrees of freedom of `spreads`.
        first: (model, row, row) that is shown at first.
        title: what a screen reader calls the figure.

    Raises:
        ValueError: tasks without a spread or a count, scores that are missing, a first choice that is not there.
    """

    KIND = "table_comparison"

    def __init__(
        self,
        scores: pd.DataFrame,
        spreads: Mapping[str, float],
        counts: Mapping[str, int],
        quantile: float,
        *,
        first: tuple[str, str, str],
        title: str = "Differences between two rows",
    ):
        missing = [task for task in scores.columns if task not in spreads or task not in counts]
        if missing or scores.isna().any(axis=None):
            raise ValueError(
                f"each task needs a spread and a count, each row all scores; without: {missing or scores}."
            )
        for row in first[1:]:
            if (first[0], row) not in scores.index:
                raise ValueError(f"first must name rows of scores, got {(first[0], row)!r}.")
        self.scores, self.first, self.title, self.quantile = scores, first, title, float(quantile)
        self.spreads = np.array([spreads[task] for task in scores.columns], dtype=np.float64)
        self.counts = np.array([counts[task] for task in scores.columns], dtype=np.float64)

    def compare(self, model: str, row: str, other: str) -> pd.DataFrame:
        """Row minus other: one line a task and one for the mean over tasks.

        Returns:
            columns "row", "other", "difference", "inner", "outer" (half widths, points) and "verdict".
        """
        one, two = (self.scores.loc[(model, name)].to_numpy() for name in (row, other))
        repetition = 2 * self.spreads**2
        examples = (one * (100 - one) + two * (100 - two)) / self.counts
        one, two = _with_mean(one), _with_mean(two)
        inner, outer = (self.quantile * np.sqrt(_with_error(part)) for part in (repetition, repetition + examples))
        difference = one - two
        verdict = np.where(abs(difference) <= inner, 0, np.where(abs(difference) <= outer, 1, 2))
        return pd.DataFrame(
            {"row": one, "other": two, "difference": difference, "inner": inner, "outer": outer,
             "verdict": np.array(VERDICTS)[verdict]},
            index=[*self.scores.columns, "mean"],
        )  # fmt: skip

    def _data(self) -> dict[str, Any]:
        rows: dict[str, dict[str, list[float]]] = {}
        for (model, row), values in self.scores.iterrows():
            rows.setdefault(model, {})[row] = values.tolist()
        return {"rows": rows, "tasks": list(self.scores.columns), "first": list(self.first), "title": self.title,
                "spreads": self.spreads.round(4).tolist(), "counts": self.counts.tolist(), "legend": LEGEND,
                "quantile": round(self.quantile, 4), "verdicts": VERDICTS}  # fmt: skip

    def _table(self) -> str:
        # The first choice.
        lines = [["task", *self.first[1:], "difference", "same examples", "other examples", "verdict"]]
        for task, line in self.compare(*self.first).iterrows():
            lines.append([task, f"{line['row']:.1f}", f"{line['other']:.1f}", f"{line['difference']:+.1f}",
                          f"±{line['inner']:.1f}", f"±{line['outer']:.1f}", line["verdict"]])  # fmt: skip
        return table_html(f"{self.title}: {self.first[0]}. With JavaScript, model and rows can be chosen.", lines)

    def __repr__(self) -> str:
        models = self.scores.index.get_level_values(0)
        return f"TableComparison({models.nunique()} models, {len(models)} rows, {self.scores.shape[1]} tasks)"


def student_quantile(degrees: float, confidence: float = 0.95) -> float:
    """Two-sided quantile of Student's distribution."""
    return float(stats.t.ppf((1 + confidence) / 2, degrees))


def _with_mean(scores: ArrayLike) -> np.ndarray:
    return np.append(scores, np.mean(scores))


def _with_error(variances: np.ndarray) -> np.ndarray:
    return np.append(variances, variances.sum() / len(variances) ** 2)  # of a mean of independent tasks
