"""The live page on the port for metrics: read only, off unless asked for, and beside the metrics."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from sere.integrations.vllm.worker.live_port import LivePort
from tests.support.browser import browser, until, watched
from tests.support.patience import HANGS_MS, HANGS_S
from tests.support.vllm.metrics import HOST, report_without_layers, serve_metrics
from tests.support.vllm.server import free_port

pytest.importorskip("prometheus_client", reason="comes with vLLM: make test-vllm")

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]

# The points of the longest line that the page draws.
DRAWN = """Math.max(0, ...[...document.querySelectorAll('#lines path.line')]
  .map((line) => line.getAttribute('d').split(/[ML]/).length - 1))"""


@contextmanager
def served(read: Any, *, live_page: bool) -> Iterator[str]:
    port = free_port()
    close = serve_metrics(read, HOST, port, live_page=live_page)
    try:
        yield f"http://{HOST}:{port}"
    finally:
        close()


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=HANGS_S) as answer:
        return str(answer.read().decode())


def test_page_figures_and_metrics_share_a_port() -> None:
    """All three are there; the figures say that nothing can be changed here."""
    with served(lambda: report_without_layers(rerouted=3), live_page=True) as url:
        assert "<!doctype html>" in get(f"{url}/sere/")
        found = json.loads(get(f"{url}/v1/sere/live?since=2"))
        assert found["now"]["steps"]["rerouted"] == 3
        assert "nothing can be changed on the port for metrics" in found["read_only"]
        assert 'sere_steps_total{kind="rerouted"} 3.0' in get(f"{url}/metrics")


def test_off_unless_asked_for() -> None:
    """Without the setting the page is not there, and the figures are, as the metrics are."""
    with served(report_without_layers, live_page=False) as url:
        with pytest.raises(urllib.error.HTTPError) as refused:
            get(f"{url}/sere/")
        with refused.value as answer:
            assert (answer.code, b'"live_page": true' in answer.read()) == (404, True)
        assert json.loads(get(f"{url}/v1/sere/live"))["points"] == []


def test_one_report_is_one_answer() -> None:
    """A report that is given again, within a second, makes no further point for a further viewer."""
    reports = [report_without_layers(rerouted=1), report_without_layers(rerouted=4)]
    given = iter([reports[0], reports[0], reports[1], reports[1]])
    port = LivePort(lambda: next(given), lambda *_: [], live_page=False)
    bodies = [b"".join(port({"PATH_INFO": "/v1/sere/live"}, lambda *_: None)) for _ in range(4)]
    assert bodies[0] == bodies[1]
    assert bodies[2] == bodies[3]
    assert [one["steps"] for one in json.loads(bodies[3])["points"]] == [{"rerouted": 3}]


def test_an_older_report_never_follows_a_newer_one() -> None:
    """Of two viewers at once, the later one waits: counters that go back would look like a reset."""
    reading, reports = threading.Event(), iter([3, 5])

    def read() -> dict[str, Any]:
        count = next(reports)
        if count == 3:
            reading.set()
            # Time for the other viewer to be answered first.
            time.sleep(0.2)
        return report_without_layers(rerouted=count)

    port = LivePort(read, lambda *_: [], live_page=False)

    def look() -> Any:
        return json.loads(b"".join(port({"PATH_INFO": "/v1/sere/live"}, lambda *_: None)))

    with ThreadPoolExecutor(1) as other:
        first = other.submit(look)
        assert reading.wait(HANGS_S)
        second = look()
        assert first.result()["now"]["changes"] == []
    assert second["now"]["steps"]["rerouted"] == 5


def test_a_stopped_server_is_shown() -> None:
    """In a browser: a page whose server has ended says so, and since when, and keeps the last figures."""
    port = free_port()
    close = serve_metrics(lambda: report_without_layers(rerouted=3), HOST, port, live_page=True)
    try:
        with browser() as running, watched(running, f"http://{HOST}:{port}") as (page, complaints):
            page.wait_for_selector("#steps:has-text('3 (100 %)')", timeout=HANGS_MS)
            assert complaints == []
            close()
            page.wait_for_selector("#banner:has-text('does not answer. Is it stopped? Last seen at')")
            page.wait_for_selector("#state-text:has-text('Server stopped')")
            assert "3 (100 %)" in page.inner_text("#steps")
    finally:
        close()


def test_a_server_that_was_started_again_begins_new_lines() -> None:
    """In a browser: an open page drops the points of the server before, so that no line leads across."""
    port, count = free_port(), iter(range(10**6))

    def read() -> dict[str, Any]:
        return report_without_layers(rerouted=next(count))

    close = serve_metrics(read, HOST, port, live_page=True)
    try:
        with browser() as running, watched(running, f"http://{HOST}:{port}") as (page, _):
            until(page, f"{DRAWN} >= 4")
            close()
            page.wait_for_selector("#state-text:has-text('Server stopped')")
            assert page.evaluate(DRAWN) >= 4
            close = serve_metrics(read, HOST, port, live_page=True)
            until(page, f"{DRAWN} < 4")
            assert not page.is_visible("#banner")
    finally:
        close()
