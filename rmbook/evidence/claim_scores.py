"""Evidence about scores, from tables of runs: what matches, what costs, and what more data or pretraining bring.

The same rules as in `rmbook.evidence.claim_evidence` hold.
"""

import pandas as pd

from rmbook.evidence.claim import Evidence
from rmbook.evidence.claim_evidence import MARGIN, best_scores, family_verdict, paired_evidence
from rmbook.evidence.grids import best_runs
from rmbook.evidence.inference import equivalence, estimate

SMALL = (0.01, 0.003, 0.001)  # densities at which random and structured masks are compared


def structure_costs(table: pd.DataFrame) -> Evidence:
    """Figure 5: test accuracy of random entries minus random columns, each at its best learning rate."""
    gaps = {density: estimate(gap) for density, gap in _behind_entries(table).items()}
    worst = min(gaps.values(), key=lambda gap: gap.mean)
    listed = ", ".join(f"{gap.mean:.1f} points at {density:g}" for density, gap in gaps.items())
    return paired_evidence(
        f"Columns are behind the same number of single entries: by {listed}. The smallest gap is {{value:.3g}}.",
        worst,
        "more than 0 points at every density of 0.01 and below, as the claim says; corrected by Holm's rule",
        family_verdict(gaps),
        table,
    )


def structure_falls_faster(table: pd.DataFrame) -> Evidence:
    """Figure 5: by how much the gap of `structure_costs` grows from density 0.01 to 0.001."""
    gaps = _behind_entries(table)
    found = estimate(gaps[0.001] - gaps[0.01])
    return paired_evidence(
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
    return paired_evidence(
        f"On pretrained weights a mask of density 0.01 reaches {listed}. The gap is "
        f"{gaps[min(gaps)].mean:.3g} points in the shorter runs and {{value:.3g}} in the longer ones.",
        gaps[last],
        f"more than {MARGIN:g} points (the margin of a match) in both, corrected by Holm's rule",
        family_verdict(gaps, MARGIN),
        table,
    )


def data_helps_full(table: pd.DataFrame) -> Evidence:
    """Table 3: how much more full fine-tuning gains from 50 to 1,297 examples than each other method does."""
    few, many = (_by_method(table.query("train_size == @size")) for size in (50, 1297))
    gains = many - few
    more = {method: estimate(gains["full"] - gains[method]) for method in gains if method != "full"}
    least = min(more.values(), key=lambda one: one.mean)
    listed = ", ".join(f"{gain:.1f} ({method})" for method, gain in gains.mean().items())
    return paired_evidence(
        f"From 50 to 1,297 examples the methods gain {listed} points: full fine-tuning {{value:+.3g}} more than the "
        "best of the others.",
        least,
        "more than 0 against each other method, as 'most' says; corrected by Holm's rule",
        family_verdict(more),
        table,
    )


def sparse_wins_with_few_data(table: pd.DataFrame) -> Evidence:
    """Section 1: parameter-efficient methods beat full fine-tuning when data are few."""
    table = table.query("train_size == 50")
    scores = _by_method(table)
    ahead = {method: estimate(scores[method] - scores["full"]) for method in scores if method != "full"}
    listed = ", ".join(f"{score:.1f} % ({method})" for method, score in scores.mean().items())
    best = max(ahead.values(), key=lambda one: one.mean)
    return paired_evidence(
        f"On 50 examples the methods reach {listed}. The best of the others minus full fine-tuning: "
        "{value:+.3g} points.",
        best,
        "more than 0 for one of these methods at least, corrected by Holm's rule for their number",
        family_verdict(ahead, wanted=any),
        table,
    )


def _by_method(table: pd.DataFrame) -> pd.DataFrame:
    # Test accuracies at the best rates; a column a method, masks by their density.
    names = table["method"].where(table["method"] != "mask", "density " + table["density"].map("{:g}".format))
    return best_scores(table.assign(method=names))


def masks_match(table: pd.DataFrame, density: float) -> Evidence:
    """Tables 1, 2 and 5, figure 1: full fine-tuning minus a mask, each at its best learning rate."""
    table = table.query("scale == 1.0 and (method == 'full' or density == @density)")
    scores = best_scores(table)
    behind = scores["full"] - scores["mask"]
    trained = table.query("density == @density")["ratio"].mean()
    return paired_evidence(
        f"Density {density:g} ({trained:.2%} of all parameters) reaches {scores['mask'].mean():.1f} % and full "
        f"fine-tuning {scores['full'].mean():.1f} %: the mask is {{value:.3g}} points behind.",
        estimate(behind, 0.9),
        f"within {MARGIN:g} points, by two one-sided tests (so the interval is one of 90 %)",
        equivalence(behind, MARGIN),
        table,
    )


def others_break(table: pd.DataFrame, rate: float = 1e-2) -> Evidence:
    """Section 4.2: at a rate that sparse masks bear, full fine-tuning fails. No rate is chosen: that would flatter."""
    table = table.query("scale == 1.0 and learning_rate == @rate and (method == 'full' or density == 0.01)")
    scores = table.pivot(index=["base", "seed"], columns="method", values="test_accuracy")
    found = estimate(scores["mask"] - scores["full"])
    return paired_evidence(
        f"At the learning rate {rate:g} a mask of density 0.01 reaches {scores['mask'].mean():.1f} %, and full "
        f"fine-tuning {scores['full'].mean():.1f} %: {{value:.3g}} points less.",
        found,
        f"more than {MARGIN:g} points less, the margin of a match",
        found.verdict(least=MARGIN),
        table,
    )
