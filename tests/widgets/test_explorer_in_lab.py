"""The explorer in JupyterLab, on this machine alone: what lies between the grid's points is computed in Python."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request

import nbformat
import numpy as np
import pytest
from browser import needs_browser, open_page, read_explorer

from rmbook.theory.descent import closed_form
from rmbook.theory.regression import ColumnMasks, loss, sample_regression

MORE = """
from rmbook.widgets.explorer import InteractiveExplorer

InteractiveExplorer(lambda steps: explore_regression(features, targets, steps=steps, seed=3), steps=(20, 60, 20))
"""
CODE = """
from rmbook.theory.regression import sample_regression
from rmbook.widgets.regression_explorer import explore_regression

features, targets, _ = sample_regression(6, 300, seed=0, noise=0.1)
explore_regression(features, targets, steps=60, seed=3, density=0.1, learning_rate=0.01)
"""


@pytest.fixture
def lab(tmp_path):
    """The address of a notebook with an explorer in a JupyterLab that runs on loopback."""
    nbformat.write(
        nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(CODE), nbformat.v4.new_code_cell(MORE)],
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        ),
        tmp_path / "explorer.ipynb",
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {
        "--ServerApp.ip": "127.0.0.1",
        "--ServerApp.port": port,
        "--ServerApp.root_dir": tmp_path,
        "--IdentityProvider.token": "",
        "--ServerApp.password": "",
        "--LabApp.news_url": "",
        "--LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
    }
    folders = {"HOME": tmp_path, "JUPYTER_CONFIG_DIR": tmp_path / "config", "JUPYTER_RUNTIME_DIR": tmp_path / "run"}
    with open(tmp_path / "lab.log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
            + [f"{name}={value}" for name, value in options.items()],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {name: str(folder) for name, folder in folders.items()},
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{address}/api", timeout=5)
                break
            except OSError:
                assert server.poll() is None, (tmp_path / "lab.log").read_text()
                time.sleep(0.2)
        yield f"{address}/lab/tree/explorer.ipynb"
    finally:
        server.terminate()
        server.wait(30)


def run_first_cell(page):
    """Shift+Enter in the first cell; again where a busy page did not listen yet, which the cell's prompt tells."""
    from playwright.sync_api import TimeoutError as PlaywrightTimeout

    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=120_000)
    # On a busy machine JupyterLab asks for the kernel that it has not found yet.
    accept = page.locator(".jp-Dialog .jp-mod-accept").first
    page.add_locator_handler(accept, lambda: accept.click(timeout=5_000), no_wait_after=True)
    started = "!/^\\[\\s*\\]:?$/.test(document.querySelector('.jp-CodeCell .jp-InputPrompt').textContent.trim())"
    for last in [False] * 9 + [True]:
        page.locator(".jp-CodeCell .cm-content").first.click()
        page.wait_for_function(
            "document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status === 'idle'", timeout=120_000
        )
        page.keyboard.press("Shift+Enter")
        try:
            return page.wait_for_function(started, timeout=10_000)
        except PlaywrightTimeout:
            if last:
                raise


def computed(page):
    """What is shown once Python has answered for the present sliders."""
    page.wait_for_function("document.querySelector('.rmx-status')?.dataset.state === 'computed'", timeout=60_000)
    return read_explorer(page)


@needs_browser
def test_values_between_grid_points_are_computed_in_python(lab):
    features, targets, _ = sample_regression(6, 300, seed=0, noise=0.1)
    with open_page(lab, viewport={"width": 1400, "height": 1000}) as page:
        run_first_cell(page)
        page.wait_for_selector(".rmx-status", timeout=120_000)
        start = computed(page)
        assert page.locator(".jp-OutputArea-output table").count() == 0  # the widget, not the page's form

        page.locator("input[data-name=density]").focus()
        for _ in range(7):  # JupyterLab's command mode must not take the arrow keys
            page.keyboard.press("ArrowRight")
        page.keyboard.press("Tab")
        for _ in range(3):
            page.keyboard.press("ArrowLeft")
        page.wait_for_timeout(300)
        shown = computed(page)
        assert shown["focus"] == "learning_rate"
        for part in ("text", "curve", "mark"):
            assert shown[part] != start[part]

        density, rate = (
            float(10 ** float(page.locator(f"input[data-name={n}]").input_value()))
            for n in ("density", "learning_rate")
        )
        density, rate = float(f"{density:.6g}"), float(f"{rate:.6g}")
        assert abs(np.log10(density) * 8 % 1 - 0.5) < 0.45  # between the points of the grid, which are 1/8 apart
        end = closed_form(features, targets, ColumnMasks(300, density, 3), rate, 60)
        expected = float(loss(features, targets, end))
        assert float(re.search(r"loss (\S+) after", shown["text"])[1]) == float(f"{expected:.3g}")
        assert "Computed in Python" in shown["text"]

        # A drag is many moves: the last one must win.
        box = page.locator("input[data-name=density]").bounding_box()
        page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + box["height"] / 2)
        page.mouse.down()
        for part in range(30):
            page.mouse.move(box["x"] + (0.5 + 0.01 * part) * box["width"], box["y"] + box["height"] / 2)
        page.mouse.up()
        page.wait_for_timeout(300)
        density = float(f"{10 ** float(page.locator('input[data-name=density]').input_value()):.6g}")
        end = closed_form(features, targets, ColumnMasks(300, density, 3), rate, 60)
        dragged = computed(page)["text"]
        assert float(re.search(r"distance (\S+) from", dragged)[1]) == float(f"{np.linalg.norm(end):.3g}")

        # Further controls: the grid is computed anew, in place.
        page.locator(".jp-CodeCell .cm-content").nth(1).click()
        page.keyboard.press("Shift+Enter")
        page.wait_for_function(
            "document.querySelectorAll('.rmx-status')[1]?.dataset.state === 'computed'", timeout=60_000
        )
        assert "after 40 steps" in read_explorer(page, 1)["text"]
        before = read_explorer(page, 1)
        page.locator(".noUi-handle").focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_function(
            "[...document.querySelectorAll('.widget-vbox .rmx-status')].some((status) =>"
            " status.textContent.includes('after 60 steps') && status.dataset.state === 'computed')",
            timeout=60_000,
        )
        after = read_explorer(page, 1)
        assert after["curve"] != before["curve"] and after["mark"] == before["mark"]
