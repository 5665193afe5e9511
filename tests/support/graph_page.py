"""The graph page that comes with Prometheus."""

from __future__ import annotations

import urllib.parse
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import until
from tests.support.vllm.metrics import HOST

# Debian's package has this form of the page only.
_PATH = "/classic/graph"


def picture_of_graph(running: Any, port: int, query: str, seconds: int, path: Path) -> None:
    """Let Prometheus draw a query of a dashboard over the last seconds, and take a picture.

    Args:
        running: The browser.
        port: Of Prometheus.
        query: With a dashboard's variables, which stand for everything.
        seconds: How much of the past is drawn.
        path: Where the picture goes, as PNG.
    """
    text = query.replace("$__rate_interval", "5s").replace('{job=~"$job",instance=~"$instance"}', "")
    options = {"g0.expr": text, "g0.tab": 0, "g0.range_input": f"{seconds}s", "g0.step_input": 1}
    page = running.new_page(viewport={"width": 1280, "height": 884})
    page.set_default_timeout(120_000)
    answer = page.goto(f"http://{HOST}:{port}{_PATH}?{urllib.parse.urlencode(options)}")
    if answer.status == 404:
        pytest.skip(f"needs a Prometheus with the page {_PATH} (apt: prometheus)")
    until(page, "document.querySelector('.graph svg path') !== null")
    path.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=path)
    page.close()
