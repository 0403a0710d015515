"""The explorer of recorded sweeps: its means, bands and best points, and what its reader sees."""

import re

import numpy as np
import pandas as pd
import pytest
from browser import needs_browser, open_page

from rmbook.widgets.curve_explorer import CurveExplorer

DENSITIES, RATES, BASES, SEEDS = (0.01, 0.1, 1.0), (1e-3, 1e-2, 1e-1, 1.0), (0, 1), (0, 1, 2)


def sweep():
    """Accuracy peaks at rate 0.01 / density for base 0 and one grid point later for base 1; one run has diverged."""
    rows = []
    for p in DENSITIES:
        for rate in RATES:
            for base in BASES:
                for seed in SEEDS:
                    off = np.log10(rate * p / 0.01) - base
                    rows.append([p, rate, base, seed, 90 - 10 * off**2 + seed + 3 * base, 0.1 + off**2])
    frame = pd.DataFrame(rows, columns=["density", "learning_rate", "base", "seed", "accuracy", "loss"])
    frame.loc[len(frame) - 1, "loss"] = np.inf
    return frame


METRICS = {"accuracy": "higher", "loss": "lower"}


def test_line_is_the_mean_of_means_and_band_is_the_range_of_bases():
    frame = sweep().drop(index=0)  # base 0 has one seed less there, and still counts as much as base 1
    explorer = CurveExplorer(frame, METRICS)
    for i, p in enumerate(DENSITIES):
        for j, rate in enumerate(RATES):
            here = frame[(frame["density"] == p) & (frame["learning_rate"] == rate)]
            bases = here.groupby("base")["accuracy"].mean()
            assert explorer.curves["accuracy"][i, j] == pytest.approx([bases.mean(), bases.min(), bases.max()])
    assert explorer.repeated == "base" and explorer.repetitions == 2
    alone = CurveExplorer(frame[frame["base"] == 0], METRICS)
    here = frame[(frame["base"] == 0) & (frame["density"] == 1) & (frame["learning_rate"] == 0.1)]["accuracy"]
    assert alone.curves["accuracy"][2, 2] == pytest.approx([here.mean(), here.min(), here.max()])
    assert alone.repeated == "seed" and alone.repetitions == 3
    bare = CurveExplorer(frame.drop(columns=["base", "seed"]), {"accuracy": None})
    assert bare.repeated is None and bare.best("accuracy").empty


def test_best_rates_move_with_the_density_and_differ_between_bases():
    best = CurveExplorer(sweep(), METRICS).best("accuracy")
    assert best["best_from"].tolist() == [1.0, 0.1, 0.01] and best["best_to"].tolist() == [1.0, 1.0, 0.1]
    assert (best["low"] <= best["value"]).all() and (best["value"] <= best["high"]).all()
    lower = CurveExplorer(sweep(), {"loss": "lower"}).best("loss")
    assert lower["best_from"].tolist() == [1.0, 0.1, 0.01]


def test_what_is_refused():
    for changes, words in (
        ({"metrics": {"speed": "higher"}}, "missing: .'speed'."),
        ({"metrics": {}}, "missing"),
        ({"metrics": {"loss": "best"}}, "better must be"),
        ({"first": 0.5}, "first must be one of"),
        ({"results": sweep().assign(loss=np.nan)}, "at least one finite number"),
    ):
        with pytest.raises(ValueError, match=words):
            CurveExplorer(**({"results": sweep(), "metrics": METRICS} | changes))


def test_the_page_is_complete_small_and_the_same_each_time():
    many = pd.concat([sweep().assign(density=p * q, base=b) for p in (1, 0.5, 0.2) for q in (1, 0.3) for b in range(5)])
    page = CurveExplorer(many, METRICS, first=1.0).to_html()
    assert page == CurveExplorer(many, METRICS, first=1.0)._repr_html_() and len(page.encode()) < 20_000
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page) and page.count("</script") == 1
    assert "<th scope" in page.split("</table>")[0]


def test_the_table_has_each_curves_own_first_and_last_point():
    """Densities with rates of their own, as in a sweep around the best one; a curve without a number has dashes."""
    points = [(1.0, 1e-3, 1.5), (1.0, 1e-2, 2.5), (0.1, 1e-2, 3.5), (0.1, 1e-1, np.nan), (0.01, 1e-1, np.inf)]
    frame = pd.DataFrame(points, columns=["density", "learning_rate", "distance"])
    rows = re.findall(r"<tr>(.*?)</tr>", CurveExplorer(frame, {"distance": None}).to_html().split("</table>")[0], re.S)
    found = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]
    heads = ["density", "first learning rate", "distance", "last learning rate", "distance"]
    ends = [["0.01"] + ["-"] * 4, ["0.1", "0.01", "3.5", "0.01", "3.5"], ["1.0", "0.001", "1.5", "0.01", "2.5"]]
    assert found == [heads, *ends]


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_slider_and_the_list_show_what_python_computes(tmp_path, scheme):
    explorer, path = CurveExplorer(sweep(), METRICS, source="Recorded."), tmp_path / "page.html"
    head = "<!doctype html><meta charset=utf-8><meta name=viewport content='width=device-width'>"
    path.write_text(f"{head}<body>{explorer.to_html()}</body>")
    with open_page(path.as_uri(), color_scheme=scheme, viewport={"width": 360, "height": 740}) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.keyboard.press("Tab")
        for metric in METRICS:
            page.locator("select").select_option(metric)
            page.locator("input").focus()
            page.keyboard.press("Home")
            for p, row in explorer.best(metric).iterrows():
                text = page.locator(".rmc-status").inner_text()
                assert text.startswith(f"Density {p:g}: {metric} is best, ") and text.endswith("Recorded.")
                found = re.search(r"best, (\S+) \((\S+) to (\S+)\), at learning rate (\S+)\.", text)
                numbers = [float(number) for number in found.groups()]
                assert numbers == pytest.approx(row[["value", "low", "high", "best"]].tolist(), rel=6e-3)
                assert page.evaluate("document.activeElement.getAttribute('aria-valuetext')") == f"{p:g}"
                page.keyboard.press("ArrowRight")


def test_words_keep_their_order_along_the_slider():
    frame = sweep().assign(method=lambda f: f["density"].map({0.01: "mask", 0.1: "LoRA", 1.0: "full"}))
    explorer = CurveExplorer(frame, METRICS, slider="method", first="LoRA")
    assert explorer.values == ["mask", "LoRA", "full"] and explorer.first == 1
    assert explorer.best("accuracy").index.tolist() == explorer.values
