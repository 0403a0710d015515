"""The law of learning rates against the paper's table 6, and the arithmetic of its use."""

import math

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rmbook
from rmbook.training.learning_rate import PAPER_GRID, fit_power_law, suggest_learning_rate

SIZES = {
    "OPT-125m": (-0.82, -0.76, 0.97, 0.60),
    "OPT-1.3b": (-0.92, -0.86, 1.00, 0.72),
    "OPT-13b": (-1.0, -0.92, 0.94, 0.88),
}


@pytest.fixture(scope="module")
def table6():
    from conftest import SHARED

    path = SHARED / "paper/tables/table6.csv"
    if not path.is_file():
        pytest.skip(f"{path} is not on this machine: the paper's best learning rates")
    table = pd.read_csv(path)
    return table[table["method"] == "random_masking"]


@pytest.mark.parametrize("model", SIZES)
def test_the_papers_best_rates_follow_the_law(model, table6):
    slope, slope_with_wsc, within, equal = SIZES[model]
    cells = table6[(table6["model"] == model)]
    others = cells[cells["task"] != "WSC"]
    assert fit_power_law(others["ratio"], others["learning_rate"]).slope == pytest.approx(slope, abs=0.01)
    assert fit_power_law(cells["ratio"], cells["learning_rate"]).slope == pytest.approx(slope_with_wsc, abs=0.01)
    steps = [
        abs(math.log10(suggest_learning_rate(ratio, grid=PAPER_GRID) / rate))
        for ratio, rate in zip(others["ratio"], others["learning_rate"], strict=True)
    ]
    assert sum(step < 1.5 for step in steps) / len(steps) == pytest.approx(within, abs=0.011)
    assert sum(step < 0.5 for step in steps) / len(steps) == pytest.approx(equal, abs=0.011)


ratios = st.floats(1e-6, 1.0)
rates = st.floats(1e-8, 10.0)


@given(ratios, ratios, rates)
def test_rate_times_ratio_stays_what_is_known(ratio, other, rate):
    suggested = suggest_learning_rate(ratio, known=(other, rate))
    assert suggested * ratio == pytest.approx(other * rate)
    assert suggest_learning_rate(other, known=(ratio, suggested)) == pytest.approx(rate)  # and back
    assert suggest_learning_rate(other, known=(other, rate)) == pytest.approx(rate)


@given(ratios, st.lists(rates, min_size=1, max_size=6))
def test_of_a_grid_the_nearest_rate_by_factors_is_taken(ratio, grid):
    chosen, exact = suggest_learning_rate(ratio, grid=grid), suggest_learning_rate(ratio)
    assert chosen in grid and all(
        max(chosen / exact, exact / chosen) <= max(rate / exact, exact / rate) * (1 + 1e-9) for rate in grid
    )


@given(
    st.floats(-2, 2), st.floats(-8, 0), st.lists(ratios, min_size=2, max_size=8, unique_by=lambda x: round(math.log(x)))
)
def test_a_law_without_noise_is_found(slope, intercept, points):
    law = fit_power_law(points, [10**intercept * ratio**slope for ratio in points])
    assert law.slope == pytest.approx(slope, abs=1e-6) and law.intercept == pytest.approx(intercept, abs=1e-5)
    assert max(map(abs, law.residuals)) < 1e-6


@pytest.mark.parametrize("bad", [0, -0.1, math.nan, math.inf, 1.5, "0.1", True, None])
def test_bad_ratios_are_refused(bad):
    with pytest.raises(ValueError, match="ratio"):
        suggest_learning_rate(bad)
    with pytest.raises(ValueError, match="ratio"):
        suggest_learning_rate(0.1, known=(bad, 1e-3))


def test_other_bad_input_is_refused():
    for grid in ([], [0.0], [-1e-3]):
        with pytest.raises(ValueError, match="grid"):
            suggest_learning_rate(0.1, grid=grid)
    for points in (([0.1], [1e-3]), ([0.1, 0.1], [1e-3, 1e-2]), ([0.1, 0.2], [1e-3]), ([0.1, 0.2], [1e-3, 0])):
        with pytest.raises(ValueError, match="two different"):
            fit_power_law(*points)


def test_it_is_at_hand_in_the_package():
    assert rmbook.suggest_learning_rate is suggest_learning_rate
