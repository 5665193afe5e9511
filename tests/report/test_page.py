"""The page: one file, no address, nothing of a record becomes markup, and a real browser draws it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sere.errors import ConfigError, MissingDependency
from sere.report.html import breakable
from sere.report.page import render
from sere.report.plots import plotly
from sere.report.read import Source, read_sources, source_of
from tests.support.browser import browser, watched
from tests.support.records import answers, divergences, evaluation, timing, tuning
from tests.support.report_page import figures
from tests.support.tables import saved

needs_plotly = pytest.mark.skipif(
    __import__("importlib.util").util.find_spec("plotly") is None, reason="needs plotly, the extra report"
)


def sources(folder: Path) -> list[Source]:
    """One of everything."""
    records = [
        evaluation(),
        divergences(),
        tuning(),
        timing("off", 8, 1.0),
        timing("sere", 8, 1.2),
        timing("sere", 16, 1.4),
    ]
    return [*(source_of(record, "one.json") for record in records), *read_sources([saved(folder)])]


def without_library(text: str) -> str:
    """The page without the plotting library's script."""
    return max(re.split(r"<script>.{100000,}?</script>", text, flags=re.DOTALL), key=len)


@needs_plotly
def test_all_parts_are_drawn(tmp_path: Path) -> None:
    """Frontiers, tuning, speed, layers and maps, with the first screen above and the sources below."""
    text = without_library(render(sources(tmp_path)))
    heads = re.findall(r"<h[23]>(.*?)</h[23]>", text)
    assert heads[:3] == ["What was measured", "On what", "What to do next"]
    wanted = [
        "The frontier: right answers over experts",
        "By task",
        "The tuning: loss over experts",
        "Speed: time per output token",
        "Layers: what each may read",
        "Similarity maps",
        "The frontier: divergence from the unmodified model over experts",
        "Where the numbers come from",
    ]
    assert set(wanted) <= {*heads}
    assert len(figures(text)) == 6


@needs_plotly
def test_points_of_the_frontier_are_those_of_the_record() -> None:
    """Experts to the right, answers up, the interval as bars, the setting under the pointer."""
    (frontier, _) = figures(render([source_of(evaluation(), "one.json")])).values()
    (sere,) = [trace for trace in frontier["data"] if trace["name"] == "sere"]
    assert sere["x"] == [12.0, 24.0]
    assert sere["y"] == pytest.approx([50.0, 89.0])
    assert sere["error_y"]["array"] == pytest.approx([5.0, 5.0])
    assert sere["customdata"][1][:2] == ["sere:active_experts=24", "89.0 (84.0 to 94.0)"]
    assert {trace["name"] for trace in frontier["data"]} == {"off", "sere", "drop"}


@needs_plotly
def test_the_page_asks_no_address() -> None:
    """All scripts and styles are inside, and the page itself forbids any other."""
    text = render([source_of(evaluation(), "one.json")])
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=", without_library(text))
    assert "default-src 'none'" in text
    assert len(re.findall(r"<script>", without_library(text))) <= 1
    assert text.count("plotly.js v") == 1


@needs_plotly
def test_names_in_records_are_text() -> None:
    """Whoever wrote a record writes no markup into the page."""
    bad = '</script><img src=x onerror="alert(1)">'
    record = evaluation(
        answers("off", 40, 0.9), answers(bad, 24, 0.9), model=evaluation()["model"] | {"name": bad}
    )
    text = without_library(render([source_of(record, bad)]))
    assert "<img" not in text


def test_long_settings_break_after_their_commas() -> None:
    """Numbers and sentences do not; nothing in them becomes markup."""
    assert breakable("sere:a=1,b=<2>, 51,200") == "sere:a=1,<wbr>b=&lt;2&gt;, 51,200"


@needs_plotly
def test_layers_are_chosen_and_checked(tmp_path: Path) -> None:
    """One that the table lacks is named."""
    (maps,) = figures(render(read_sources([saved(tmp_path)]), layers=[3])).values()
    assert [note["text"] for note in maps["layout"]["annotations"]] == ["layer 3"]
    with pytest.raises(ConfigError, match=r"--layer: expected layers of the table \(1, 3\), got 7"):
        render(read_sources([saved(tmp_path)]), layers=[7])


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With how to install it."""
    monkeypatch.setitem(__import__("sys").modules, "plotly", None)
    plotly.cache_clear()
    with pytest.raises(MissingDependency, match=r"a report needs plotly: .*'\.\[report\]'"):
        render([source_of(evaluation(), "one.json")])
    plotly.cache_clear()


@needs_plotly
def test_a_browser_draws_every_plot_without_an_error(tmp_path: Path) -> None:
    """As many drawings as plots, in the theme's colors, and nothing on the browser's console."""
    (tmp_path / "report.html").write_text(render(sources(tmp_path)), encoding="utf-8")
    with browser() as running, watched(running, tmp_path.as_uri(), "/report.html") as (page, complaints):
        assert page.locator(".plot.js-plotly-plot .main-svg").count() >= 6
        assert page.locator(".plot.js-plotly-plot").count() == 6
        styles = page.evaluate(
            "[...document.querySelectorAll('path')].map((path) => path.getAttribute('style'))"
        )
        assert len(styles) > 6
        assert "var(--" not in str(styles)
        assert complaints == []
