"""An explorer of a recorded sweep: a slider, a curve over learning rates for each of its values, and the spread."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd

from rmbook.widgets.page import Figure, rounded, table_html

Better = Literal["higher", "lower"] | None


class CurveExplorer(Figure):
    """Curves of measured quantities, one for each value of a slider, with a band for the spread.

    The line is the mean over bases of the means over seeds. The band reaches from the lowest to the highest base (the
    mean over its seeds); with one base, or without the column "base", from the lowest to the highest seed.

    Args:
        results: one row a run, with the columns `slider`, `x`, those of `metrics`, and "base" and "seed" if there are
            any. What has diverged or is not recorded is NaN or missing.
        metrics: columns that can be shown, the first one at first, and what is better in each: "higher", "lower", or
            None for no best point.
        slider, x: columns. Numbers rise along the slider; other values keep their order.
        first: the slider's value at first; the first one if None.
        title: what a screen reader calls the figure.
        source: where the numbers come from.

    Raises:
        ValueError: for columns that are not there, results without a number, or a first value that is not there.
    """

    KIND = "curve_explorer"

    def __init__(
        self,
        results: pd.DataFrame,
        metrics: Mapping[str, Better],
        *,
        slider: str = "density",
        x: str = "learning_rate",
        first: Any = None,
        title: str = "Results over learning rates",
        source: str = "",
    ):
        missing = [column for column in (slider, x, *metrics) if column not in results]
        if missing or not metrics:
            raise ValueError(f"results must have the columns of slider, x and metrics; missing: {missing or metrics}.")
        wrong = [better for better in metrics.values() if better not in ("higher", "lower", None)]
        if wrong:
            raise ValueError(f'what is better must be "higher", "lower" or None, got {wrong}.')
        results = results.replace([np.inf, -np.inf], np.nan)
        if not results[[*metrics]].notna().any().all():
            raise ValueError("results must hold at least one finite number of each metric.")
        values = list(dict.fromkeys(results[slider].dropna()))
        self.values = sorted(values) if pd.api.types.is_numeric_dtype(results[slider]) else values
        self.x = sorted(results[x].dropna().unique().tolist())
        if first is not None and first not in self.values:
            raise ValueError(f"first must be one of the slider's values {self.values}, got {first!r}.")
        self.first = self.values.index(first) if first is not None else 0
        self.metrics, self.title, self.source, self.names = dict(metrics), title, source, (slider, x)
        several = "base" in results and results["base"].nunique() > 1
        self.repeated = "base" if several else "seed" if "seed" in results else None
        keys = [slider, x] + ([self.repeated] if self.repeated else [])
        means = results.groupby(keys, sort=False)[[*metrics]].mean()
        self.repetitions = results[self.repeated].nunique() if self.repeated else 1
        index = pd.MultiIndex.from_product([self.values, self.x])
        grouped = means.groupby(level=[0, 1], sort=False)
        self.curves = {  # metric: (slider values, x values, 3), mean, lowest and highest
            name: np.stack(
                [getattr(grouped[name], part)().reindex(index).to_numpy() for part in ("mean", "min", "max")], axis=-1
            ).reshape(len(self.values), len(self.x), 3)
            for name in metrics
        }
        self._means = means.sort_index()

    def best(self, metric: str) -> pd.DataFrame:
        """Return the best x of each slider value: of the mean, and the lowest and highest among the repetitions.

        Returns:
            index: the slider's values; columns "best", "value", "low", "high", "best_from", "best_to".
        """
        better, rows = self.metrics[metric], {}
        sign = -1 if better == "lower" else 1
        for value, curve in zip(self.values, self.curves[metric], strict=True):
            if better is None or np.isnan(curve[:, 0]).all():
                continue
            place = int(np.nanargmax(sign * curve[:, 0]))
            own = sign * self._means.loc[value, metric]
            if self.repeated:
                own = own.unstack().dropna(axis=1, how="all").idxmax()
            ends = (own.min(), own.max()) if self.repeated else (self.x[place],) * 2
            rows[value] = [self.x[place], *curve[place], *ends]
        return pd.DataFrame.from_dict(
            rows, orient="index", columns=["best", "value", "low", "high", "best_from", "best_to"]
        )

    def _data(self) -> dict[str, Any]:
        metrics = []
        for name, better in self.metrics.items():
            best = self.best(name)
            ends = [[*best.loc[v, ["best_from", "best_to"]]] if v in best.index else None for v in self.values]
            curves = [[[rounded(number, 4) for number in point] for point in curve] for curve in self.curves[name]]
            metrics.append({"name": name, "better": better, "curves": curves, "ends": ends})
        spread = f"lowest to highest of {self.repetitions} {self.repeated}s" if self.repetitions > 1 else None
        plain = [value.item() if hasattr(value, "item") else value for value in self.values]
        return {
            "title": self.title,
            "slider": self.names[0].replace("_", " "),
            "x_name": self.names[1].replace("_", " "),
            "values": plain,
            "x": [rounded(value) for value in self.x],
            "metrics": metrics,
            "first": self.first,
            "spread": spread,
            "source": self.source,
        }

    def _table(self) -> str:
        # The best point of the first metric for each slider value.
        metric, (slider, x) = next(iter(self.metrics)), (name.replace("_", " ") for name in self.names)
        best = self.best(metric)
        rows = [[slider, f"best {x}", metric, "from", "to"]]
        for value, row in best.iterrows():
            rows.append([f"{value}", f"{row['best']:.3g}", *(f"{row[name]:.4g}" for name in ("value", "low", "high"))])
        if best.empty:
            rows = [[slider, f"first {x}", metric, f"last {x}", metric]]
            for value, curve in zip(self.values, self.curves[metric], strict=True):
                means = pd.Series(curve[:, 0], self.x).dropna()
                points = [(f"{place:g}", f"{mean:.4g}") for place, mean in means.items()]
                rows.append([f"{value}", *(points[0] + points[-1] if points else ["-"] * 4)])
        return table_html(f"{self.title}. With JavaScript, the curves can be moved through.", rows)

    def __repr__(self) -> str:
        return f"CurveExplorer({len(self.values)} values of {self.names[0]}, {len(self.x)} of {self.names[1]})"
