"""The one rule for the best learning rate in this package: reports, records, claims and `--halving` all call it.

Each run scores by its best epoch, the one with the lowest dev loss. Scores are averaged over seeds.

1. A learning rate at which a seed diverged, or has no dev loss for another reason, is not chosen.
2. Of the others, the one with the highest mean dev accuracy is the best.
3. On a tie, and where dev accuracy has no meaning (tasks that are trained on written answers), the lowest mean dev loss
   decides; if that ties too, the smaller learning rate.

Test scores have no say. The caller leaves out rates whose seeds are not all finished.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

Score = tuple[float | None, float | None]  # dev accuracy as a share, and dev loss, of a run or as a mean over seeds
Rate = TypeVar("Rate", float, str)  # or another key that can be sorted
Mean = tuple[float | None, float]
DIVERGED: Mean = (None, math.inf)
DIGITS = 12  # sums of thirds in another order differ in the last bit, and are a tie all the same


def rank_rates(scores: Mapping[Rate, Sequence[Score]]) -> list[Rate]:
    """Return the learning rates, best first; those that are not to be chosen come last.

    Args:
        scores: one score a seed for each rate (or for other keys that can be sorted). The accuracy is None in tasks
            that know none. `DIVERGED`, or a loss that is None or not finite, is a seed that diverged.
    """
    means = {rate: mean_score(seeds) for rate, seeds in scores.items()}
    accurate = all(accuracy is not None for accuracy, loss in means.values() if math.isfinite(loss))

    def order(rate: Rate) -> tuple:
        accuracy, loss = means[rate]
        if not math.isfinite(loss):
            return 1, 0.0, 0.0, rate
        return 0, -round(accuracy, DIGITS) if accurate and accuracy is not None else 0.0, round(loss, DIGITS), rate

    return sorted(means, key=order)


def best_rate(scores: Mapping[float, Sequence[Score]]) -> float | None:
    """Return the best learning rate, or None if none can be chosen; `scores` as for `rank_rates`."""
    ranked = rank_rates(scores)
    return ranked[0] if ranked and math.isfinite(mean_score(scores[ranked[0]])[1]) else None


def mean_score(seeds: Sequence[Score]) -> Mean:
    """Return the mean dev accuracy and dev loss over seeds; `DIVERGED` if a seed diverged or there is none."""
    losses = [math.nan if loss is None else loss for _, loss in seeds]
    if not losses or not all(map(math.isfinite, losses)):
        return DIVERGED
    known = [accuracy for accuracy, _ in seeds if accuracy is not None and math.isfinite(accuracy)]
    return sum(known) / len(seeds) if len(known) == len(seeds) else None, sum(losses) / len(seeds)


def edge(rate: float, tried: Sequence[float]) -> str:
    """Return where a rate lies among those that were tried: "lowest", "highest", "only one", or "" inside of them.

    At an end, a better rate may lie beyond what was tried.
    """
    low, high = min(tried), max(tried)
    if low == high:
        return "only one"
    return "lowest" if rate == low else "highest" if rate == high else ""
