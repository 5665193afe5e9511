"""The graph page that comes with Prometheus."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import until
from tests.support.vllm.metrics import HOST

# Debian's package has this form of the page only.
_PATH = "/classic/graph"
# Two columns of lower graphs, without what a person would press, and with each second time below them.
_STYLE = """
.fixed-top { position: absolute; }
#graph_container { display: grid; grid-template-columns: 1fr 1fr; gap: 0 8px; overflow: hidden; }
#graph_container > .clearfix, .graph_container > .clearfix, .form-inline, .nav-tabs, .query_form .col-lg-2,
#add_graph, [name=remove] { display: none !important; }
.graph_wrapper { min-width: 0; }
.query_form .col-lg-10 { max-width: 100%; flex: 0 0 100%; }
.expression_input { font: 13px/1.4 monospace; }
.tab-pane { border: 0; }
.graph { min-height: 170px; }
.x_tick:nth-child(even) .title { display: none; }
.rickshaw_legend .line { display: inline-block; padding-right: 10px; }
"""
# Each has a line, which is drawn with L; axes are drawn without.
_DRAWN = """[...document.querySelectorAll('.graph_wrapper')]
  .filter((one) => one.querySelector('.graph path[d*=L]')).length"""


def picture_of_graphs(
    running: Any, port: int, queries: Iterable[tuple[str, str]], seconds: int, end: float, path: Path
) -> None:
    """Let Prometheus draw queries of a dashboard over some seconds on one page, and take a picture.

    Args:
        running: The browser.
        port: Of Prometheus.
        queries: Titles, drawn as a comment of the query, and queries with a dashboard's variables, which
            stand for everything.
        seconds: How much is drawn.
        end: Up to when, in seconds since 1970: however long it takes to draw, all graphs have the same time.
        path: Where the picture goes, as PNG.
    """
    page = running.new_page(viewport={"width": 1040, "height": 884})
    page.set_default_timeout(120_000)
    answer = page.goto(f"http://{HOST}:{port}{_PATH}")
    if answer.status == 404:
        pytest.skip(f"needs a Prometheus with the page {_PATH} (apt: prometheus)")
    until(page, "document.querySelector('.graph_wrapper') !== null")
    page.add_style_tag(content=_STYLE)
    page.evaluate("(end) => { Prometheus.Graph.prototype.getEndDate = () => moment(end); }", 1000 * end)
    # Its address takes ten graphs; the page itself takes more.
    page.evaluate("document.querySelector('[name=remove]').click()")
    graphs = [
        {"expr": f"# {title}\n{_filled(text)}", "tab": 0, "range_input": f"{seconds}s", "step_input": 1}
        for title, text in queries
    ]
    page.evaluate("(graphs) => graphs.forEach((one) => new Prometheus.Page().addGraph(one))", graphs)
    until(page, f"{_DRAWN} === {len(graphs)}")
    # As high as its text; none has the focus, and the page is where it begins.
    page.evaluate("document.querySelectorAll('textarea').forEach((one) => { one.click(); one.blur(); })")
    page.evaluate("window.scrollTo(0, 0)")
    path.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=path, full_page=True)
    page.close()


def _filled(query: str) -> str:
    """Return a query without the dashboard's variables."""
    everything = 'job=~"$job",instance=~"$instance"'
    for given, short in ((f"{{{everything}}}", ""), (f"{everything},", ""), ("$__rate_interval", "5s")):
        query = query.replace(given, short)
    return query
