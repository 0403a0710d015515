"""Every built page in a browser without a network, in light and in dark: no error, no request, no barrier for readers.

Barriers are what axe-core calls serious or critical. `make test` builds the pages just before it runs this file, and
looks at one page of each kind, with a dozen of its formulas and pieces of code, which takes seconds. With
RMBOOK_EVERY_PAGE=1 it looks at every page as a whole, which takes minutes.
"""

import importlib.util
import json
import os
from pathlib import Path

import pytest
from browser import needs_browser, open_page

HTML = Path(__file__).resolve().parents[2] / "_build" / "strict" / "_build" / "html"
PAGES = sorted(path for path in HTML.rglob("*.html") if HTML / "_static" not in path.parents)

EVERY = bool(os.environ.get("RMBOOK_EVERY_PAGE"))
KINDS = ("intro", "bigger_steps", "tables_reread", "proofs", "claims", "glossary")
if not EVERY:
    PAGES = [path for path in PAGES if path.stem in KINDS]

if not PAGES:
    pytest.skip(f"no book in {HTML}: `make test` builds it", allow_module_level=True)

pytestmark = needs_browser

AXE = Path(importlib.util.find_spec("axe_playwright_python").origin).with_name("axe.min.js")
RUN = """async (scheme) => {
  document.documentElement.dataset.theme = scheme;
  await new Promise((resolve) => setTimeout(resolve, 50));  // transitions of colours
  const found = await axe.run(document, { resultTypes: ["violations"], preload: false });
  return found.violations.filter((rule) => ["serious", "critical"].includes(rule.impact))
    .flatMap((rule) => rule.nodes.slice(0, 5).map((node) => `${scheme}: ${rule.id}: ${node.html.slice(0, 160)}`));
}"""
THIN = """() => {  // they are made alike
  for (const kind of ["mjx-container", ".highlight pre"])
    for (const more of [...document.querySelectorAll(kind)].slice(12)) more.remove();
}"""
STILL = "*, *::before, *::after { transition: none !important; animation: none !important; }"


@pytest.fixture(scope="module")
def visit():
    """Goes to a page in the one browser of this file; on leaving, there was no error and no request on any page."""
    with open_page("about:blank") as page:
        script = AXE.read_text()

        def go(path: Path):
            page.goto(path.as_uri(), wait_until="load")
            page.add_style_tag(content=STILL)
            page.evaluate(script)
            if not EVERY:
                page.evaluate(THIN)
            return page

        yield go


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(HTML).as_posix())
def test_no_serious_barrier_in_light_and_dark(visit, path):
    page = visit(path)
    found = [line for scheme in ("light", "dark") for line in page.evaluate(RUN, scheme)]
    assert not found, json.dumps(found, indent=1)
