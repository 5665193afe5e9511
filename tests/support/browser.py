"""A real browser without a window, for tests of pages."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sere.engines.patience import Patience
from tests.support.patience import HANGS_S

NAMES = ("chromium", "chromium-browser", "google-chrome")
SCREENSHOTS = Path(__file__).resolve().parents[2] / "out" / "screenshots"
"""Where tests put pictures of pages, for people to look at."""

# (name, width in pixels, color scheme)
LOOKS = (
    ("light", 1280, "light"),
    ("dark", 1280, "dark"),
    ("phone", 390, "light"),
    ("phone-dark", 390, "dark"),
)
HEIGHTS = {1280: 800, 390: 844}
"""What a screen of these widths shows without scrolling, in pixels."""


@contextmanager
def browser() -> Iterator[Any]:
    """Start Chromium; skip the test where it or its driver is missing."""
    driver = pytest.importorskip("playwright.sync_api", reason="needs playwright, the extra dev")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("needs a browser: apt-get install chromium")
    with driver.sync_playwright() as started:
        # Tests run as root in containers, where Chromium has no sandbox.
        running = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield running
        finally:
            running.close()


def until(page: Any, expression: str, seconds: float = HANGS_S) -> None:
    """Wait until a page's expression holds; its own way to wait is one of those that the page forbids."""
    patience = Patience(seconds)
    while not page.evaluate(expression):
        assert patience.lasts(), (
            f"{expression} did not become true; the page says:\n{page.inner_text('body')}"
        )
        page.wait_for_timeout(100)


@contextmanager
def watched(running: Any, url: str, path: str = "/sere/", **options: Any) -> Iterator[tuple[Any, list[str]]]:
    """Open a page of a server, or of a folder as ``file:`` names it.

    Yields it, and what it complains of: errors, its console, requests to other servers.
    """
    complaints: list[str] = []
    page = running.new_page(**options)
    # A busy machine may take long to draw a page; nothing here measures time.
    page.set_default_timeout(120_000)
    page.on("console", lambda one: one.type in ("error", "warning") and complaints.append(one.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda one: one.url.startswith((url, "data:")) or complaints.append(one.url))
    page.goto(f"{url}{path}")
    try:
        yield page, complaints
    finally:
        page.close()
