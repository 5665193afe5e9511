"""Without scrolling, a reader sees what was measured, on what, and what to do next; in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sere.report.page import write_report
from sere.report.read import read_sources
from tests.support.browser import HEIGHTS, LOOKS, SCREENSHOTS, browser, watched

pytest.importorskip("plotly", reason="needs plotly, the extra report")

pytestmark = pytest.mark.checkout

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
HEADINGS = ["What was measured", "On what", "What to do next"]
RECORDS = {
    "one": ["eval.json", "demo.json"],
    # Five models, with many numbers, steps and warnings.
    "many": ["eval.json", "demo.json", "tune-abacus.json", "tune-suanpan.json", "serve.jsonl"],
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a report of each group of committed records."""
    folder = tmp_path_factory.mktemp("reports")
    for name, files in RECORDS.items():
        write_report(read_sources([RESULTS / file for file in files]), folder / f"{name}.html")
    return folder


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as running:
        yield running


@pytest.mark.parametrize(
    ("records", "name", "width", "scheme"),
    [*(("one", *look) for look in LOOKS), *(("many", *look) for look in LOOKS if look[2] == "light")],
)
def test_the_first_screen_says_what_on_what_and_what_next(
    pages: Path, chromium: Any, records: str, name: str, width: int, scheme: str
) -> None:
    """Three headings, each with its first line, on a screen of usual size; a picture is kept."""
    size = {"width": width, "height": HEIGHTS[width]}
    with watched(chromium, pages.as_uri(), f"/{records}.html", viewport=size, color_scheme=scheme) as (
        page,
        complaints,
    ):
        found = page.locator(".first section")
        assert found.locator("h2").all_inner_texts() == HEADINGS
        for part in found.all():
            for inside in (part.locator("h2"), part.locator("li").first):
                box = inside.bounding_box()
                assert box["x"] >= 0
                assert box["x"] + box["width"] <= width
                assert box["y"] >= 0
                assert box["y"] + box["height"] <= size["height"]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert complaints == []
        if records == "one":
            SCREENSHOTS.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=SCREENSHOTS / f"report-{name}.png")
