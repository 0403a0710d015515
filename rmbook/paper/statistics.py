"""How much a printed score can tell: intervals, the grid of possible means, repetition noise, paired comparisons.

Scores are in percent throughout, as tables print them. A score over `count` records is 100 k / count.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

MOST_PAIRS = 20  # all 2**pairs assignments of signs are enumerated


def wilson_interval(score: ArrayLike, count: ArrayLike, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's score interval of a proportion, the two roots of (s - p)^2 = z^2 p (1 - p) / count.

    Source: Wilson, Journal of the American Statistical Association 22, 1927. For a mean F1, whose records score between
    0 and 100, it is wide enough, too: no quantity in [0, 1] of mean p has a variance above p (1 - p).

    Args:
        score: s, in percent; broadcast against `count`.
        count: test records, at least 1.
        confidence: in (0, 1).

    Returns:
        both ends in percent, float64.

    Raises:
        ValueError: a score outside 0 to 100, a count below 1, a confidence outside (0, 1).
    """
    share, count = np.asarray(score, dtype=np.float64) / 100, np.asarray(count)
    if not ((share >= 0) & (share <= 1)).all():
        raise ValueError(f"score must be in percent, 0 to 100, got {score!r}.")
    if not (count >= 1).all() or not 0 < confidence < 1:
        raise ValueError(f"count must be at least 1 and confidence in (0, 1), got {count!r} and {confidence!r}.")
    z2 = stats.norm.ppf((1 + confidence) / 2) ** 2 / count
    middle = (share + z2 / 2) / (1 + z2)
    half = np.sqrt(z2 * share * (1 - share) + z2**2 / 4) / (1 + z2)
    return 100 * np.maximum(middle - half, 0), 100 * np.minimum(middle + half, 1)


def possible_mean(score: ArrayLike, count: int, runs: int = 1, decimals: int = 1) -> np.ndarray:
    """Whether a printed score can be the mean accuracy of `runs` runs over `count` records each.

    Such a mean is 100 k / (count * runs) for a whole k. Source: the GRIM test of Brown and Heathers, Social
    Psychological and Personality Science 8, 2017. A half may have been rounded up or down.

    Args:
        score: in percent, as printed; any shape.
        count: test records of one run.
        runs: of the mean.
        decimals: printed digits after the point.

    Returns:
        bool, the shape of `score`.

    Raises:
        ValueError: count or runs below 1.
    """
    if count < 1 or runs < 1:
        raise ValueError(f"count and runs must be at least 1, got {count!r} and {runs!r}.")
    score, total = np.asarray(score, dtype=np.float64), count * runs
    nearest = 100 * np.round(score * total / 100) / total
    return abs(nearest - score) <= 0.5 * 10.0**-decimals + 1e-9


def repetition_spread(series: ArrayLike) -> tuple[np.ndarray, float]:
    """Standard deviation of one score when all is repeated, from neighbours in series of scores.

    s^2 is half the mean square of the differences between neighbours, so a slow trend along a series hardly counts, and
    what it does count for makes s larger. Source: von Neumann, Annals of Mathematical Statistics 12, 1941.

    Args:
        series: (..., S, R), S independent series of R scores each, R at least 2.

    Returns:
        s of shape (...), and the degrees of freedom of s^2: those of the chi-square distribution with its mean and
        variance for normal scores without trend, S * 2 (R - 1)^2 / (3 R - 4).

    Raises:
        ValueError: another shape, or scores that are not finite.
    """
    series = np.asarray(series, dtype=np.float64)
    if series.ndim < 2 or series.shape[-1] < 2 or not np.isfinite(series).all():
        raise ValueError(f"series must be finite scores (..., S, R) with R at least 2, got the shape {series.shape}.")
    count, length = series.shape[-2:]
    spread = np.sqrt((np.diff(series) ** 2).mean((-2, -1)) / 2)
    return spread, count * 2 * (length - 1) ** 2 / (3 * length - 4)


@dataclass(frozen=True)
class PairedComparison:
    """One row of scores against another, paired over tasks.

    Attributes:
        mean: of the differences, in points.
        low, high: 95 % Student interval of it, for tasks drawn from a population of tasks.
        wins, losses: positive and negative differences.
        sign_p: two-sided sign test, ties left out.
        wilcoxon_p: two-sided signed-rank test, exact with ties; zeros left out.
    """

    mean: float
    low: float
    high: float
    wins: int
    losses: int
    sign_p: float
    wilcoxon_p: float


def compare_paired(differences: ArrayLike) -> PairedComparison:
    """Test whether paired differences have a preferred sign.

    Args:
        differences: (n,) in points, one a task; 2 to 20 of them.

    Raises:
        ValueError: another shape, or differences that are not finite.
    """
    differences = np.round(np.asarray(differences, dtype=np.float64), 9)  # 0.1 + 0.2 and 0.3 are a tie
    if differences.ndim != 1 or not 2 <= len(differences) <= MOST_PAIRS or not np.isfinite(differences).all():
        raise ValueError(f"differences must be 2 to {MOST_PAIRS} finite numbers, got {differences!r}.")
    mean, error = differences.mean(), stats.sem(differences)
    half = stats.t.ppf(0.975, len(differences) - 1) * error
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    sign_p = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    return PairedComparison(
        float(mean), float(mean - half), float(mean + half), wins, losses, float(sign_p), _signed_rank(differences)
    )


def _signed_rank(differences: np.ndarray) -> float:
    differences = differences[differences != 0]
    ranks = stats.rankdata(abs(differences))  # ties share their mean rank
    signs = 1 - 2 * (np.arange(2 ** len(ranks))[:, None] >> np.arange(len(ranks)) & 1)  # each assignment once
    return float((abs(signs @ ranks) >= abs(np.sign(differences) @ ranks) - 1e-9).mean())
