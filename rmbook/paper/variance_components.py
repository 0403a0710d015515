"""How much of a spread comes from one cause: one-way analysis of variance with random effects."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


@dataclass(frozen=True)
class VarianceComponents:
    """What `variance_components` finds; deviations in the unit of the scores.

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
