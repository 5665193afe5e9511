"""Without scrolling, a reader sees what was measured, on what, and what to do next; in a real browser.

Below, each plot is whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sere.bundled import BUNDLED
from sere.calibrate import calibrate
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
    # One model, and a plot of each kind.
    "plots": ["eval.json", "tune-abacus.json", "demo.json"],
}
# Of the plots, a picture has so many pixels in width that its words can be read in a document.
PLOTS_WIDTH = 1100


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a report of each group of committed records."""
    folder = tmp_path_factory.mktemp("reports")
    table = folder / "abacus.sere"
    calibrate(BUNDLED, metric="weights", progress=False).save(table)
    for name, files in RECORDS.items():
        paths = [*(RESULTS / file for file in files), *[table] * (name == "plots")]
        write_report(read_sources(paths), folder / f"{name}.html")
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


# For each plot, the texts that its card cuts off, and whether it draws anything.
CUT = """() => [...document.querySelectorAll('.plot')].map((plot) => {
  const card = plot.getBoundingClientRect();
  const beyond = ({ left, right, top, bottom }) =>
    left < card.left || right > card.right || top < card.top || bottom > card.bottom;
  const texts = [...plot.querySelectorAll('.main-svg text')];
  return {
    name: plot.getAttribute('aria-label'),
    texts: texts.length,
    cut: texts.filter((text) => beyond(text.getBoundingClientRect())).map((text) => text.textContent),
  };
})"""


def test_each_plot_is_whole(pages: Path, chromium: Any) -> None:
    """No number, name or title is cut off at a plot's edge, nor a task's column; pictures are kept."""
    size = {"width": PLOTS_WIDTH, "height": HEIGHTS[1280]}
    with watched(chromium, pages.as_uri(), "/plots.html", viewport=size, color_scheme="light") as (
        page,
        complaints,
    ):
        plots = page.evaluate(CUT)
        assert len(plots) == 6
        assert [(one["name"], one["cut"]) for one in plots if one["cut"] or one["texts"] < 8] == []
        by_task = page.locator("details[open] .scroll").first
        assert by_task.evaluate("one => one.scrollWidth <= one.clientWidth")
        assert complaints == []
        ends = [one.bounding_box()["y"] for one in page.locator("h3").all()]
        bottom = page.locator(".plot").last.bounding_box()
        heads = page.locator("h3").all_inner_texts()
        assert heads[0].startswith("The frontier")
        assert heads[1] == "By task"
        tuning = ends[heads.index("The tuning: loss over experts")]
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        for name, top, end in (
            ("report-frontier", ends[0], ends[2]),
            ("report-plots", tuning, bottom["y"] + bottom["height"] + 40),
        ):
            part = {"x": 0, "y": top - 20, "width": PLOTS_WIDTH, "height": end - top}
            page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True, clip=part)
