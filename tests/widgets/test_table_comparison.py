"""Two rows of scores side by side: the verdicts, what a page holds, and what its reader sees."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from browser import needs_browser, open_page
from scipy import stats

from rmbook.widgets.table_comparison import VERDICTS, TableComparison, student_quantile

TASKS = ["small", "large", "steady"]
COUNTS = {"small": 50, "large": 1000, "steady": 1000}
SPREADS = {"small": 3.0, "large": 1.0, "steady": 0.1}
ROWS = pd.MultiIndex.from_tuples([("A", "full"), ("A", "mask <1%"), ("A", "LoRA"), ("B", "full"), ("B", "LoRA")])
SCORES = pd.DataFrame(
    [[80, 90, 50], [70, 70, 51], [80, 90, 50], [60.5, 88, 12], [61, 80, 30]], index=ROWS, columns=TASKS, dtype=float
)
FIRST = ("A", "full", "mask <1%")


@pytest.fixture
def comparison():
    return TableComparison(SCORES, SPREADS, COUNTS, 2.1, first=FIRST, title="A title")


def test_widths_and_verdicts_follow_their_definition(comparison):
    found = comparison.compare(*FIRST)
    assert list(found.index) == [*TASKS, "mean"] and np.allclose(found["difference"], [10, 20, -1, 29 / 3])
    variances = np.array([2 * SPREADS[task] ** 2 for task in TASKS])
    records = np.array([(80 * 20 + 70 * 30) / 50, (90 * 10 + 70 * 30) / 1000, (50 * 50 + 51 * 49) / 1000])
    assert np.allclose(found["inner"].iloc[:3], 2.1 * np.sqrt(variances))
    assert np.allclose(found["outer"].iloc[:3], 2.1 * np.sqrt(variances + records))
    assert np.isclose(found.loc["mean", "inner"], 2.1 * np.sqrt(variances.sum()) / 3)
    assert np.isclose(found.loc["mean", "outer"], 2.1 * np.sqrt((variances + records).sum()) / 3)
    assert list(found["verdict"]) == [VERDICTS[1], VERDICTS[2], VERDICTS[1], VERDICTS[2]]
    assert set(comparison.compare("A", "full", "LoRA")["verdict"]) == {VERDICTS[0]}
    swapped = comparison.compare("A", "mask <1%", "full")
    assert np.allclose(swapped["difference"], -found["difference"]) and (swapped["verdict"] == found["verdict"]).all()


def test_equal_rows_are_told_apart_as_rarely_as_promised():
    """Rows drawn with the spreads, on fixed records: the inner interval misses in 5 of 100 cases."""
    draws = pd.DataFrame(np.random.default_rng(0).normal(50, [SPREADS[t] for t in TASKS], (2000, 3)), columns=TASKS)
    draws.index = pd.MultiIndex.from_product([["A"], range(2000)])
    comparison = TableComparison(draws, SPREADS, COUNTS, stats.norm.ppf(0.975), first=("A", 0, 1))
    told = [comparison.compare("A", k, k + 1)["verdict"] != VERDICTS[0] for k in range(0, 2000, 2)]
    assert np.allclose(np.mean(told, axis=0), 0.05, atol=0.025)  # 3.6 standard errors


def test_the_quantile_is_students():
    assert student_quantile(12.5) == stats.t.ppf(0.975, 12.5) and np.isclose(student_quantile(1e9), 1.959964)


def test_the_page_is_complete_in_itself_and_the_same_each_time(comparison):
    page = comparison.to_html()
    assert page == comparison.to_html() == comparison._repr_html_() and "http" not in page.replace(
        "http://www.w3.org", ""
    )
    state = json.loads(re.search(r"const state=(\{.*?\});for\(", page, re.DOTALL)[1])["data"]
    assert state["rows"]["A"]["mask <1%"] == [70, 70, 51] and state["first"] == list(FIRST)
    assert "<1%" not in page  # escaped in the table, and in the script
    table = re.search(r"<table>.*</table>", page, re.DOTALL)[0]
    assert "mask &lt;1%" in table and table.count("<tr>") == 5 and "+20.0" in table and VERDICTS[2] in table


def test_what_is_refused():
    for changes, words in (({"counts": {"small": 1}}, "large"), ({"first": ("B", "full", "mask <1%")}, "mask <1%")):
        arguments = {"scores": SCORES, "spreads": SPREADS, "counts": COUNTS, "quantile": 2.0, "first": FIRST} | changes
        with pytest.raises(ValueError, match=words):
            TableComparison(**arguments)
    with pytest.raises(ValueError, match="all scores"):
        TableComparison(SCORES.replace(12, np.nan), SPREADS, COUNTS, 2.0, first=FIRST)


def read(page):
    """The sentence, the choices, and the body of the table that the reader sees."""
    return page.evaluate(
        """() => ({ text: document.querySelector(".rmt-status").textContent,
          chosen: [...document.querySelectorAll(".rmt select")].map((list) => list.value),
          titles: [...document.querySelectorAll(".rmt-plot title")].map((title) => title.textContent),
          cells: [...document.querySelectorAll(".rmt tbody tr")].map(
            (row) => [...row.children].map((cell) => cell.innerText)) })"""
    )


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_readers_choice_by_keyboard_is_what_python_computes(comparison, tmp_path, scheme):
    path = tmp_path / "page.html"
    path.write_text(f"<!doctype html><meta charset=utf-8><body>{comparison.to_html()}</body>")
    with open_page(path.as_uri(), color_scheme=scheme) as page:
        seen = {tuple(read(page)["chosen"])}
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        for keys in ("ArrowDown", "ArrowDown", "Shift+Tab", "ArrowDown"):
            page.keyboard.press(keys)
            shown = read(page)
            seen.add(tuple(shown["chosen"]))
            found = comparison.compare(*shown["chosen"])
            for cells, title, (task, line) in zip(shown["cells"], shown["titles"], found.iterrows(), strict=True):
                assert cells[0] == task and cells[5].endswith(line["verdict"])
                numbers = [float(cell.replace("−", "-")) for cell in cells[1:4]]
                assert np.allclose(numbers, line[["row", "other", "difference"]].astype(float), atol=0.0501)
                widths = [float(text) for text in re.findall(r"± ([\d.]+)", title)]
                assert np.allclose(widths, line[["inner", "outer"]].astype(float), atol=0.0501)
            told = [sum(found["verdict"].iloc[:-1] == name) for name in reversed(VERDICTS)]
            assert [int(text) for text in re.findall(r"(\d+) (?:dist|on these|cannot)", shown["text"])] == told
    assert len(seen) == 4 and {chosen[0] for chosen in seen} == {"A", "B"}


@needs_browser
def test_without_javascript_it_is_a_table(comparison, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(f"<!doctype html><meta charset=utf-8><body>{comparison.to_html()}</body>")
    with open_page(path.as_uri(), java_script_enabled=False) as page:
        assert page.locator("table tr").count() == 5 and page.locator("select").count() == 0
