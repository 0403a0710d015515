"""Evidence for the paper's experiments: each function computes it from recorded grids, see `rmbook.evidence.grids`."""

import numpy as np
import pandas as pd

from rmbook.evidence.claim import Evidence
from rmbook.evidence.grids import best_cells, best_runs, load_runs
from rmbook.training.learning_rate import fit_power_law

MODELS = {"vit": "the tiny transformer", "minilm": "MiniLM"}
SMALL = (0.01, 0.003, 0.001)  # densities at which random and structured masks are compared


def hessian_falls(backbone: str, when: str) -> Evidence:
    """Figure 4a: the Hessian's norm at density 1 over that at 0.01, seed by seed."""
    table = load_runs("hessian" if backbone == "vit" else "hessian_minilm").query("method == 'mask'")
    wide = table.pivot(index="seed", columns="density", values=f"hessian_{when}")
    ratio = wide[1.0] / wide[0.01]
    least = 50 if when == "before" else 1
    return _over_seeds(
        f"On {MODELS[backbone]} the Hessian's norm {when} training is {{value:.3g}} times smaller at density 0.01 than "
        "at density 1.",
        ratio,
        f"at least {least} for each seed",
        ratio.min() >= least,
        table,
    )


def distance_rises(grid: str) -> Evidence:
    """Figure 4c: the distance at density 0.01 over that at density 1, each at its best learning rate."""
    table = load_runs(grid).query("scale == 1.0 and method == 'mask'")
    walks = [_at_best(table.query(f"density == {density}"))["distance"] for density in (0.01, 1.0)]
    ratio = walks[0] / walks[1]
    return _over_seeds(
        "At its best learning rate a mask of density 0.01 ends {value:.3g} times further from the pretrained weights "
        "than one of density 1.",
        ratio,
        "at least 3 for each seed",
        ratio.min() >= 3,
        table,
    )


def steps_make_up(density: float = 0.01, rate: float = 1e-3) -> Evidence:
    """Figure 4b: dev accuracy of a small learning rate after 100, 200, ..., 1,600 steps."""
    table = load_runs("vit_steps").query("density == @density and learning_rate == @rate")
    steps = (100, 200, 400, 800, 1600)
    curves = np.array([[curve[step // 25 - 1] for step in steps] for curve in table["curve"]])
    means, gain = curves.mean(0), pd.Series(curves[:, -1] - curves[:, 0])
    return _over_seeds(
        f"At the small learning rate of {rate:g} and density {density:g}, accuracy rises from {means[0]:.1f} % after "
        f"100 steps to {means[-1]:.1f} % after 1,600: {{value:.3g}} points.",
        gain,
        "rising at each doubling, by at least 35 points in all",
        bool((np.diff(means) > 0).all()) and gain.mean() >= 35,
        table,
    )


def structure_costs() -> Evidence:
    """Figure 5: test accuracy of random entries minus random columns, each at its best learning rate."""
    table = load_runs("vit_choices")
    gaps = {}
    for density in SMALL:
        entries, columns = (
            _at_best(table.query(f"density == {density} and choice == '{choice}'"))["test_accuracy"]
            for choice in ("entries", "columns")
        )
        gaps[density] = entries - columns
    means = {density: gap.mean() for density, gap in gaps.items()}
    worst = min(means, key=means.get)
    listed = ", ".join(f"{mean:.1f} at {density:g}" for density, mean in means.items())
    return _over_seeds(
        f"Columns are behind single entries of the same number by {listed} points. The smallest gap is {{value:.3g}}.",
        gaps[worst],
        "at least 4 points at every density of 0.01 and below",
        means[worst] >= 4,
        table.query("choice in ('entries', 'columns')"),
    )


def pretraining_matters() -> Evidence:
    """The expressiveness claim: pretrained minus newly initialised weights, masks of density 0.01, 200 steps."""
    table = load_runs("vit_starts").query("density == 0.01 and steps <= 200")
    scores = {s: _at_best(table.query(f"start == '{s}'"))["test_accuracy"] for s in ("pretrained", "shuffled", "new")}
    gap = scores["pretrained"] - scores["new"]
    return _over_seeds(
        f"With a mask of density 0.01 and 200 steps, pretrained weights reach {scores['pretrained'].mean():.1f} %, the "
        f"same weights shuffled {scores['shuffled'].mean():.1f} %, new ones {scores['new'].mean():.1f} %: a gap of "
        "{value:.3g} points.",
        gap,
        "at least 40 points",
        gap.mean() >= 40,
        table,
    )


def data_helps_full() -> Evidence:
    """Table 3: how much more full fine-tuning gains from 50 to 1,297 examples than a mask of density 0.01 does."""
    table = load_runs("vit_sizes")
    table["train_size"] = table["train_size"].fillna(400)
    scores = {
        (method, size): _at_best(table.query(f"{query} and train_size == {size}"))["test_accuracy"]
        for method, query in (("full", "method == 'full'"), ("mask", "density == 0.01"))
        for size in (50, 1297)
    }
    gains = {method: scores[method, 1297] - scores[method, 50] for method in ("full", "mask")}
    more = gains["full"] - gains["mask"]
    return _over_seeds(
        f"From 50 to 1,297 examples full fine-tuning gains {gains['full'].mean():.1f} points, a mask of density 0.01 "
        f"{gains['mask'].mean():.1f}: a difference of {{value:+.3g}}.",
        more,
        "more than two standard errors above 0",
        more.mean() > 2 * more.std() / len(more) ** 0.5,
        table.query("method == 'full' or density == 0.01"),
    )


def sparse_wins_with_few_data() -> Evidence:
    """Section 1: parameter-efficient methods beat full fine-tuning when data are few."""
    table = load_runs("vit_sizes").query("train_size == 50")
    full, mask = (_at_best(table.query(q))["test_accuracy"] for q in ("method == 'full'", "density == 0.1"))
    ahead = mask - full
    return _over_seeds(
        f"On 50 examples a mask of density 0.1 reaches {mask.mean():.1f} % and full fine-tuning {full.mean():.1f} %: "
        "a difference of {value:+.3g} points.",
        ahead,
        "more than two standard errors above 0",
        ahead.mean() > 2 * ahead.std() / len(ahead) ** 0.5,
        table.query("method == 'full' or density == 0.1"),
    )


def rates_rise(grid: str) -> Evidence:
    """Figures 3 and 6 to 8: the slope of the best learning rate against the density, on logarithmic axes."""
    table = load_runs(grid).query("scale == 1.0 and method == 'mask' and density >= 0.001")
    best = best_cells(table, ["density"])
    law = fit_power_law(best.index.to_numpy(), best["learning_rate"].to_numpy())
    low, high = best.index.max(), best.index.min()
    return Evidence(
        f"The best learning rate rises from {best.loc[low, 'learning_rate']:g} at density {low:g} to "
        f"{best.loc[high, 'learning_rate']:g} at density {high:g}: slope {law.slope:.2f} on logarithmic axes.",
        law.slope,
        "between -1.3 and -0.7",
        bool(-1.3 < law.slope < -0.7),
        None,
        int(best["runs"].min()),
        float(table["seconds"].sum()),
    )


def masks_match(grid: str, density: float) -> Evidence:
    """Tables 1, 2 and 5, figure 1: a mask against the better of full fine-tuning and LoRA, each at its best rate."""
    table = load_runs(grid).query("scale == 1.0")
    scores = {
        name: _at_best(table.query(query))["test_accuracy"]
        for name, query in (
            ("mask", f"density == {density}"),
            ("full", "method == 'full'"),
            ("LoRA", "method == 'lora'"),
        )
        if len(table.query(query))
    }
    rival = max((name for name in scores if name != "mask"), key=lambda name: scores[name].mean())
    behind = scores[rival] - scores["mask"]
    trained = table.query("density == @density")["ratio"].mean()
    return _over_seeds(
        f"Density {density:g} ({trained:.2%} of all parameters) reaches {scores['mask'].mean():.1f} %, "
        + " and ".join(f"{name} {score.mean():.1f} %" for name, score in scores.items() if name != "mask")
        + ": {value:.3g} points behind the better one.",
        behind,
        "at most 3 points behind",
        behind.mean() <= 3,
        table,
    )


def others_break(rate: float = 1e-2) -> Evidence:
    """Section 4.2: at the rates that sparse masks need, full fine-tuning fails."""
    table = load_runs("vit_grid")
    masked = table.query("density == 0.01 and learning_rate == @rate")["test_accuracy"]
    full = table.query("method == 'full'")
    worst = full[full["learning_rate"] == full["learning_rate"].max()].set_index("seed")["test_accuracy"]
    best = _at_best(full)["test_accuracy"]
    lost = best - worst
    return _over_seeds(
        f"At the learning rate {rate:g} a mask of density 0.01 reaches {masked.mean():.1f} %; full fine-tuning at "
        f"{full['learning_rate'].max():g} ends at {worst.mean():.1f} %, {{value:.3g}} points below its best.",
        lost,
        "at least 20 points below its best for each seed",
        lost.min() >= 20,
        table.query("method == 'full' or density == 0.01"),
    )


def _at_best(table: pd.DataFrame) -> pd.DataFrame:
    """Return the runs at the best learning rate, by seed."""
    return best_runs(table).set_index("seed").sort_index()


def _over_seeds(says: str, values: pd.Series, asked: str, holds: bool, runs: pd.DataFrame) -> Evidence:
    mean = float(values.mean())
    spread = float(values.std(ddof=1))
    return Evidence(
        says.format(value=mean), mean, asked, bool(holds), spread, len(values), float(runs["seconds"].sum())
    )
