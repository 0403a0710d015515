"""Statistics of printed scores: intervals, possible means, noise of repetition, pairs, parts of a variance.

Scores are in percent, as tables print them. A score over `count` examples is 100 k / count.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

MOST_PAIRS = 20  # all 2**pairs assignments of signs are enumerated


def wilson_interval(score: ArrayLike, count: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's 95 % interval of a proportion, the two roots of (s - p)^2 = z^2 p (1 - p) / count.

    Source: Wilson, Journal of the American Statistical Association 22, 1927. For a mean F1, whose examples score
    between 0 and 100, it is wide enough, too: no quantity in [0, 1] of mean p has a variance above p (1 - p).

    Args:
        score: s, in percent; broadcast against `count`.
        count: test examples, at least 1.

    Returns:
        both ends in percent, float64.

    Raises:
        ValueError: a score outside 0 to 100, or a count below 1.
    """
    share, count = np.asarray(score, dtype=np.float64) / 100, np.asarray(count)
    if not ((share >= 0) & (share <= 1)).all():
        raise ValueError(f"score must be in percent, 0 to 100, got {score!r}.")
    if not (count >= 1).all():
        raise ValueError(f"count must be at least 1, got {count!r}.")
    low, high = proportion_confint(share * count, count, method="wilson")
    return 100 * low, 100 * high


def possible_mean(score: ArrayLike, count: int, runs: int = 1) -> np.ndarray:
    """Tell whether a printed score can be the mean accuracy of `runs` runs over `count` examples each.

    Such a mean is 100 k / (count * runs) for a whole k. Source: the GRIM test of Brown and Heathers, Social
    Psychological and Personality Science 8, 2017. A half may have been rounded up or down.

    Args:
        score: in percent, as printed, with one decimal; any shape.
        count: test examples of one run.
        runs: of the mean.

    Returns:
        bool, the shape of `score`.

    Raises:
        ValueError: count or runs below 1.
    """
    if count < 1 or runs < 1:
        raise ValueError(f"count and runs must be at least 1, got {count!r} and {runs!r}.")
    score, total = np.asarray(score, dtype=np.float64), count * runs
    nearest = 100 * np.round(score * total / 100) / total
    return abs(nearest - score) <= 0.05 + 1e-9


def repetition_spread(series: ArrayLike) -> tuple[np.ndarray, float]:
    """Standard deviation of one score under repetition, estimated from neighbours in series of scores.

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


@dataclass(frozen=True)
class VarianceComponents:
    """Result of `variance_components`; deviations in the unit of the scores.

    Attributes:
        between: standard deviation of the groups' own levels; 0 if the groups differ less than repeats would make them.
        within: standard deviation of repeats in a group.
        share: between^2 / (between^2 + within^2), the intraclass correlation: how well one repeat predicts another.
        low, high: interval of the share, exact for normal levels and repeats; cut at 0.
        p_value: of the F test that all groups have one level.
    """

    between: float
    within: float
    share: float
    low: float
    high: float
    p_value: float


def variance_components(scores: ArrayLike, confidence: float = 0.95) -> VarianceComponents:
    """Split the variance of repeated scores into that between groups and that within them.

    Model: score = mean + level of the group + rest, both normal and independent. With the mean squares B between and W
    within, F = B / W, and (1 + k share / (1 - share)) times the quantiles of the F distribution are F's own; from them
    the interval of the share. Source: Searle, Casella and McCulloch, Variance Components, 1992, chapter 3.

    Args:
        scores: (n, k), n groups of k repeats, both at least 2.
        confidence: of the interval, in (0, 1).

    Raises:
        ValueError: another shape, scores that are not finite, a confidence outside (0, 1).
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2 or min(scores.shape) < 2 or not np.isfinite(scores).all():
        raise ValueError(f"scores must be finite, (groups, repeats) with at least 2 of each, got {scores.shape}.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence!r}.")
    groups, repeats = scores.shape
    degrees = groups - 1, groups * (repeats - 1)
    means = scores.mean(1, keepdims=True)
    among = repeats * means.var(ddof=1)
    inside = ((scores - means) ** 2).sum() / degrees[1]
    if inside == 0:
        raise ValueError("the repeats of every group are equal, so there is nothing to compare the groups with.")
    ratio, tail = among / inside, (1 - confidence) / 2

    def share(f: float) -> float:
        return float(max(f - 1, 0) / (max(f, 1) + repeats - 1))

    return VarianceComponents(
        between=float(np.sqrt(max(among - inside, 0) / repeats)),
        within=float(np.sqrt(inside)),
        share=share(ratio),
        low=share(ratio / stats.f.isf(tail, *degrees)),
        high=share(ratio / stats.f.ppf(tail, *degrees)),
        p_value=float(stats.f.sf(ratio, *degrees)),
    )


def _signed_rank(differences: np.ndarray) -> float:
    differences = differences[differences != 0]
    ranks = stats.rankdata(abs(differences))  # ties share their mean rank
    signs = 1 - 2 * (np.arange(2 ** len(ranks))[:, None] >> np.arange(len(ranks)) & 1)  # each assignment once
    return float((abs(signs @ ranks) >= abs(np.sign(differences) @ ranks) - 1e-9).mean())
