"""The explorer without a browser: what it holds, what it computes, and what it writes into a page."""

import base64
import json
import re

import ipywidgets
import numpy as np
import pytest
import traitlets

from rmbook.theory.descent import adam, closed_form
from rmbook.theory.regression import ColumnMasks, largest_stable_rate, loss, sample_regression
from rmbook.widgets.explorer import Explorer, InteractiveExplorer, Runs
from rmbook.widgets.page import WIDGET_VIEW
from rmbook.widgets.regression_explorer import explore_regression

FEATURES, TARGETS, _ = sample_regression(6, 300, seed=0, noise=0.1)
DENSITIES, RATES = np.geomspace(0.05, 1, 4), np.geomspace(1e-4, 1, 5)
STEPS = np.arange(0, 50, 10)


def decoded(explorer, name):
    shape = len(explorer.data["rates"]), len(explorer.data["densities"])
    return np.frombuffer(base64.b64decode(explorer.data[name]), "<f4").reshape(shape)


def page_state(page):
    """What a page's script is given."""
    return json.loads(re.search(r"const state=(\{.*?\});for\(", page, re.DOTALL)[1])


def flat_runs(densities, rates):
    """Every run falls from 1 to rate * density; the largest rate diverges, the second largest is not recorded."""
    losses = np.ones((len(rates), len(densities), len(STEPS)))
    losses[..., -1] = np.outer(rates, densities)
    losses[rates == 1, :, -1] = np.inf
    losses[rates == RATES[-2]] = np.nan
    return Runs(losses, losses[..., -1] * 2, 1 / densities)


def flat(**changes):
    arguments = {"runs": flat_runs, "densities": DENSITIES, "learning_rates": RATES, "steps": STEPS}
    return Explorer(**(arguments | {"density": 0.1, "learning_rate": 0.01} | changes))


@pytest.fixture
def explorer():
    return explore_regression(FEATURES, TARGETS, steps=60, densities=DENSITIES, learning_rates=RATES, seed=3)


def test_the_grid_holds_the_simulators_numbers(explorer):
    densities, rates = np.array(explorer.data["densities"]), np.array(explorer.data["rates"])
    masks = ColumnMasks(300, densities, 3)
    ends = closed_form(FEATURES, TARGETS, masks, rates[:, None], 60)
    expected = loss(FEATURES, TARGETS, ends)
    converged = expected <= explorer.data["start"]
    assert converged.any() and not converged.all()
    np.testing.assert_allclose(
        decoded(explorer, "finals")[converged], np.maximum(expected, explorer.data["floor"])[converged], rtol=1e-6
    )
    np.testing.assert_allclose(
        decoded(explorer, "distances")[converged], np.linalg.norm(ends, axis=-1)[converged], rtol=1e-6
    )
    assert (decoded(explorer, "finals")[~converged] > explorer.data["start"]).all()
    np.testing.assert_allclose(explorer.data["borders"], largest_stable_rate(FEATURES, masks), rtol=1e-5)
    assert explorer.data["start"] == pytest.approx(loss(FEATURES, TARGETS, np.zeros(300)))


def test_curves_are_the_losses_to_a_pixel(explorer):
    steps = explorer.data["steps"]
    curves = np.frombuffer(base64.b64decode(explorer.data["curves"]), "<u2").reshape(5, 4, len(steps))
    mask = ColumnMasks(300, explorer.data["densities"][1], 3)
    path = loss(FEATURES, TARGETS, closed_form(FEATURES, TARGETS, mask, explorer.data["rates"][2], np.array(steps)))
    drawn = explorer.data["span"][0] + curves[2, 1] / 200
    np.testing.assert_allclose(drawn, np.log10(path), atol=0.5 / 200 + 1e-9)


@pytest.mark.parametrize("method", [closed_form, adam])
def test_python_recomputes_values_between_grid_points(method):
    explorer = explore_regression(
        FEATURES, TARGETS, method=method, steps=60, densities=DENSITIES, learning_rates=RATES, seed=3
    )
    explorer.density = 0.1234
    explorer.learning_rate = 0.00321
    mask = ColumnMasks(300, 0.1234, 3)
    end = method(FEATURES, TARGETS, mask, 0.00321, 60)
    assert explorer.run["losses"][-1] == pytest.approx(float(loss(FEATURES, TARGETS, end)), rel=1e-12)
    assert explorer.run["distance"] == pytest.approx(float(np.linalg.norm(end)), rel=1e-12)
    assert explorer.run["border"] == pytest.approx(float(largest_stable_rate(FEATURES, mask)), rel=1e-5)
    assert (explorer.run["density"], explorer.run["learning_rate"]) == (0.1234, 0.00321)


def test_two_moved_sliders_are_one_computation():
    calls = []

    def counted(densities, rates):
        calls.append((densities, rates))
        return flat_runs(densities, rates)

    explorer = flat(runs=counted)
    before = len(calls)
    explorer.set_state({"density": 0.2, "learning_rate": 0.5})  # what a browser's message does
    assert len(calls) == before + 1
    assert calls[-1] == (np.array([0.2]), np.array([0.5]))


def test_diverged_and_missing_runs_are_told_apart():
    explorer = flat()
    finals = decoded(explorer, "finals")
    assert np.isinf(finals[-1]).all() and np.isnan(finals[-2]).all() and np.isfinite(finals[:-2]).all()
    table = explorer.to_html().split("</table>")[0]
    assert table.count("<td>diverged</td>") == 4 and table.count("<td>not recorded</td>") == 4
    explorer.learning_rate = 1.0
    assert explorer.run["losses"][-1] == 1e300  # JSON has no infinity
    explorer.learning_rate = float(RATES[-2])
    assert explorer.run["losses"] == [None] * len(STEPS)
    json.dumps(explorer.run, allow_nan=False)


def test_half_decades_are_even_enough_and_kept_as_they_are():
    densities, rates = [0.01, 0.03, 0.1, 0.3, 1.0], [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2]
    explorer = flat(runs=flat_runs, densities=densities, learning_rates=rates, density=0.25, learning_rate=4e-4)
    assert explorer.data["densities"] == densities and explorer.data["rates"] == rates
    assert (explorer.density, explorer.learning_rate) == (0.3, 3e-4)
    np.testing.assert_allclose(decoded(explorer, "finals"), np.outer(rates, densities), rtol=1e-6)


def test_what_is_lost_has_the_name_that_it_is_given():
    losses = np.full((5, 4, 5), 60.0)
    losses[0, 0, -1], losses[1, 0, -1] = 61.0, 7.0
    explorer = flat(runs=Runs(losses, np.ones((5, 4))), loss_label="error", lost_label="nothing learned")
    page = explorer.to_html()
    table = page.split("</table>")[0]
    assert table.count("<td>nothing learned</td>") == 1 and table.count("<td>7</td>") == 1
    assert "diverged" not in table and page_state(page)["data"]["lost_label"] == "nothing learned"


def test_recorded_runs_need_no_simulator():
    explorer = flat(runs=flat_runs(DENSITIES, RATES), source="Recorded.")
    assert explorer.data["live"] is False and explorer.run == {}
    explorer.density = 0.3
    assert explorer.run == {}
    assert "recorded" in repr(explorer)


def test_an_error_in_the_simulator_is_shown_and_does_not_stick():
    def fails(densities, rates):
        if densities[0] == 0.3:
            raise FloatingPointError("too sparse")
        return flat_runs(densities, rates)

    explorer = flat(runs=fails)
    explorer.density = 0.3
    assert explorer.run == {"density": 0.3, "learning_rate": explorer.learning_rate} | {
        "error": "FloatingPointError: too sparse"
    }
    explorer.density = 0.4
    assert "losses" in explorer.run


def test_page_is_small_complete_and_the_same_each_time(explorer):
    page = explorer.to_html()
    assert page == explorer.to_html()
    default = explore_regression(FEATURES, TARGETS).to_html()
    assert len(default.encode()) < 40_000
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", default)
    state = page_state(page)
    assert state["data"]["live"] is False and state["density"] == explorer.density
    # Nothing in the page ends the script early, and it is one script, one style, and the table.
    assert len(re.findall(r"</script", page)) == 1 and "export default" not in page


def test_a_title_cannot_leave_its_place():
    nasty = "</script><b>&\"'"
    page = flat(title=nasty, source=nasty).to_html()
    assert len(re.findall("</script", page)) == 1 and "<b>" not in page
    assert page_state(page)["data"]["title"] == nasty


def test_each_front_end_finds_its_form(explorer):
    data, _ = explorer._repr_mimebundle_()
    assert set(data) == {"text/plain", "text/html", WIDGET_VIEW}
    assert data["text/plain"] == "Explorer(5 learning rates x 4 densities, live)"


def test_explorer_is_a_widget_like_any_other(explorer):
    slider = ipywidgets.FloatLogSlider(min=-2, max=0, value=0.5)
    ipywidgets.link((slider, "value"), (explorer, "density"))
    slider.value = 0.25
    assert explorer.density == 0.25 == explorer.run["density"]
    assert ipywidgets.VBox([slider, explorer]).children[1] is explorer


def test_further_controls_compute_the_grid_anew():
    def make(steps, noise):
        _, targets, _ = sample_regression(6, 300, seed=0, noise=noise)
        return explore_regression(FEATURES, targets, steps=steps, densities=DENSITIES, learning_rates=RATES)

    panel = InteractiveExplorer(make, steps=(20, 60, 20), noise=[0.1, 0.5])
    steps, noise, explorer, _ = panel.children
    assert explorer.data["steps"][-1] == steps.value == 40
    assert decoded(explorer, "finals").tobytes() == decoded(make(40, 0.1), "finals").tobytes()
    explorer.density = 0.5
    steps.value = 60
    noise.value = 0.5
    expected = make(60, 0.5)
    assert explorer.data == expected.data and explorer.density == 0.5
    expected.density = 0.5
    assert explorer.run == expected.run
    data, _ = panel._repr_mimebundle_()
    assert data["text/html"] == explorer.to_html() and WIDGET_VIEW in data  # no dead control on a page


@pytest.mark.parametrize(
    "changes",
    [
        {"densities": [0.1]},
        {"densities": [0.1, 0.2, 0.9]},  # not even
        {"learning_rates": [1e-4, 1.3e-3, 1e-2, 1e-1, 1.0]},  # one of them 0.11 of a step away from its place
        {"learning_rates": [1.0, 0.1]},
        {"densities": [1.0, 0.1]},
        {"densities": [0.1, 10.0]},
        {"densities": [0.0, 1.0]},
        {"learning_rates": [-1.0, 1.0]},
        {"learning_rates": [[0.1, 1.0]]},
        {"learning_rates": [0.1, np.inf]},
        {"steps": [0, 0.5]},
        {"steps": [3, 2]},
        {"steps": [0]},
        {"density": 0.0},
        {"learning_rate": np.nan},
        {"runs": lambda p, r: Runs(np.ones((1, 1, 1)), np.ones((1, 1)))},
        {"runs": Runs(np.ones((5, 4, 5)), np.ones((5, 4)), np.ones(3))},
    ],
)
def test_bad_input_is_refused(changes):
    with pytest.raises(ValueError, match="must|got"):
        flat(**changes)


@pytest.mark.parametrize("name, value", [("density", 1.5), ("density", -1.0), ("learning_rate", np.inf)])
def test_bad_slider_values_are_refused(explorer, name, value):
    before = getattr(explorer, name)
    with pytest.raises(traitlets.TraitError, match=name):
        setattr(explorer, name, value)
    assert getattr(explorer, name) == before


def test_regression_explorer_checks_its_problem():
    with pytest.raises(ValueError, match="steps"):
        explore_regression(FEATURES, TARGETS, steps=1)
    with pytest.raises(ValueError, match="y, one number"):
        explore_regression(FEATURES, TARGETS[:-1])
    with pytest.raises(ValueError, match="infinite"):
        explore_regression(np.full((2, 3), np.nan), [1.0, 2.0])
