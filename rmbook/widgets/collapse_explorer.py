"""An explorer of a power law: a slider for the exponent that is to lay curves on top of each other."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rmbook.widgets.page import Figure, rounded, table_html

POINTS = 50  # at which two curves are compared, evenly on the axis's logarithm


@dataclass(frozen=True)
class Curve:
    """A measured curve.

    Attributes:
        x: positive places, rising.
        y: what was measured there.
        factor: positive number; the explorer draws the curve over x * factor ** exponent.
    """

    x: Sequence[float]
    y: Sequence[float]
    factor: float


class CollapseExplorer(Figure):
    """Curves over x * factor ** exponent, with a slider for the exponent, and how far they are apart.

    Args:
        curves: at least two, by what the legend calls them; at most seven.
        exponents: what the slider can be set to.
        first: the exponent at first.
        slider: what the exponent is called.
        x, y: names of the axes; in `x`, {} stands for the exponent.
        title: what a screen reader calls the figure.
        source: where the numbers come from.

    Raises:
        ValueError: fewer than two curves or more than seven, one without two points, whose x does not rise or is not
            positive, or with a number that is not finite; or a first exponent that is not among the exponents.
    """

    KIND = "collapse_explorer"

    def __init__(
        self,
        curves: Mapping[str, Curve],
        *,
        exponents: Sequence[float],
        first: float,
        slider: str,
        x: str,
        y: str,
        title: str,
        source: str = "",
    ):
        if not 2 <= len(curves) <= 7:
            raise ValueError(f"curves must be two to seven, got {len(curves)}.")
        for name, curve in curves.items():
            places, values = np.asarray(curve.x, float), np.asarray(curve.y, float)
            right = len(places) == len(values) > 1 and np.isfinite(values).all() and np.isfinite(places).all()
            if not right or places[0] <= 0 or (np.diff(places) <= 0).any() or not 0 < curve.factor < np.inf:
                raise ValueError(
                    f"curve {name!r} must have two finite points at least, over positive x that rise, and a positive "
                    f"factor; got {curve}."
                )
        if first not in exponents:
            raise ValueError(f"first must be one of the exponents {list(exponents)}, got {first!r}.")
        self.curves, self.exponents, self.first = dict(curves), [float(a) for a in exponents], float(first)
        self.slider, self.names, self.title, self.source = slider, (x, y), title, source

    def apart(self, exponent: float) -> float:
        """Return how far the curves are apart: the root mean square of y's differences over all pairs of curves.

        Two curves are compared where both have been measured, evenly on the axis's logarithm, with straight lines
        between the points there. A pair that has no place in common is left out; NaN if none has.
        """
        moved = [(np.log(c.x) + exponent * np.log(c.factor), np.asarray(c.y, float)) for c in self.curves.values()]
        squares = []
        for (x, y), (other_x, other_y) in itertools.combinations(moved, 2):
            ends = max(x[0], other_x[0]), min(x[-1], other_x[-1])
            if ends[0] < ends[1]:
                places = np.linspace(*ends, POINTS)
                squares.append(((np.interp(places, x, y) - np.interp(places, other_x, other_y)) ** 2).mean())
        return float(np.sqrt(np.mean(squares))) if squares else float("nan")

    def best(self) -> float:
        """Return the exponent at which the curves are nearest to each other."""
        return min(self.exponents, key=lambda exponent: np.nan_to_num(self.apart(exponent), nan=np.inf))

    def _data(self) -> dict[str, Any]:
        curves = [
            {"name": name, "x": [*map(rounded, curve.x)], "y": [*map(rounded, curve.y)], "factor": float(curve.factor)}
            for name, curve in self.curves.items()
        ]
        return {
            "title": self.title,
            "slider": self.slider,
            "exponents": self.exponents,
            "first": self.exponents.index(self.first),
            "x": self.names[0],
            "y": self.names[1],
            "curves": curves,
            "points": POINTS,
            "source": self.source,
        }

    def _table(self) -> str:
        rows = [[self.slider, f"{self.names[1]}: curves apart"]]
        rows += [[f"{exponent:g}", f"{self.apart(exponent):.2g}"] for exponent in self.exponents]
        return table_html(f"{self.title}. With JavaScript, the exponent can be moved.", rows)

    def __repr__(self) -> str:
        return f"CollapseExplorer({len(self.curves)} curves, {len(self.exponents)} exponents)"
