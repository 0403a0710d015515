"""Evidence for the paper's experiments, from tables of runs as `rmbook.evidence.grids.load_runs` gives them.

Each function takes its world as an argument; tests/evidence/test_claims_experiments.py hands in worlds that contradict
it. Thresholds have reasons that do not come from what was measured: the claim's own direction, what the theory of
section 5 predicts, or a margin that was stated beforehand.
"""

import numpy as np
import pandas as pd

from rmbook.evidence.claim import Evidence
from rmbook.evidence.grids import best_cells, best_runs
from rmbook.evidence.inference import Estimate, equivalence, estimate, holm, over_bases, unit_of
from rmbook.training.learning_rate import fit_power_law

MARGIN = 2.0  # points of accuracy within which two methods match: the paper calls gaps of up to about two a match
SMALL = (0.01, 0.003, 0.001)  # densities at which random and structured masks are compared
DOUBLINGS = (100, 200, 400, 800, 1600)  # steps
EPOCH = 25  # steps of an epoch of the tiny transformer's runs


def hessian_falls(table: pd.DataFrame, when: str) -> Evidence:
    """Figure 4a: the Hessian's norm at density 1 over that at 0.01, paired by base and seed."""
    norms = _wide(table.query("method == 'mask'"), f"hessian_{when}")
    found = estimate(np.log(norms[1.0] / norms[0.01]))
    return _evidence(
        f"The Hessian's norm {when} training is {{value:.3g}} times smaller at density 0.01 than at density 1.",
        found,
        "at least 10 times; the theory of linear regression gives 100",
        found.verdict(least=np.log(10)),
        table,
        np.exp,
    )


def distance_rises(table: pd.DataFrame) -> Evidence:
    """Figure 4c: the distance at density 0.01 over that at density 1, each at its best learning rate."""
    plain = table.query("scale == 1.0 and method == 'mask' and density in (0.01, 1.0)")
    walks = _wide(best_runs(plain, ["density"]), "distance")
    found = estimate(np.log(walks[0.01] / walks[1.0]))
    return _evidence(
        "At its best learning rate a mask of density 0.01 ends {value:.3g} times as far from the pretrained weights "
        "as one of density 1.",
        found,
        "more than 1 time, as the claim says",
        found.verdict(least=1e-9),
        plain,
        np.exp,
    )


def steps_make_up(table: pd.DataFrame, density: float = 0.01, rate: float = 1e-3) -> Evidence:
    """Figure 4b: dev accuracy of a small learning rate after 100, 200, ..., 1,600 steps."""
    table = table.query("density == @density and learning_rate == @rate").set_index(["base", "seed"])
    curves = pd.DataFrame({steps: table["curve"].str[steps // EPOCH - 1] for steps in DOUBLINGS})
    gains = curves.diff(axis=1).dropna(axis=1)
    whole = estimate(curves[1600] - curves[100])
    return _evidence(
        f"At the small learning rate of {rate:g} and density {density:g}, accuracy rises from {curves[100].mean():.1f} "
        f"% after 100 steps to {curves[1600].mean():.1f} % after 1,600: {{value:.3g}} points.",
        whole,
        "a rise at each doubling, as the claim says 'monotonically'; the four tests are corrected by Holm's rule",
        _family({steps: estimate(gains[steps]) for steps in gains}),
        table.reset_index(),
    )


def structure_costs(table: pd.DataFrame) -> Evidence:
    """Figure 5: test accuracy of random entries minus random columns, each at its best learning rate."""
    gaps = {density: estimate(gap) for density, gap in _behind_entries(table).items()}
    worst = min(gaps.values(), key=lambda gap: gap.mean)
    listed = ", ".join(f"{gap.mean:.1f} points at {density:g}" for density, gap in gaps.items())
    return _evidence(
        f"Columns are behind the same number of single entries: by {listed}. The smallest gap is {{value:.3g}}.",
        worst,
        "more than 0 points at every density of 0.01 and below, as the claim says; corrected by Holm's rule",
        _family(gaps),
        table,
    )


def structure_falls_faster(table: pd.DataFrame) -> Evidence:
    """Figure 5: by how much the gap of `structure_costs` grows from density 0.01 to 0.001."""
    gaps = _behind_entries(table)
    found = estimate(gaps[0.001] - gaps[0.01])
    return _evidence(
        f"Columns are behind single entries by {gaps[0.01].mean():.1f} points at density 0.01 and by "
        f"{gaps[0.001].mean():.1f} at 0.001: a change of {{value:+.3g}}.",
        found,
        "more than 0, as the claim says",
        found.verdict(least=1e-9),
        table,
    )


def _behind_entries(table: pd.DataFrame) -> dict[float, pd.Series]:
    table = table.query("choice in ('entries', 'columns') and density in @SMALL")
    best = best_runs(table, ["choice", "density"]).pivot(
        index=["base", "seed"], columns=["choice", "density"], values="test_accuracy"
    )
    return {density: best["entries", density] - best["columns", density] for density in SMALL}


def pretraining_matters(table: pd.DataFrame) -> Evidence:
    """The expressiveness claim: pretrained minus newly initialised weights, masks of density 0.01."""
    table = table.query("density == 0.01")
    best = best_runs(table, ["start", "steps"]).pivot(
        index=["base", "seed"], columns=["start", "steps"], values="test_accuracy"
    )
    gaps = {
        steps: estimate((best["pretrained", steps] - best["new", steps]).dropna())
        for steps in sorted(table["steps"].unique())
    }
    last = max(gaps)
    means = best.mean()
    listed = " and ".join(
        f"{means['pretrained', steps]:.1f} % after {steps:.0f} steps ({means['new', steps]:.1f} % on new weights)"
        for steps in gaps
    )
    return _evidence(
        f"On pretrained weights a mask of density 0.01 reaches {listed}. The gap is "
        f"{gaps[min(gaps)].mean:.3g} points in the shorter runs and {{value:.3g}} in the longer ones.",
        gaps[last],
        f"more than {MARGIN:g} points (the margin of a match) in both, corrected by Holm's rule",
        _family(gaps, MARGIN),
        table,
    )


def data_helps_full(table: pd.DataFrame) -> Evidence:
    """Table 3: how much more full fine-tuning gains from 50 to 1,297 examples than a mask of density 0.01 does."""
    table = table.query("(method == 'full' or density == 0.01) and train_size in (50, 1297)")
    best = best_runs(table, ["method", "train_size"]).pivot(
        index=["base", "seed"], columns=["method", "train_size"], values="test_accuracy"
    )
    gains = {method: best[method, 1297] - best[method, 50] for method in ("full", "mask")}
    found = estimate(gains["full"] - gains["mask"])
    return _evidence(
        f"From 50 to 1,297 examples full fine-tuning gains {gains['full'].mean():.1f} points and a mask of density "
        f"0.01 gains {gains['mask'].mean():.1f}: a difference of {{value:+.3g}}.",
        found,
        "more than 0, as the claim says",
        found.verdict(least=1e-9),
        table,
    )


def sparse_wins_with_few_data(table: pd.DataFrame) -> Evidence:
    """Section 1: parameter-efficient methods beat full fine-tuning when data are few."""
    table = table.query("train_size == 50 and (method == 'full' or density == 0.1)")
    scores = _scores(table)
    found = estimate(scores["mask"] - scores["full"])
    return _evidence(
        f"On 50 examples a mask of density 0.1 reaches {scores['mask'].mean():.1f} % and full fine-tuning "
        f"{scores['full'].mean():.1f} %: a difference of {{value:+.3g}} points.",
        found,
        "more than 0, as the claim says",
        found.verdict(least=1e-9),
        table,
    )


def rate_slope(table: pd.DataFrame) -> tuple[float, float, float]:
    """Return the slope of the best learning rate against the density, on logarithmic axes, over all densities.

    Returns:
        The slope of the bases' middle rates, and the ends of its bootstrap interval; see `over_bases`.
    """

    def slope(runs: pd.DataFrame) -> float:
        rates = runs.groupby("density")["learning_rate"].median()
        return fit_power_law(rates.index.to_numpy(), rates.to_numpy()).slope

    if unit_of(table) == "bases":  # the best rates of a base stay what they are, whichever others are drawn
        return over_bases(best_runs(table, ["density"]), slope)
    return over_bases(table, lambda runs: slope(best_runs(runs, ["density"])))


def rates_rise(table: pd.DataFrame) -> Evidence:
    """Figures 3 and 6 to 8: `rate_slope` of the masks."""
    table = table.query("scale == 1.0 and method == 'mask'")
    best = best_cells(table, ["density"])
    slope, low, high = rate_slope(table)
    densest, sparsest = best.index.max(), best.index.min()
    found = Estimate(slope, low, high, np.nan, np.nan, 0, np.nan)
    return _evidence(
        f"The best learning rate rises from {best.loc[densest, 'learning_rate']:g} at density {densest:g} to "
        f"{best.loc[sparsest, 'learning_rate']:g} at density {sparsest:g}: slope {{value:.2f}} on logarithmic axes.",
        found,
        "below -0.5, which is nearer to the law's -1 than to 0 (no relation)",
        found.verdict(most=-0.5),
        table,
    )


def masks_match(table: pd.DataFrame, density: float) -> Evidence:
    """Tables 1, 2 and 5, figure 1: full fine-tuning minus a mask, each at its best learning rate."""
    table = table.query("scale == 1.0 and (method == 'full' or density == @density)")
    scores = _scores(table)
    behind = scores["full"] - scores["mask"]
    trained = table.query("density == @density")["ratio"].mean()
    return _evidence(
        f"Density {density:g} ({trained:.2%} of all parameters) reaches {scores['mask'].mean():.1f} % and full "
        f"fine-tuning {scores['full'].mean():.1f} %: the mask is {{value:.3g}} points behind.",
        estimate(behind, 0.9),
        f"within {MARGIN:g} points, by two one-sided tests (so this is a 90 % interval)",
        equivalence(behind, MARGIN),
        table,
    )


def others_break(table: pd.DataFrame, rate: float = 1e-2) -> Evidence:
    """Section 4.2: at the rates that sparse masks need, full fine-tuning fails."""
    table = table.query("scale == 1.0 and (method == 'full' or (density == 0.01 and learning_rate == @rate))")
    full, mask = table.query("method == 'full'"), table.query("method == 'mask'")
    best, spoilt = (
        runs.set_index(["base", "seed"])["test_accuracy"]
        for runs in (best_runs(full), full.query("learning_rate == @rate"))
    )
    found = estimate(best - spoilt)
    return _evidence(
        f"At the learning rate {rate:g} a mask of density 0.01 reaches {mask['test_accuracy'].mean():.1f} %; full "
        f"fine-tuning ends at {spoilt.mean():.1f} %, {{value:.3g}} points below its best.",
        found,
        f"at least {5 * MARGIN:g} points below its best, five times the margin of a match",
        found.verdict(least=5 * MARGIN),
        table,
    )


def _wide(table: pd.DataFrame, values: str) -> pd.DataFrame:
    return table.pivot(index=["base", "seed"], columns="density", values=values)


def _scores(table: pd.DataFrame) -> pd.DataFrame:
    return best_runs(table, ["method"]).pivot(index=["base", "seed"], columns="method", values="test_accuracy")


def _family(found: dict[float, Estimate], least: float = 0.0) -> str:
    """Return the verdict on several means that are all claimed to be above `least`, by Holm's rule."""
    shifted = {key: one.p_above(least) for key, one in found.items()}
    if all(holm(shifted).values()):
        return "holds"
    against = {key: 1 - p for key, p in shifted.items()}
    return "contradicted" if any(holm(against).values()) else "inconclusive"


def _evidence(
    says: str, found: Estimate, asked: str, verdict: str, runs: pd.DataFrame, scale=lambda value: value
) -> Evidence:
    """Return evidence; `scale` turns the estimate's logarithms back into ratios."""
    value, low, high = (float(scale(number)) for number in (found.mean, found.low, found.high))
    logarithmic = scale is np.exp
    return Evidence(
        says.format(value=value),
        value,
        asked,
        verdict,
        (low, high),
        unit_of(runs),
        runs["base"].nunique(),
        runs.groupby("base")["seed"].nunique().min().item(),
        None if logarithmic else found.between_bases,
        None if logarithmic else found.between_seeds,
        float(runs["seconds"].sum()),
    )
