"""The live page of a real ``vllm serve`` under load, in a real browser, and ``sere top`` beside it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from sere.bundled import model_path
from sere.integrations.vllm.client.admin_key import HEADER
from tests.support.browser import LOOKS, SCREENSHOTS, browser, until, watched
from tests.support.prometheus import ALERTS, QUERIES, needs, prometheus, rules, values, wait_for
from tests.support.vllm.server import Server, free_port, serve

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]

KEY = "clients"
PORT = free_port()
WAIT_MS = 60_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the page, a key for clients, and a table of two tiers."""
    from transformers import AutoModelForCausalLM

    from sere.bench.target import random_table
    from sere.table.tiers import Tier

    folder = tmp_path_factory.mktemp("served")
    table = random_table(AutoModelForCausalLM.from_pretrained(model_path()))
    tiers = {"safe": Tier("safe", active_experts=24), "fast": Tier("fast", active_experts=6)}
    table.with_tiers(tiers).save(folder / "table.safetensors")
    settings = {"table": str(folder / "table.safetensors"), "tier": "safe", "live_page": True}
    settings |= {"metrics_port": PORT}
    with serve(model_path(), settings, folder, "--enforce-eager", "--api-key", KEY) as running:
        yield running


@pytest.fixture(scope="module", autouse=True)
def _load(server: Server) -> Iterator[None]:
    """Eight clients that ask for completions until the tests end."""
    ended = threading.Event()
    clients = [threading.Thread(target=ask, args=(server, one, ended)) for one in range(8)]
    for client in clients:
        client.start()
    yield
    ended.set()
    for client in clients:
        client.join()


def ask(server: Server, one: int, ended: threading.Event) -> None:
    body = {"model": "tiny", "prompt": f"add {one}4 {one + 1}7 = ", "max_tokens": 100, "ignore_eos": True}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    url = f"{server.url}/v1/completions"
    while not ended.is_set():
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        with suppress(OSError), urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as running:
        yield running


def unlock(page: Any, key: str = KEY) -> None:
    page.fill("#server-key", key)
    page.press("#server-key", "Enter")


READ = "[...document.querySelectorAll('.bar-after')].reduce((sum, bar) => sum + Number(bar.dataset.value), 0)"


def test_the_page_follows_and_steers_the_engine(server: Server, chromium: Any) -> None:
    """Bars move with the tier, for a second viewer too; what is refused says why, and nothing complains."""
    with (
        watched(chromium, server.url) as (page, complaints),
        watched(chromium, server.url) as (other, _),
    ):
        unlock(page)
        unlock(other)
        for viewer in (page, other):
            until(viewer, f"{READ} > 6 * 16")
        page.fill("#admin-key", server.admin_key)
        page.select_option("#tier", "fast")
        page.click("#set-tier")
        for viewer in (page, other):
            until(viewer, f"{READ} > 0 && {READ} <= 6 * 12")
            assert "tier: safe → fast" in viewer.inner_text("#changes")
            assert viewer.inner_text("#state-text") == "On, tier fast"
        page.fill("#active", "24")
        page.press("#active", "Enter")
        until(page, f"{READ} > 6 * 16")
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


def test_what_is_refused_says_why(server: Server, chromium: Any) -> None:
    """Another operator's key, and a value that no engine takes, are refused with the server's reason."""
    with watched(chromium, server.url) as (page, _):
        unlock(page)
        page.fill("#admin-key", "another")
        page.click("#set-top")
        page.wait_for_selector("#refusal:has-text('expected the key of SERE_ADMIN_KEY')", timeout=WAIT_MS)
        page.fill("#admin-key", server.admin_key)
        page.fill("#active", "many")
        page.click("#set-active")
        page.wait_for_selector(
            "#refusal:has-text('Refused (400): active_experts: expected')", timeout=WAIT_MS
        )


def test_another_key_opens_nothing(server: Server, chromium: Any) -> None:
    """Without the server's key the page shows no figures, and with another one it says so."""
    with watched(chromium, server.url) as (page, _):
        unlock(page, "another")
        page.wait_for_selector("#banner:has-text('does not accept this key')", timeout=WAIT_MS)
        assert not page.is_visible("#main")


def test_the_port_for_metrics_shows_and_changes_nothing(server: Server, chromium: Any) -> None:
    """The page is there without a key, for whoever may reach that port; it has no controls."""
    with watched(chromium, f"http://127.0.0.1:{PORT}") as (page, complaints):
        until(page, f"{READ} > 6")
        assert "nothing can be changed on the port for metrics" in page.inner_text("#read-only")
        assert not page.is_visible("#steer")
        assert complaints == []


@pytest.mark.parametrize(("name", "width", "scheme"), LOOKS)
def test_pictures(server: Server, chromium: Any, name: str, width: int, scheme: str) -> None:
    """In both color schemes and on a phone nothing is wider than the screen; pictures are kept."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    size = {"width": width, "height": 860}
    with watched(chromium, server.url, viewport=size, color_scheme=scheme) as (page, _):
        unlock(page)
        until(page, f"{READ} > 6")
        page.wait_for_timeout(5000)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.screenshot(path=SCREENSHOTS / f"live-page-{name}.png", full_page=True)


def test_a_server_that_does_not_answer_is_shown(server: Server, chromium: Any) -> None:
    """While the server's process stands still the page says so, and goes on when it does."""
    with watched(chromium, server.url) as (page, _):
        unlock(page)
        page.wait_for_selector("#main:visible", timeout=WAIT_MS)
        os.kill(server.pid, signal.SIGSTOP)
        try:
            page.wait_for_selector("#state-text:has-text('No answer')", timeout=WAIT_MS)
            assert "has not answered for 10 s. Last seen at" in page.inner_text("#banner")
        finally:
            os.kill(server.pid, signal.SIGCONT)
        page.wait_for_selector("#banner", state="hidden", timeout=WAIT_MS)
        page.wait_for_selector("#state-text:has-text('On')", timeout=WAIT_MS)


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


def call(server: Server, path: str, body: Any = None) -> Any:
    """Ask the server with both keys; what it answers."""
    headers = {"Authorization": f"Bearer {KEY}", HEADER: server.admin_key, "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(
        urllib.request.Request(f"{server.url}{path}", data, headers), timeout=30
    ) as answer:
        return json.load(answer)


@needs("prometheus")
def test_a_real_prometheus_reads_it(server: Server, tmp_path: Path) -> None:
    """With the key: all queries of the dashboard have numbers, no alert fires, values are the statistics'."""
    target = server.url.removeprefix("http://")
    with prometheus(tmp_path, target, 8, authorization={"credentials": KEY}) as port:
        found = {(title, text): values(port, text) for title, text in QUERIES}
        assert [title for (title, _), numbers in found.items() if not numbers] == []
        assert all(value >= 0 for numbers in found.values() for value in numbers)
        alerts = rules(port)
        assert {alert["name"] for alert in alerts} == {rule["alert"] for rule in ALERTS}
        assert {(alert["state"], alert["health"]) for alert in alerts} == {("inactive", "ok")}
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


def test_nobody_looks_nobody_asks(server: Server, tmp_path: Path) -> None:
    """Without viewers no point is added: the lines have a gap until somebody looks again."""
    request = urllib.request.Request(f"{server.url}/v1/sere/live", headers={"Authorization": f"Bearer {KEY}"})
    points = []
    for _ in range(2):
        with urllib.request.urlopen(request, timeout=30) as answer:
            points.append(json.load(answer)["points"])
        threading.Event().wait(3)
    assert points[1][-1]["seconds"] >= 3
