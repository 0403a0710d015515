"""The explorer on the built pages, as a reader without a kernel and without a network meets it.

`make test` builds the pages just before it runs this file.
"""

import base64
import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from broken_chapters import Chapter
from browser import needs_browser, open_browser, open_page, read_explorer

from rmbook.widgets.explorer import Explorer, InteractiveExplorer

ROOT = Path(__file__).resolve().parents[2]
PAGES_FOLDER = ROOT / "_build" / "strict" / "_build" / "html"
PAGES = sorted(path for path in (PAGES_FOLDER / "book").glob("*.html") if "data-rmx=" in path.read_text())
CHAPTERS = [path.stem for path in sorted((ROOT / "book").glob("*.ipynb")) if "data-rmx=" in path.read_text()]

if not PAGES_FOLDER.is_dir():
    pytest.skip(f"no book in {PAGES_FOLDER}: `make test` builds it", allow_module_level=True)

pytestmark = needs_browser


@pytest.fixture(scope="module")
def browser():
    with open_browser() as browser:
        yield browser


@pytest.fixture(params=PAGES, ids=lambda path: path.stem)
def chapter(request):
    return request.param


def explorer_of(chapter):
    """The chapter's explorer, made again by those of the chapter's statements that it needs."""
    cells = Chapter(chapter.stem)
    matplotlib.use("Agg")
    makers = [n for n, cell in enumerate(cells.cells) if re.search(r"\b(explore_\w+|\w*Explorer)\(", cell.code)]
    for place in makers:
        names = {}
        for cell in cells.with_needed({place}):
            exec(cell.code, names)
        for value in names.values():
            if isinstance(value, Explorer | InteractiveExplorer):
                return getattr(value, "explorer", value)
    raise AssertionError(f"{chapter.stem} has a page with an explorer, but makes none")


def numbers(text, labels):
    """The numbers of the explorer's sentence by name; None where the run diverged."""
    found = {"diverged": labels["lost_label"] in text}
    for name, pattern in {
        "density": r"^Density (\S+),",
        "learning rate": r"learning rate (\S+):",
        "loss": re.escape(labels["loss_label"]) + r" (?:below )?(\S+) after",
        "distance": r"distance (\S+) from",
    }.items():
        match = re.search(pattern, text)
        found[name] = float(match[1]) if match else None
    return found


def expected(explorer, density, rate):
    """Final loss and distance at the grid point with these two numbers: computed, or else as they were recorded."""
    data = explorer.data
    if data["live"]:
        explorer.density, explorer.learning_rate = data["densities"][density], data["rates"][rate]
        return explorer.run["losses"][-1], explorer.run["distance"]
    grids = [np.frombuffer(base64.b64decode(data[name]), "<f4") for name in ("finals", "distances")]
    return [grid.reshape(len(data["rates"]), len(data["densities"]))[rate, density] for grid in grids]


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)
    return read_explorer(page)


def tab_to(page, name):
    for _ in range(200):
        if press(page, "Tab")["focus"] == name:
            return
    raise AssertionError(f"200 presses of Tab do not reach the slider {name}")


def test_every_chapter_with_an_explorer_is_built():
    assert CHAPTERS and CHAPTERS == [path.stem for path in PAGES]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_keyboard_moves_curve_marker_and_reading(browser, chapter, scheme):
    with open_page(chapter.as_uri(), browser, color_scheme=scheme) as page:
        page.wait_for_selector(".rmx-status")
        seen = [read_explorer(page)]
        tab_to(page, "density")
        seen += [press(page, key) for key in ("ArrowRight", "ArrowRight", "Home", "End", "ArrowLeft")]
        page.keyboard.press("Tab")
        assert read_explorer(page)["focus"] == "learning_rate"
        seen += [press(page, key) for key in ("ArrowDown", "ArrowLeft", "Home", "End")]
    for before, after in zip(seen[:-1], seen[1:], strict=True):
        for part in ("text", "curve", "mark", "outputs"):
            assert before[part] != after[part], f"{part} did not follow"
        assert after["spoken"] in after["outputs"]
        assert after["state"] == "stored"


def test_corners_show_what_python_computes(browser, chapter):
    explorer = explorer_of(chapter)
    with open_page(chapter.as_uri(), browser) as page:
        page.wait_for_selector(".rmx-status")
        for density_key, density in (("Home", 0), ("End", -1)):
            for rate_key, rate in (("Home", 0), ("End", -1)):
                page.locator(".rmx input[data-name=density]").focus()
                press(page, density_key, "Tab")
                shown = numbers(press(page, rate_key)["text"], explorer.data)
                final, distance = expected(explorer, density, rate)
                assert shown["density"] == float(f"{explorer.data['densities'][density]:.3g}")
                assert shown["learning rate"] == float(f"{explorer.data['rates'][rate]:.3g}")
                assert shown["diverged"] == (final > explorer.data["start"])
                if not shown["diverged"]:
                    # Three digits are shown; another machine's last bit may tip the third.
                    assert shown["loss"] == pytest.approx(final, rel=5.1e-3)
                    assert shown["distance"] == pytest.approx(distance, rel=5.1e-3)


def test_a_click_on_the_map_moves_both_sliders(browser, chapter):
    with open_page(chapter.as_uri(), browser) as page:
        page.wait_for_selector(".rmx-status")
        before = read_explorer(page)
        figure = page.locator(".rmx-plots svg").first
        box = figure.bounding_box()
        figure.click(position={"x": 0.25 * box["width"], "y": 0.75 * box["height"]})
        after = read_explorer(page)
        assert before["outputs"][0] != after["outputs"][0] and before["outputs"][1] != after["outputs"][1]
        assert before["curve"] != after["curve"]


CONTRASTS = """() => {
  const channel = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const luminance = (colour) => {
    const [r, g, b] = colour.match(/[0-9.]+/g).map(Number).map(channel);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const root = document.querySelector(".rmx"), paper = luminance(getComputedStyle(root).backgroundColor);
  const found = {};
  for (const [selector, property] of [["label", "color"], ["output", "color"], [".rmx-status", "color"],
      [".rmx-legend", "color"], ["svg text", "fill"], [".rmx-line", "stroke"], [".rmx-frame, .rm-frame", "stroke"]]) {
    const ink = luminance(getComputedStyle(root.querySelector(selector))[property]);
    found[selector] = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_curve_stand_out(browser, chapter, scheme):
    with open_page(chapter.as_uri(), browser, color_scheme=scheme) as page:
        page.wait_for_selector(".rmx-status")
        background = page.evaluate("getComputedStyle(document.querySelector('.rmx')).backgroundColor")
        assert np.mean([int(v) for v in re.findall(r"\d+", background)[:3]]) > 200 if scheme == "light" else True
        contrasts = page.evaluate(CONTRASTS)
    assert min(contrasts.values()) >= 4.5, contrasts


def test_it_fits_a_phone(browser, chapter):
    with open_page(chapter.as_uri(), browser, viewport={"width": 390, "height": 844}) as page:
        page.wait_for_selector(".rmx-status")
        root = page.locator(".rmx").bounding_box()
        for part in page.locator(".rmx input, .rmx-plots svg, .rmx-status").all():
            box = part.bounding_box()
            assert box["x"] >= root["x"] - 1 and box["x"] + box["width"] <= 391


def test_without_scripts_there_is_a_table(browser, chapter):
    with open_page(chapter.as_uri(), browser, java_script_enabled=False) as page:
        table = page.locator("[data-rmx] table")
        assert table.locator("tr").count() >= 3
        assert "density" in table.inner_text() and "With JavaScript" in table.inner_text()


def test_page_has_one_explorer_of_at_most_40_kilobytes(chapter):
    page = chapter.read_text()
    sizes = [len(part.encode()) for part in re.findall(r"<div data-rmx=.*?</script>", page, re.DOTALL)]
    assert sizes and sum(sizes) <= 40_000, sizes
    assert "widget-state+json" not in page  # no widget manager reads it
