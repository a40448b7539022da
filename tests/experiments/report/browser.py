"""A real browser for tests of the page: the system's Chromium, driven by Playwright.

Tests are skipped, and say why, where there is no Chromium or no Playwright. `.ci/run` installs the browser.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PATIENCE = 120_000
"""Milliseconds until a page that does not answer has failed, on a machine with much else to do."""
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="session")
def chromium() -> Iterator["Browser"]:
    """The browser, without pages."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright; pip install playwright")
    if CHROMIUM is None:
        pytest.skip("no chromium or google-chrome on this system; apt-get install chromium")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM)
        yield found
        found.close()


@contextmanager
def opened(
    browser: "Browser", file: Path, fragment: str = "", width: int = 1280, theme: str = "light"
) -> Iterator["Page"]:
    """Open a file in a window of its own; at the end, nothing has failed and nothing was asked of a network.

    Args:
        fragment: the address's part from "#" on.
        theme: "light" or "dark".
    """
    scheme: Any = theme
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.bring_to_front()  # a change of theme is told with a frame, which a page behind others may not have
    errors, requests = [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    page.on("request", lambda request: requests.append(request.url))
    try:
        page.goto(f"{file.as_uri()}{fragment}")
        page.wait_for_selector("#runs tbody", state="attached")
        yield page
        assert errors == []
        assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
    finally:
        context.close()


def draw_all(page: "Page") -> None:
    """Have every figure of the shown sections drawn."""
    page.evaluate("figures.drawAll()")
