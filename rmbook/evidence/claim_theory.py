"""Evidence for the paper's theory, by simulation, and for what its tables say, from the printed numbers."""

import math
import tempfile
from pathlib import Path

import numpy as np
from scipy.stats import binom
from torch import nn

from rmbook.adapters.adapter_file import save_adapter
from rmbook.engine.masking import apply_random_mask
from rmbook.evidence.claim import Evidence
from rmbook.paper.tables import load_paper_table
from rmbook.theory.bounds import eigenvalue_deviation, theorem_5_1, theorem_5_1_as_printed
from rmbook.theory.descent import closed_form
from rmbook.theory.limit import expected_squared_norm, limit_point
from rmbook.theory.regression import ColumnMasks, gram_eigenvalues, largest_stable_rate, masked_svd, sample_regression
from rmbook.training.learning_rate import fit_power_law

MODELS = ("OPT-125m", "OPT-1.3b", "OPT-13b")


def eigenvalues_follow_density() -> Evidence:
    """Section 5: the largest eigenvalue of the masked Hessian against the density."""
    features, _, _ = sample_regression(8, 20_000, seed=0)
    densities = np.geomspace(0.003, 1, 11)
    top = np.median(gram_eigenvalues(features, ColumnMasks(20_000, densities, np.arange(20)))[..., 0], axis=1)
    slope = float(np.polyfit(np.log(densities), np.log(top), 1)[0])
    says = f"The largest eigenvalue falls like the density to the power {slope:.3f}, over 20 masks each."
    return Evidence(says, slope, "between 0.95 and 1.05", 0.95 < slope < 1.05, None, 20)


def corrected_theorem_holds(delta: float = 0.05) -> Evidence:
    """Theorem 5.1 with its second term corrected: the share of masks within the bound."""
    n, d = 8, 10_000
    features, _, _ = sample_regression(n, d, seed=0)
    deviations, _ = eigenvalue_deviation(features, ColumnMasks(d, [0.001, 0.01, 0.1, 0.5], np.arange(200)))
    bound = float(theorem_5_1(n, d, 1.0, delta))
    share = float((deviations <= bound).mean())
    quantile = float(np.quantile(deviations, 1 - delta))
    says = (
        f"{share:.0%} of 800 masks of four densities are within the bound of {bound:.0f}; 95 % of them deviate by less "
        f"than {quantile:.0f}. So it is true, and too wide to say anything at this size."
    )
    return Evidence(says, share, f"at least {1 - delta:.0%}", share >= 1 - delta, None, 200)


def printed_theorem_fails(delta: float = 1e-9) -> Evidence:
    """Theorem 5.1 as printed: the exact probability of a larger deviation where it can be computed."""
    d = 10_000
    bound = float(theorem_5_1_as_printed(1, d, 1.0, delta))
    exact = 2 * float(binom.sf(d // 2 + math.floor(bound), d, 0.5))  # a binomial variable, further than that from d / 2
    says = (
        f"For n = 1, d = 10,000, entries of 1, p = 1/2 and δ = {delta:g} the printed bound is passed with the exact "
        f"probability {exact:.2g}, {exact / delta:.0f} times what it allows."
    )
    return Evidence(says, exact / delta, "at most 1 times δ", exact <= delta)


def border_is_sharp() -> Evidence:
    """Proposition 5.2: the error in the top direction after 2,000 steps at 0.99 and 1.01 times 2n / lambda_1."""
    features, targets, _ = sample_regression(8, 2000, seed=0, noise=0.1)
    mask = ColumnMasks(2000, densities=0.05, seeds=0)
    start = np.random.default_rng(0).standard_normal(2000)
    border, limit = largest_stable_rate(features, mask), limit_point(features, targets, mask, start)
    top = masked_svd(features, mask.columns(()))[2][:, 0]

    def error(factor: float, step: int) -> float:
        point = closed_form(features, targets, mask, factor * border, step, start)
        return float(abs((point - limit)[mask.columns(())] @ top))

    below, above = (error(factor, 2000) / error(factor, 0) for factor in (0.99, 1.01))
    says = (
        f"In 2,000 steps at 0.99 of the border the error falls below {max(below, 1e-12):.0g} of itself, at 1.01 it "
        f"grows to {above:.0g} times that."
    )
    return Evidence(says, 0.99, "falls below the border and grows above it", below < 1e-6 and above > 1e6)


def distance_bound_holds() -> Evidence:
    """Proposition 5.3: the expected squared norm of the limit point over its lower bound, for 600 masks."""
    features, _, weights = sample_regression(8, 2000, seed=0, noise=0.1)
    masks = ColumnMasks(2000, [0.01, 0.1, 1.0], np.arange(200))
    signal, spread = expected_squared_norm(features, weights, 0.1, masks)
    eigenvalues = gram_eigenvalues(features, masks)
    kept = eigenvalues > 1e-9 * eigenvalues[..., :1]
    bound = (0.1**2 / np.where(kept, eigenvalues, np.inf)).sum(-1)
    least = float(((signal + spread) / bound).min())
    median = np.median(signal + spread, axis=1)
    says = (
        f"The expected squared norm is at least {least:.2f} times the bound for all of 600 masks; its median rises "
        f"{median[0] / median[-1]:.0f} times from density 1 to 0.01."
    )
    return Evidence(says, least, "at least 1 for every mask", least >= 1 - 1e-9, None, 200)


def generating_function_is_bounded() -> Evidence:
    """Lemma A.1: the exact moment generating function against its first bound, over 19 densities and 60 arguments."""
    features, _, _ = sample_regression(8, 2000, seed=0)
    a = ((features.T @ np.ones(8)) ** 2) / 8  # (z_j' u)^2 for the unit vector u = (1, ..., 1) / sqrt(8)
    share = 0.0
    for p in np.linspace(0.05, 0.95, 19):
        for t in np.geomspace(1e-4, 1, 60):
            exact = np.log(p * np.exp(t * (1 - p) * a) + (1 - p) * np.exp(-t * p * a)).sum()
            share = max(share, float(exact / (t**2 / 8 * (a**2).sum())))
    says = f"The exact logarithm is at most {share:.3f} times its bound."
    return Evidence(says, share, "at most 1", share <= 1 + 1e-9)


def slopes_of(number: int) -> Evidence:
    """Tables 6 and 9: slopes of the printed best learning rates against the ratio, without WSC."""
    table = load_paper_table(number).query("task not in ('WSC', 'Avg')")
    slopes = {
        model: fit_power_law(rows["ratio"], rows["learning_rate"]).slope for model, rows in table.groupby("model")
    }
    says = "Slopes of the printed rates on logarithmic axes: " + ", ".join(f"{m} {slopes[m]:.2f}" for m in MODELS) + "."
    flattest = max(slopes.values())
    return Evidence(says, flattest, "below -0.5 for each model", flattest < -0.5)


def printed_averages(low: float, high: float) -> Evidence:
    """Section 4.2: what the printed averages of OPT-13b lose from one ratio to a sparser one."""
    table = load_paper_table(5).query("method == 'random_masking' and task == 'Avg'")
    wide = table.pivot(index="model", columns="ratio", values="score")
    lost = (wide[high] - wide[low]).to_dict()
    says = f"From ratio {high:.3%} to {low:.3%} the printed averages lose " + ", ".join(
        f"{lost[m]:.1f} points ({m})" for m in MODELS
    )
    holds = lost["OPT-13b"] < lost["OPT-1.3b"] < lost["OPT-125m"] and lost["OPT-13b"] < 2
    return Evidence(says + ".", lost["OPT-13b"], "below 2 points, and less for larger models", holds)


def baselines_want_small_rates() -> Evidence:
    """Table 7 beside table 6: full fine-tuning's printed best learning rates, and those of the sparsest masks."""
    full = load_paper_table(7).query("method == 'full' and task != 'WSC'")["learning_rate"]
    masks = load_paper_table(6).query("ratio == 1e-5 and task != 'WSC'")["learning_rate"]
    apart = float(masks.median() / full.median())
    says = (
        f"Full fine-tuning's printed best rates are {full.min():g} to {full.max():g}, those at ratio 0.001 % "
        f"{masks.min():g} to {masks.max():g}: the medians are {apart:,.0f} times apart."
    )
    return Evidence(says, apart, "at least 1,000 times", apart >= 1000)


def stored_compactly() -> Evidence:
    """Figure 2c: bytes a trained entry in an adapter file, for a layer of 2,048 at density 0.01."""
    model = nn.Sequential(nn.Linear(2048, 2048))
    masking = apply_random_mask(model, ["0"], density=0.01, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(masking, Path(folder) / "adapter.safetensors")
        size = (Path(folder) / "adapter.safetensors").stat().st_size
    each = size / masking.trainable
    says = f"An adapter file has {each:.2f} bytes a trained entry: four of its value; the places come from a seed."
    return Evidence(says, each, "at most 4.1 bytes", each <= 4.1)
