"""A browser for the tests of what readers see: Chromium, driven by playwright, without a network."""

import contextlib
import os
import shutil

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync --disable-quic"
)
LOCAL = ("file:", "data:", "blob:", "http://127.0.0.1:", "ws://127.0.0.1:")

needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on PATH; on Debian and Ubuntu: apt-get install chromium"
)


@contextlib.contextmanager
def open_browser():
    """A browser that `open_page` can be given more than once; it does not go with what runs an event loop."""
    from playwright.sync_api import sync_playwright

    # The closing proxy stops what would go around the route: nothing listens on port 9.
    environment = os.environ | {"no_proxy": "127.0.0.1", "http_proxy": "http://127.0.0.1:9"}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split(), env=environment)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def open_page(url, browser=None, **context):
    """A page at `url`, of which no other page knows; on leaving, no request left this machine and no error was logged.

    Yields:
        playwright's page; the browser is a fresh one if None; `context` are arguments of `browser.new_context`,
        `color_scheme="dark"` for one.
    """
    refused, errors = [], []

    def keep_local(route):
        if route.request.url.startswith(LOCAL):
            route.continue_()
        else:
            refused.append(route.request.url)
            route.abort()

    with contextlib.ExitStack() as stack:
        browser = browser or stack.enter_context(open_browser())
        page = stack.enter_context(browser.new_context(**context)).new_page()
        page.context.route("**/*", keep_local)
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        yield page
    assert not refused, f"the page asked the network for {refused}"
    assert not errors, f"the page logged {errors}"


def read_explorer(page, index=0):
    """What the explorer with this number shows: sentence, state, curve, marker, and the focused element's name."""
    return page.evaluate(
        """(index) => {
          const root = document.querySelectorAll(".rmx")[index], mark = root.querySelector(".rmx-mark");
          const status = root.querySelector(".rmx-status");
          return { text: status.textContent, state: status.dataset.state,
            curve: root.querySelector(".rmx-line").getAttribute("d"),
            mark: mark.getAttribute("cx") + " " + mark.getAttribute("cy"),
            outputs: [...root.querySelectorAll("output")].map((o) => o.textContent),
            spoken: document.activeElement.getAttribute("aria-valuetext"),
            focus: document.activeElement.dataset.name ?? null };
        }""",
        index,
    )
