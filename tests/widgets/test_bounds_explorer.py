"""The explorer of bounds: what it holds, what a page holds, and what its reader sees."""

import json
import re

import numpy as np
import pytest
from browser import needs_browser, open_page

from rmbook.theory.bounds import eigenvalue_deviation, matrix_bernstein, theorem_5_1, theorem_5_1_as_printed
from rmbook.theory.regression import ColumnMasks, gram_eigenvalues, sample_regression
from rmbook.widgets.bounds_explorer import CURVES, BoundsExplorer

FIRST = (3, 300, 0.1, 0.05, 1.0)


@pytest.fixture(scope="module")
def explorer():
    return BoundsExplorer((2, 3), (100, 300), (0.01, 0.1, 0.5), (0.5, 0.05), (0.01, 1.0, 10.0), masks=40, first=FIRST)


@pytest.mark.parametrize("choice", [FIRST, (2, 100, 0.5, 0.5, 0.01), (3, 100, 0.01, 0.05, 10.0)])
def test_values_are_those_of_features_between_0_and_r(explorer, choice):
    n, d, p, delta, r = choice
    features, _, _ = sample_regression(n, d, seed=0, entry_bound=r)
    largest, _ = eigenvalue_deviation(features, ColumnMasks(d, p, np.arange(40)))
    whole = gram_eigenvalues(features, ColumnMasks(d, 1.0, 0))[0]
    wanted = [p * whole, np.quantile(largest, 1 - delta), matrix_bernstein(features, p, delta)]
    wanted += [theorem(n, d, r, delta) for theorem in (theorem_5_1, theorem_5_1_as_printed)]
    assert list(explorer.at(*choice)) == list(CURVES)
    assert list(explorer.at(*choice).values()) == pytest.approx([float(value) / r**2 for value in wanted])


def test_only_the_printed_theorem_moves_with_the_unit(explorer):
    moved = np.ptp(explorer.values, axis=-1).max((1, 2, 3, 4)) / explorer.values.max((1, 2, 3, 4, 5))
    assert (moved[:4] < 1e-12).all() and moved[4] > 0.1


def test_the_page_is_complete_in_itself_and_the_same_each_time(explorer):
    page = explorer.to_html()
    assert page == explorer.to_html() == explorer._repr_html_()
    assert "http" not in page.replace("http://www.w3.org", "")
    state = json.loads(re.search(r"const state=(\{.*?\});for\(", page, re.DOTALL)[1])
    state = state["data"]
    assert state["choices"][1] == [100, 300] and len(state["ours"][0]) == 24 and len(state["theorems"][0]) == 24
    assert page.split("</table>")[0].count("<tr>") == 4


def test_what_is_refused():
    with pytest.raises(ValueError, match="at least 1 / masks = 0.1"):
        BoundsExplorer((2,), (50,), (0.1,), (0.05,), (1.0,), masks=10, first=(2, 50, 0.1, 0.05, 1.0))
    with pytest.raises(ValueError, match="one of each slider's values, got 7"):
        BoundsExplorer((2,), (50,), (0.1,), (0.5,), (1.0,), masks=10, first=(7, 50, 0.1, 0.5, 1.0))


def read(page):
    """Slider values, the values beside the legend, the lines' paths, and the sentence."""
    return page.evaluate(
        """() => ({ chosen: [...document.querySelectorAll(".rmb output")].map((o) => o.textContent),
          values: [...document.querySelectorAll(".rmb b")].map((b) => b.textContent),
          lines: [...document.querySelectorAll(".rmb > svg .rmb-line")].map((line) => line.getAttribute("d")),
          spoken: document.activeElement.getAttribute("aria-valuetext"),
          text: document.querySelector(".rmb-status").textContent })"""
    )


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_sliders_show_what_python_computes(explorer, tmp_path, scheme):
    path = tmp_path / "page.html"
    path.write_text(f"<!doctype html><meta charset=utf-8><body>{explorer.to_html()}</body>")
    with open_page(path.as_uri(), color_scheme=scheme) as page:
        seen = [read(page)]
        for key in ("ArrowLeft", "ArrowLeft", "ArrowRight", "ArrowLeft", "ArrowLeft"):
            page.keyboard.press("Tab")
            page.keyboard.press(key)
            seen.append(read(page))
    for shown in seen:
        choice = [float(text.replace(",", "")) for text in shown["chosen"]]
        wanted = explorer.at(*choice)
        for text, value in zip(shown["values"], wanted.values(), strict=True):
            assert float(text.replace(",", "")) == pytest.approx(value, rel=0.06, abs=0.51)
        assert ("Theorem 5.1 allows" in shown["text"]) and str(shown["chosen"][0]) in shown["text"]
    assert all(before["chosen"] != after["chosen"] for before, after in zip(seen[:-1], seen[1:], strict=True))
    assert all(after["spoken"] in after["chosen"] for after in seen[1:])
    by_unit = [before == after for before, after in zip(seen[-2]["lines"], seen[-1]["lines"], strict=True)]
    assert by_unit == [True] * 4 + [False]  # the unit moves the printed theorem alone


@needs_browser
def test_without_javascript_it_is_a_table(explorer, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(f"<!doctype html><meta charset=utf-8><body>{explorer.to_html()}</body>")
    with open_page(path.as_uri(), java_script_enabled=False) as page:
        assert page.locator("table tr").count() == 4 and page.locator("input").count() == 0
