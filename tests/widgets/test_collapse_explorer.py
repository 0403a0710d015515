"""The explorer of power laws: at the right exponent the curves agree, and the page shows what Python computes."""

import re

import numpy as np
import pytest
from browser import needs_browser, open_page
from hypothesis import given
from hypothesis import strategies as st

from rmbook.widgets.collapse_explorer import CollapseExplorer, Curve

FACTORS, EXPONENTS = (1.0, 0.1, 0.01), [round(0.1 * k, 1) for k in range(16)]
PLACES = np.geomspace(1e-3, 10, 9)
NAMES = {"slider": "exponent a", "x": "rate times p to the {}", "y": "accuracy", "title": "A law"}


def curves(exponent, places=PLACES, bend=0.0):
    """Curves of one function of log(x * factor ** exponent): a line, bent at will."""
    moved = {p: np.log10(places) + exponent * np.log10(p) for p in FACTORS}
    return {f"{p:g}": Curve(places, 20 + 5 * at + bend * np.sin(at), p) for p, at in moved.items()}


def explorer(exponent=0.7, **changes):
    return CollapseExplorer(**({"curves": curves(exponent), "exponents": EXPONENTS, "first": 0.0, **NAMES} | changes))


@given(st.sampled_from(EXPONENTS), st.sampled_from(EXPONENTS))
def test_curves_of_one_law_agree_at_its_exponent_and_are_apart_as_far_as_the_exponent_is_off(true, at):
    # lines of slope 5 a decade: two curves whose factors are k decades apart differ by 5 * k * |at - true|
    steps = np.array([1, 1, 2])
    assert explorer(true).apart(at) == pytest.approx(5 * abs(at - true) * np.sqrt((steps**2).mean()), abs=1e-9)
    assert explorer(true).best() == true


def test_a_dense_grid_finds_the_law_of_curves_that_are_not_straight():
    bent = explorer(curves=curves(1.1, np.geomspace(1e-3, 10, 200), bend=8))
    assert bent.best() == 1.1 and bent.apart(1.1) < 0.02 < bent.apart(1.0)


def test_curves_without_a_common_place_cannot_be_compared():
    far = explorer(curves={"one": Curve([1, 2], [0, 1], 1.0), "other": Curve([1, 2], [0, 1], 1e-6)})
    assert far.apart(0.0) == 0 and np.isnan(far.apart(1.0)) and far.best() == 0.0


def test_what_is_refused():
    one = Curve([1, 2], [0, 1], 1.0)
    for wrong in (Curve([1], [0], 1.0), Curve([2, 1], [0, 1], 1.0), Curve([0, 1], [0, 1], 1.0), Curve([1, 2], [0], 1.0),
                  Curve([1, 2], [0, np.nan], 1.0), Curve([1, 2], [0, 1], 0.0)):  # fmt: skip
        with pytest.raises(ValueError, match="curve 'wrong' must have"):
            explorer(curves={"one": one, "wrong": wrong})
    with pytest.raises(ValueError, match="two to seven, got 1"):
        explorer(curves={"one": one})
    with pytest.raises(ValueError, match="first must be one of the exponents"):
        explorer(first=0.05)


def test_the_page_is_complete_small_and_the_same_each_time():
    page = explorer().to_html()
    assert page == explorer()._repr_html_() and len(page.encode()) < 16_000
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page) and page.count("</script") == 1
    assert "<tr><td>0.7</td><td>" in page.split("</table>")[0]


@needs_browser
def test_the_slider_shows_what_python_computes(tmp_path):
    shown, path = explorer(curves=curves(0.7, bend=8), source="Recorded."), tmp_path / "page.html"
    head = "<!doctype html><meta charset=utf-8><meta name=viewport content='width=device-width'>"
    path.write_text(f"{head}<body>{shown.to_html()}</body>")
    with open_page(path.as_uri(), color_scheme="dark", viewport={"width": 360, "height": 740}) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.keyboard.press("Tab")
        page.keyboard.press("Home")
        for exponent in EXPONENTS:
            text = page.locator(".rmo-status").inner_text()
            found = re.search(r"Exponent a (\S+): two curves are (\S+) apart .* at (\S+)\. Recorded\.$", text)
            numbers = [float(number) for number in found.groups()]
            assert numbers == pytest.approx([exponent, shown.apart(exponent), shown.best()], rel=0.06)
            assert f"rate times p to the {exponent:g}" in page.locator("svg title").first.text_content()
            page.keyboard.press("ArrowRight")
