"""An explorer of how far eigenvalues stray, and what three bounds allow: sliders for n, d, p, delta, the unit of X."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rmbook.theory.bounds import eigenvalue_deviation, matrix_bernstein, theorem_5_1, theorem_5_1_as_printed
from rmbook.theory.regression import ColumnMasks, gram_eigenvalues, sample_regression
from rmbook.widgets.page import Figure, rounded, table_html

CURVES = ("p λ₁ of the full problem", "measured", "matrix Bernstein", "Theorem 5.1 corrected", "Theorem 5.1 as printed")


class BoundsExplorer(Figure):
    """Deviations of masked eigenvalues against density, beside what the bounds of `rmbook.theory.bounds` allow.

    Features are uniform in [0, r]. All values are given in units of r^2, so that a curve which is free of slips stays
    where it is when r alone changes. What is measured, p lambda_1 and matrix Bernstein are computed at r = 1: they are
    proportional to r^2.

    Args:
        examples: choices of n.
        widths: choices of d.
        densities: choices of p, rising, in (0, 1).
        deltas: choices of the allowed probability of failure; at least 1 / masks, so that it can be measured.
        bounds: choices of r.
        masks: drawn at each density.
        first: the values (n, d, p, delta, r) at the start.

    Raises:
        ValueError: for a first choice that is not among the choices, or a delta that is too small to be measured.
    """

    KIND = "bounds_explorer"

    def __init__(
        self,
        examples: Sequence[int] = (4, 8, 16),
        widths: Sequence[int] = (1_000, 10_000, 100_000),
        densities: Sequence[float] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3),
        deltas: Sequence[float] = (0.5, 0.2, 0.05, 0.02),
        bounds: Sequence[float] = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0),
        *,
        masks: int = 100,
        first: tuple[int, int, float, float, float] = (8, 10_000, 0.1, 0.05, 1.0),
    ):
        self.choices: list[list[Any]] = [[*examples], [*widths], [*densities], [*deltas], [*bounds]]
        if min(deltas) < 1 / masks:
            raise ValueError(f"deltas must be at least 1 / masks = {1 / masks:g} to be measured, got {min(deltas):g}.")
        for value, choices in zip(first, self.choices, strict=True):
            if value not in choices:
                raise ValueError(f"first must hold one of each slider's values, got {value!r}, not among {choices}.")
        self.first, self.masks = first, masks
        self.values = np.empty((len(CURVES), *map(len, self.choices)))  # (curve, n, d, p, delta, r)
        delta = np.array(deltas)
        for i, n in enumerate(examples):
            for j, d in enumerate(widths):
                features, _, _ = sample_regression(n, d, seed=0)
                largest, _ = eigenvalue_deviation(features, ColumnMasks(d, densities, np.arange(masks)))
                whole = gram_eigenvalues(features, ColumnMasks(d, 1.0, 0))[0]
                here = self.values[:, i, j]  # (curve, p, delta, r), a view
                here[0] = np.multiply.outer(densities, np.full((len(deltas), len(bounds)), whole))
                here[1] = np.quantile(largest, 1 - delta, axis=1).T[..., None]
                here[2] = matrix_bernstein(features, densities, delta)[..., None]
                for curve, theorem in ((3, theorem_5_1), (4, theorem_5_1_as_printed)):
                    here[curve] = np.stack([theorem(n, d, r, delta) / r**2 for r in bounds], axis=-1)

    def at(self, n: int, d: int, p: float, delta: float, r: float) -> dict[str, float]:
        """Return the value of each curve for one choice of all sliders, in units of r^2."""
        place = tuple(choices.index(value) for choices, value in zip(self.choices, (n, d, p, delta, r), strict=True))
        return dict(zip(CURVES, (float(values[place]) for values in self.values), strict=True))

    def _data(self) -> dict[str, Any]:
        ours, theorems = self.values[:3, ..., 0], self.values[3:, :, :, 0]  # no r; no p
        return {
            "choices": self.choices,
            "first": [choices.index(value) for choices, value in zip(self.choices, self.first, strict=True)],
            "curves": CURVES,
            "masks": self.masks,
            "ours": [[rounded(x, 4) for x in values.ravel()] for values in ours],
            "theorems": [[rounded(x, 4) for x in values.ravel()] for values in theorems],
        }

    def _table(self) -> str:
        # The first choice at every density.
        n, d, _, delta, r = self.first
        lines = [["density", *CURVES]]
        for p in self.choices[2]:
            lines.append([f"{p:g}", *(f"{value:,.0f}" for value in self.at(n, d, p, delta, r).values())])
        caption = f"Deviations for n = {n}, d = {d:,}, δ = {delta:g}, in units of r². With JavaScript, all move."
        return table_html(caption, lines)

    def __repr__(self) -> str:
        return f"BoundsExplorer({' x '.join(str(len(choices)) for choices in self.choices)} values)"
