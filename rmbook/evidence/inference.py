"""Intervals and verdicts for results that were measured on several pretrained models (bases) and seeds.

Masks and orders of the examples are drawn anew by each seed, but seeds of one base share its weights and its division
of the data. So a base is the unit: seeds are averaged first, and an interval is over the bases' means. Where there is
one base, an interval over its seeds says something of that one model, and `unit_of` says so.
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
    """A mean over bases (or over the seeds of one base), with its interval.

    Attributes:
        mean: of the units' means.
        low, high: ends of the interval, by Student's t with units - 1 degrees of freedom; nan with one unit.
        between_bases: standard deviation of the bases' means; nan with one base.
        between_seeds: standard deviation between seeds of one base, pooled; nan with one seed each.
        units: bases, or seeds of the one base.
        error: standard error of the mean; nan with one unit.
    """

    mean: float
    low: float
    high: float
    between_bases: float
    between_seeds: float
    units: int
    error: float

    def verdict(self, least: float = -np.inf, most: float = np.inf) -> str:
        """Return what the interval says of the claim that the mean is between `least` and `most`.

        Returns:
            "holds" if the whole interval is inside, "contradicted" if it is outside, else "inconclusive", as always
            with one unit.
        """
        if self.low >= least and self.high <= most:
            return "holds"
        return "contradicted" if self.high < least or self.low > most else "inconclusive"

    def p_above(self, least: float = 0.0) -> float:
        """Return the p-value of the hypothesis that the mean is at most `least`, by a one-sided t test."""
        if self.error == 0:
            return float(self.mean <= least)
        return float(stats.t.sf((self.mean - least) / self.error, self.units - 1)) if self.units > 1 else np.nan

    def __str__(self) -> str:
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"


def unit_of(table: pd.DataFrame) -> str:
    """Return what an interval of these runs is over: "bases", or "seeds" where there is one base."""
    return "bases" if table["base"].nunique() > 1 else "seeds"


def estimate(values: pd.Series, confidence: float = CONFIDENCE) -> Estimate:
    """Return the mean over bases of what was measured, such as a difference of two methods by base and seed.

    Args:
        values: indexed by "base" and "seed".
        confidence: of the interval.

    Raises:
        ValueError: no values, or one that is not finite.
    """
    values = values.astype(float)
    if not len(values) or not np.isfinite(values).all():
        raise ValueError(f"values must be finite numbers, at least one, got {values.tolist()}.")
    groups = values.groupby("base")
    means, counts = groups.mean(), groups.count()
    chosen = means if len(means) > 1 else values
    units, mean = len(chosen), float(chosen.mean())
    error = float(chosen.std(ddof=1)) / np.sqrt(units) if units > 1 else np.nan
    reach = error * stats.t.ppf((1 + confidence) / 2, units - 1) if units > 1 else np.nan
    freedom = int((counts - 1).sum())
    pooled = float((groups.var(ddof=1).fillna(0) * (counts - 1)).sum())
    between_seeds = np.sqrt(pooled / freedom) if freedom else np.nan
    between_bases = float(means.std(ddof=1)) if len(means) > 1 else np.nan
    return Estimate(mean, mean - reach, mean + reach, between_bases, float(between_seeds), units, error)


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
    """Return a statistic of a table of runs, and its bootstrap interval over bases (or the seeds of one base).

    Units are drawn with replacement, each with all its runs; with up to five, all draws are gone through, so that
    nothing is random. An interval from so few units is too short rather than too long.

    Args:
        table: of runs, with the columns "base" and "seed".
        statistic: such as the slope of the best rates; of a table with the same columns, in which a unit that was drawn
            twice stands twice, under numbers of its own.
        confidence: of the interval.

    Returns:
        The statistic of the table, and the ends of the interval; nan with one unit.
    """
    unit = unit_of(table).removesuffix("s")
    parts = [part for _, part in table.groupby(unit)]
    if len(parts) == 1:
        return float(statistic(table)), np.nan, np.nan
    draws = [*itertools.combinations_with_replacement(range(len(parts)), len(parts))] if len(parts) <= 5 else None
    weights = [_orders(draw) for draw in draws] if draws else np.ones(1000)
    draws = draws or np.random.default_rng(0).integers(len(parts), size=(1000, len(parts)))
    found = [statistic(pd.concat([parts[k].assign(**{unit: n}) for n, k in enumerate(draw)])) for draw in draws]
    tail = (1 - confidence) / 2
    low, high = (_quantile(np.array(found), np.array(weights), share) for share in (tail, 1 - tail))
    return float(statistic(table)), low, high


def _orders(draw: Sequence[int]) -> float:
    """Return how many ordered draws an unordered one stands for."""
    return math.factorial(len(draw)) / math.prod(map(math.factorial, Counter(draw).values()))


def _quantile(values: np.ndarray, weights: np.ndarray, share: float) -> float:
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][np.searchsorted(reached, share - 1e-12)])
