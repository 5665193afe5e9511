"""The graph page that comes with Prometheus."""

from __future__ import annotations

import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import until
from tests.support.vllm.metrics import HOST

# Debian's package has this form of the page only.
_PATH = "/classic/graph"


def picture_of_graphs(running: Any, port: int, queries: Sequence[str], seconds: int, path: Path) -> None:
    """Let Prometheus draw queries of a dashboard over the last seconds, and take a picture.

    Args:
        running: The browser.
        port: Of Prometheus.
        queries: With a dashboard's variables, which stand for everything.
        seconds: How much of the past is drawn.
        path: Where the picture goes, as PNG.
    """
    options: dict[str, Any] = {}
    for at, query in enumerate(queries):
        text = query.replace("$__rate_interval", "5s").replace('{job=~"$job",instance=~"$instance"}', "")
        options |= {f"g{at}.expr": text, f"g{at}.tab": 0, f"g{at}.range_input": f"{seconds}s"}
        options |= {f"g{at}.step_input": 1}
    page = running.new_page(viewport={"width": 1280, "height": 1100})
    page.set_default_timeout(120_000)
    answer = page.goto(f"http://{HOST}:{port}{_PATH}?{urllib.parse.urlencode(options)}")
    if answer.status == 404:
        pytest.skip(f"needs a Prometheus with the page {_PATH} (apt: prometheus)")
    until(page, f"[...document.querySelectorAll('.graph svg')].filter((one) => one.querySelector('path'))"
                f".length === {len(queries)}")  # fmt: skip
    page.screenshot(path=path)
    page.close()
