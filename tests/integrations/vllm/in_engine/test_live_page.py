"""The live page of a real ``vllm serve`` under load, in a real browser, and ``sere top`` beside it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from tests.support.browser import LOOKS, SCREENSHOTS, browser, until, watched
from tests.support.graph_page import picture_of_graphs
from tests.support.keyboard import press, spoken, tab
from tests.support.patience import HANGS_MS
from tests.support.prometheus import LAST, QUERIES, check_alerts, needs, prometheus, query, values, wait_for
from tests.support.vllm.live_server import KEY, call, live_server, loaded, unlock
from tests.support.vllm.server import Server

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, int]]:
    """A server under load until the tests end, and its port for metrics."""
    with live_server(tmp_path_factory.mktemp("served")) as (running, port), loaded(running):
        yield running, port


@pytest.fixture
def server(served: tuple[Server, int]) -> Server:
    """The server with the settings of its start, whatever another test has set."""
    call(served[0], "/v1/sere/settings", {"tier": "safe", "select_top_k": 1, "enabled": True})
    return served[0]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as running:
        yield running


READ = "[...document.querySelectorAll('.bar-after')].reduce((sum, bar) => sum + Number(bar.dataset.value), 0)"


def test_the_page_follows_and_steers_the_engine(server: Server, chromium: Any) -> None:
    """Bars move with the tier, for a second viewer too; what is refused says why, and nothing complains."""
    with watched(chromium, server.url) as (page, complaints), watched(chromium, server.url) as (other, _):
        for viewer in (page, other):
            unlock(viewer)
            until(viewer, f"{READ} > 6 * 16")
        page.fill("#admin-key", server.admin_key)
        page.select_option("#tier", "fast")
        page.click("#set-tier")
        for viewer in (page, other):
            until(viewer, f"{READ} > 0 && {READ} <= 6 * 12")
            assert "tier: safe → fast" in viewer.inner_text("#changes")
            assert viewer.inner_text("#state-text") == "On, tier fast"
            assert viewer.input_value("#tier") == "fast"
        page.fill("#active", "24")
        page.press("#active", "Enter")
        until(page, f"{READ} > 6 * 16")
        page.fill("#top", "3")
        page.click("#set-top")
        for viewer in (page, other):
            until(viewer, "document.getElementById('changes').textContent.includes('(S): 1 → 3')")
            assert "slots that keep theirs (S)\n3\n" in viewer.inner_text("#settings")
        page.click("#switch")
        until(page, "document.getElementById('state-text').textContent === 'Off'")
        page.click("#switch")
        until(page, "document.getElementById('state-text').textContent === 'On'")
        page.click("#reset")
        until(page, "document.getElementById('changes').textContent.includes('set to zero')")
        page.select_option("#tier", "safe")
        page.click("#set-tier")
        until(page, "document.getElementById('answer').textContent.includes('safe')")
        # The browser itself notes the first answer, 401, on its console.
        assert [text for text in complaints if "401" not in text] == []


LINES = [
    "Experts", "Weights not read", "Rows per step", "Slots re-routed", "Critical experts", "Steps per second",
]  # fmt: skip


def test_the_keyboard_is_enough(server: Server, chromium: Any) -> None:
    """Tab reaches everything in the order of the page, visibly; keys move in charts and change the engine."""
    with watched(chromium, server.url) as (page, complaints):
        page.wait_for_selector("#server-key:focus", timeout=HANGS_MS)
        assert tab(page, key="Shift+Tab") == ["Skip to the figures"]
        assert tab(page) == ["server-key"]
        page.keyboard.type(KEY)
        page.keyboard.press("Enter")
        page.wait_for_selector("#main:focus", timeout=HANGS_MS)
        until(page, f"{READ} > 6")

        assert tab(page) == ["layers"]
        for key, layer in (("ArrowRight", 0), ("ArrowRight", 1), ("End", 5), ("ArrowLeft", 4), ("Home", 0)):
            page.keyboard.press(key)
            assert page.inner_text("#layers-when").startswith(f"Layer {layer}: ")
        assert tab(page) == ["As a table"]
        page.keyboard.press("Space")
        page.wait_for_selector("#layers-table:visible", timeout=HANGS_MS)
        assert tab(page) == ["Experts by layer as a table"]
        assert tab(page, len(LINES)) == [f"{name} over time" for name in LINES]
        chart = page.get_by_role("slider").last
        for key, seconds in (("ArrowLeft", -10), ("ArrowDown", -20), ("ArrowRight", -10)):
            page.keyboard.press(key)
            assert abs(int(chart.get_attribute("aria-valuenow")) - seconds) <= 2
        page.keyboard.press("Home")
        assert -900 <= int(chart.get_attribute("aria-valuenow")) <= -120
        page.keyboard.press("End")

        assert tab(page) == ["admin-key"]
        page.keyboard.type(server.admin_key)
        assert tab(page) == ["switch"]
        press(page, "Space", "re-routing: off")
        press(page, "Enter", "re-routing: on")
        assert tab(page) == ["tier"]
        page.keyboard.press("f")
        assert tab(page) == ["set-tier"]
        press(page, "Enter", "tier: fast")
        assert tab(page) == ["active"]
        page.keyboard.type("20")
        press(page, "Enter", "(M): 20")
        assert tab(page, 2) == ["set-active", "top"]
        page.keyboard.type("2")
        assert tab(page) == ["set-top"]
        press(page, "Space", "(S): 2")
        assert tab(page) == ["reset"]
        press(page, "Space", "all counters are zero")
        assert tab(page) == ["changes"]

        heard = spoken(page)
        wanted = {
            "slider": [f"{name} over time" for name in LINES],
            "figure": LINES,
            "textbox": ["Operator's key", "Experts a step may read (M)", "Slots that keep their expert (S)"],
            "button": ["Set the tier", "Set M", "Set S", "Set all counters to zero"],
            "switch": ["Re-routing"],
            "combobox": ["Tier of the table"],
            "table": ["Means per step of each layer"],
        }
        assert {role: heard.get(role) for role in wanted} == wanted
        assert "Experts by layer; arrow keys go from layer to layer" in heard["group"]
        assert len(heard["article"]) == 6
        assert [text for text in complaints if "401" not in text] == []


def test_what_is_refused_says_why(server: Server, chromium: Any) -> None:
    """Another operator's key, and a value that no engine takes, are refused with the server's reason."""
    with watched(chromium, server.url) as (page, _):
        unlock(page)
        page.fill("#admin-key", "another")
        page.click("#set-top")
        page.wait_for_selector("#refusal:has-text('expected the key of SERE_ADMIN_KEY')", timeout=HANGS_MS)
        page.fill("#admin-key", server.admin_key)
        page.fill("#active", "many")
        page.click("#set-active")
        page.wait_for_selector(
            "#refusal:has-text('Refused (400): active_experts: expected')", timeout=HANGS_MS
        )


def test_another_key_opens_nothing(server: Server, chromium: Any) -> None:
    """Without the server's key the page shows no figures, and with another one it says so."""
    with watched(chromium, server.url) as (page, _):
        unlock(page, "another")
        page.wait_for_selector("#banner:has-text('does not accept this key')", timeout=HANGS_MS)
        assert not page.is_visible("#main")


def test_the_port_for_metrics_shows_and_changes_nothing(served: tuple[Server, int], chromium: Any) -> None:
    """The page is there without a key, for whoever may reach that port; it has no controls."""
    with watched(chromium, f"http://127.0.0.1:{served[1]}") as (page, complaints):
        until(page, f"{READ} > 6")
        assert "nothing can be changed on the port for metrics" in page.inner_text("#read-only")
        assert not page.is_visible("#steer")
        assert complaints == []


@pytest.mark.parametrize(("name", "width", "scheme"), LOOKS)
def test_pictures(server: Server, chromium: Any, name: str, width: int, scheme: str) -> None:
    """In both color schemes and on a phone nothing is wider than the screen; pictures are kept."""
    size = {"width": width, "height": 860}
    with watched(chromium, server.url, viewport=size, color_scheme=scheme) as (page, _):
        unlock(page)
        until(page, f"{READ} > 6")
        page.wait_for_timeout(3000)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.screenshot(path=SCREENSHOTS / f"live-page-{name}.png", full_page=True)


def test_a_server_that_does_not_answer_is_shown(server: Server, chromium: Any) -> None:
    """While the server's process stands still the page says so, and goes on when it does."""
    with watched(chromium, server.url) as (page, _):
        unlock(page)
        page.wait_for_selector("#main:visible", timeout=HANGS_MS)
        os.kill(server.pid, signal.SIGSTOP)
        try:
            page.wait_for_selector("#state-text:has-text('No answer')", timeout=HANGS_MS)
            assert "has not answered for 10 s. Last seen at" in page.inner_text("#banner")
        finally:
            os.kill(server.pid, signal.SIGCONT)
        page.wait_for_selector("#banner", state="hidden", timeout=HANGS_MS)
        page.wait_for_selector("#state-text:has-text('On')", timeout=HANGS_MS)


def top(url: str, *options: str, key: str = KEY) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sere", "top", url, *options]
    environment = os.environ | {"VLLM_API_KEY": key, "NO_COLOR": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_top_reads_a_real_server(server: Server) -> None:
    """``sere top`` prints each layer, and its answer as JSON; with another key it says what to do."""
    shown = top(server.url, "--once")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert (
        sum(line.split()[:1] == [str(layer)] for layer in range(6) for line in shown.stdout.splitlines()) == 6
    )
    found = json.loads(top(f"{server.url}/sere/", "--once", "--json").stdout)
    assert found["now"]["estimate"]["speedup"] > 1
    assert found["now"]["recent"]["seconds"] > 0
    refused = top(server.url, "--once", key="another")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "the server asks for its key; set VLLM_API_KEY to it" in refused.stderr


# The engine answers between its steps, and other tests may take turns with it.
EVERY = "2s"


@needs("prometheus")
def test_a_real_prometheus_reads_it(server: Server, tmp_path: Path) -> None:
    """With the key: all queries of the dashboard have numbers, no alert fires, values are the statistics'."""
    target = server.url.removeprefix("http://")
    with prometheus(tmp_path, target, 3, every=EVERY, authorization={"credentials": KEY}) as port:
        found = {(title, text): values(port, text) for title, text in QUERIES}
        assert [title for (title, _), numbers in found.items() if not numbers] == []
        assert all(value >= 0 for numbers in found.values() for value in numbers)
        check_alerts(port)
        call(server, "/v1/sere/settings", {"enabled": False})
        try:
            # From here on no layer counts, so that both are of the same moment.
            wait_for(port, "sere_enabled == 0")
            layers = call(server, "/v1/sere/stats")["layers"]
            steps, after = (values(port, f"sere_layer_{name}_total") for name in ("steps", "distinct_after"))
        finally:
            call(server, "/v1/sere/settings", {"enabled": True})
    assert steps == [layer["steps"] for layer in layers]
    assert after == pytest.approx([layer["steps"] * layer["distinct_after"] for layer in layers])


@needs("prometheus")
def test_a_picture_of_prometheus(server: Server, chromium: Any, tmp_path: Path) -> None:
    """Its own page draws each query of the dashboard while the tier changes; a picture is kept."""
    read = "sum(rate(sere_layer_distinct_after_total[6s])) / sum(rate(sere_layer_steps_total[6s]))"
    with prometheus(tmp_path, server.url[7:], 5, every=EVERY, authorization={"credentials": KEY}) as port:
        wait_for(port, f"{read} > 12")
        call(server, "/v1/sere/settings", {"tier": "fast"})
        wait_for(port, f"{read} < 12")
        ((_, end),) = (one["value"] for one in query(port, f"{LAST} + 8"))
        wait_for(port, f"{LAST} > {end}")
        assert len(query(port, f"count by (tier) (last_over_time(sere_tier[40s] @ {end}))")) == 2
        picture_of_graphs(chromium, port, QUERIES, 40, float(end), SCREENSHOTS / "prometheus.png")


def test_nobody_looks_nobody_asks(server: Server, tmp_path: Path) -> None:
    """Without viewers no point is added: the lines have a gap until somebody looks again."""
    points = []
    for _ in range(2):
        points.append(call(server, "/v1/sere/live")["points"])
        threading.Event().wait(3)
    assert points[1][-1]["seconds"] >= 3


# The last one: the others need the server.
def test_a_server_that_ends_is_shown(server: Server, chromium: Any) -> None:
    """Each page that is open says that the server stopped, when it was last seen, and what it showed."""
    with watched(chromium, server.url) as (page, complaints), watched(chromium, server.url) as (other, _):
        for viewer in (page, other):
            unlock(viewer)
            until(viewer, f"{READ} > 6")
        os.kill(server.pid, signal.SIGTERM)
        for viewer in (page, other):
            until(viewer, "document.getElementById('state-text').textContent === 'Server stopped'")
            assert "The server does not answer. Is it stopped? Last seen at" in viewer.inner_text("#banner")
            assert viewer.is_visible("#layers .bar-after")
        # The browser itself notes each answer that fails.
        assert [text for text in complaints if "Failed to load resource" not in text] == []
