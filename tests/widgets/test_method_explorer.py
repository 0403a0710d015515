"""Runs by one measure: what a page holds, what is refused, and what its reader sees."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from browser import needs_browser, open_page

from rmbook.widgets.method_explorer import MethodExplorer

TABLE = pd.DataFrame({"score": [50.0, 60.0, 40.0], "size": [1e3, np.nan, 1e6]}, index=["LoRA <8>", "mask", "full"])
GROUPS = pd.Series(["lora", "mask", "full"], index=TABLE.index)
HALVES = {"score": pd.Series([2.0, 3.0, 2.0], index=TABLE.index)}
MEASURES = {"score": "score, %", "size": "numbers"}


def explorer(**changes):
    given = {"measures": MEASURES, "groups": GROUPS, "halves": HALVES, "logarithmic": ("size",)}
    return MethodExplorer(TABLE, **given | {"first": ("score", "mask"), "title": "A title"} | changes)


def test_the_page_is_complete_in_itself_and_the_same_each_time():
    page = explorer().to_html()
    assert page == explorer()._repr_html_() and "http" not in page.replace("http://www.w3.org", "")
    state = json.loads(re.search(r"const state=(\{.*?\});for\(", page, re.DOTALL)[1])["data"]
    assert state["values"] == {"score": [50, 60, 40], "size": [1000, None, 1e6]} and state["first"] == ["score", "mask"]
    table = re.search(r"<table>.*</table>", page, re.DOTALL)[0]
    assert re.findall(r"<td>(mask|LoRA &lt;8&gt;|full)</td>", table) == ["mask", "LoRA &lt;8&gt;", "full"]
    assert "LoRA <8>" not in page  # escaped in the table, and in the script


def test_what_is_refused():
    for changes, words in (
        ({"measures": {"speed": "s"}}, "speed"),
        ({"first": ("score", "prefix")}, "prefix"),
        ({"first": ("speed", "mask")}, "speed"),
    ):
        with pytest.raises(ValueError, match=words):
            explorer(**changes)
    with pytest.raises(ValueError, match="positive numbers only"):
        MethodExplorer(TABLE - 50, MEASURES, GROUPS, first=("score", "mask"), logarithmic=("score",))


@needs_browser
def test_measure_and_run_can_be_chosen(tmp_path):
    (tmp_path / "page.html").write_text(f"<!doctype html><meta charset=utf-8>{explorer().to_html()}", "utf-8")
    with open_page((tmp_path / "page.html").as_uri()) as page:
        names = "[...document.querySelectorAll('.rmm svg g text')].map(t => t.textContent)"
        assert page.evaluate(names) == ["▸ mask", "LoRA <8>", "full"]
        assert "place 1 of 3" in page.inner_text(".rmm-status")
        page.select_option("select[data-name='compare with']", "full")
        assert "place 3 of 3" in page.inner_text(".rmm-status")
        page.select_option("select[data-name='measure']", "size")
        assert page.evaluate(names) == ["▸ full", "LoRA <8>"]  # the mask has no size
        page.select_option("select[data-name='compare with']", "mask")
        assert "no such number" in page.inner_text(".rmm-status")
