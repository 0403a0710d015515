"""Size of the explorer on a page, and how long a browser takes to show it: `python benchmarks/explorer.py [PAGE ...]`.

Without arguments, a page that holds the default explorer and nothing else. Needs Chromium and playwright.
"""

import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from rmbook.theory.regression import sample_regression
from rmbook.widgets.regression_explorer import explore_regression

LOADS = 15
# Milliseconds from the start of loading until the explorer's own script has finished, seen by the page's own clock.
WATCH = """new MutationObserver(() => { if (!window.shown && document.querySelector('.rmx-status')?.textContent)
  window.shown = performance.now(); }).observe(document, { childList: true, subtree: true, characterData: true });"""


def main(pages: list[str]) -> None:
    """Print one line for each page."""
    with tempfile.TemporaryDirectory() as folder:
        if not pages:
            features, targets, _ = sample_regression(8, 2000, seed=0, noise=0.1)
            html = explore_regression(features, targets).to_html()
            print(f"default explorer: {len(html.encode()):,} bytes of HTML")
            pages = [f"{folder}/page.html"]
            Path(pages[0]).write_text(f"<!doctype html><meta charset='utf-8'><body>{html}")
        with sync_playwright() as playwright:
            chromium = shutil.which("chromium")
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            for path in pages:
                times = []
                for _ in range(LOADS):
                    page = browser.new_page()
                    page.add_init_script(WATCH)
                    page.goto(Path(path).resolve().as_uri())
                    page.wait_for_function("window.shown")
                    times.append(page.evaluate("window.shown"))
                    page.close()
                print(
                    f"{Path(path).name}: shown after {statistics.median(times):.0f} ms "
                    f"({min(times):.0f} to {max(times):.0f}, {LOADS} loads)"
                )
            browser.close()


if __name__ == "__main__":
    main(sys.argv[1:])
