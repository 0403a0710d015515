"""Intervals and verdicts for results that were measured on several pretrained models (bases) and seeds.

Masks and orders of the examples are drawn anew by each seed, but seeds of one base share its weights and its division
of the data. So a base is the unit: seeds are averaged first, and an interval is over the bases' means.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over bases, with its interval.

    Attributes:
        mean: of the bases' means.
        low, high: ends of the interval, by Student's t with bases - 1 degrees of freedom; nan on one base.
        between_bases: standard deviation of the bases' means; nan on one base.
        between_seeds: standard deviation between seeds of one base, pooled; nan with one seed each.
        bases, runs: how many.
        p_value: of the hypothesis that the mean is 0, two-sided; nan on one base.
    """

    mean: float
    low: float
    high: float
    between_bases: float
    between_seeds: float
    bases: int
    runs: int
    p_value: float

    def verdict(self, least: float = -np.inf, most: float = np.inf) -> str:
        """Return what the interval says of the claim that the mean is between `least` and `most`.

        Returns:
            "holds" if the whole interval is inside, "contradicted" if it is outside, else "inconclusive": so always on
            one base.
        """
        if self.low >= least and self.high <= most:
            return "holds"
        return "contradicted" if self.high < least or self.low > most else "inconclusive"

    def __str__(self) -> str:
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"


def estimate(values: pd.Series, confidence: float = CONFIDENCE) -> Estimate:
    """Return the mean over bases of what was measured, such as a difference of two methods by base and seed.

    Args:
        values: indexed by "base" and, where there are several, "seed".
        confidence: of the interval.

    Raises:
        ValueError: no values, or one that is not finite.
    """
    if not len(values) or not np.isfinite(values.astype(float)).all():
        raise ValueError(f"values must be finite numbers, at least one, got {values.tolist()}.")
    groups = values.astype(float).groupby("base")
    means, counts = groups.mean(), groups.count()
    bases, seeds_left = len(means), int((counts - 1).sum())
    pooled = float((groups.var(ddof=1).fillna(0) * (counts - 1)).sum())
    spread = float(means.std(ddof=1)) if bases > 1 else np.nan
    error = spread / np.sqrt(bases)
    reach = error * stats.t.ppf((1 + confidence) / 2, bases - 1) if bases > 1 else np.nan
    mean = float(means.mean())
    exact = 0.0 if mean else 1.0  # of values without any spread
    p_value = exact if error == 0 else 2 * stats.t.sf(abs(mean) / error, bases - 1) if bases > 1 else np.nan
    within = np.sqrt(pooled / seeds_left) if seeds_left else np.nan
    return Estimate(mean, mean - reach, mean + reach, spread, within, bases, len(values), float(p_value))


def equivalence(values: pd.Series, margin: float, level: float = 0.05) -> str:
    """Return whether a mean difference is within a margin of 0, by two one-sided t tests over bases.

    Args:
        values: differences, as for `estimate`.
        margin: that was stated before the measurement.
        level: of each test; the interval of confidence 1 - 2 * level is inside the margin if both reject.

    Returns:
        "holds", "contradicted" (that interval is outside) or "inconclusive".
    """
    return estimate(values, 1 - 2 * level).verdict(-margin, margin)


def holm(p_values: dict[str, float], level: float = 0.05) -> dict[str, bool]:
    """Return which hypotheses of a family are rejected, by Holm's correction; nan is not."""
    tested = {name: p for name, p in p_values.items() if not np.isnan(p)}
    rejected = multipletests(list(tested.values()), level, "holm")[0] if tested else []
    found = dict(zip(tested, map(bool, rejected), strict=True))
    return {name: found.get(name, False) for name in p_values}


def over_bases(
    table: pd.DataFrame, statistic: Callable[[pd.DataFrame], float], confidence: float = CONFIDENCE
) -> tuple[float, float, float]:
    """Return a statistic of a table of runs, and its bootstrap interval over bases.

    Bases are drawn with replacement, each with all its runs. With up to five all draws are gone through, so that
    nothing is random. An interval from so few bases is too short, rather than too long.

    Args:
        table: of runs, with the column "base".
        statistic: such as the slope of the best rates; of a table with the same columns, where a base that was drawn
            twice stands twice, under numbers of its own.
        confidence: of the interval.

    Returns:
        The statistic of the table, and the ends of the interval.
    """
    parts = [part for _, part in table.groupby("base")]
    draws = itertools.combinations_with_replacement(range(len(parts)), len(parts))
    if len(parts) > 5:
        random = np.random.default_rng(0)
        draws = [sorted(random.integers(len(parts), size=len(parts))) for _ in range(1000)]
    found, weights = [], []
    for draw in draws:
        found.append(statistic(pd.concat([parts[k].assign(base=place) for place, k in enumerate(draw)])))
        weights.append(_orders(draw) if len(parts) <= 5 else 1.0)
    tail = (1 - confidence) / 2
    low, high = (_quantile(np.array(found), np.array(weights), q) for q in (tail, 1 - tail))
    return float(statistic(table)), low, high


def _orders(draw: Sequence[int]) -> float:
    """Return how many ordered draws an unordered one stands for."""
    return math.factorial(len(draw)) / math.prod(map(math.factorial, Counter(draw).values()))


def _quantile(values: np.ndarray, weights: np.ndarray, share: float) -> float:
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][np.searchsorted(reached, share - 1e-12)])
