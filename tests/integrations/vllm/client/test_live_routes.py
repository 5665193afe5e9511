"""The live page's routes: the page knows nothing and needs no key; what it shows needs the server's."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from sere.integrations.vllm.client.admin_key import ADMIN_KEY
from sere.integrations.vllm.client.engine import ServedEngine
from sere.integrations.vllm.live.page import page
from tests.support.vllm.routes import Engine, Failing, ask, disabled

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]


def with_page() -> Engine:
    engine = Engine()
    engine.vllm_config.additional_config = {"sere": {"live_page": True}}
    engine.vllm_config.model_config.served_model_name = ["/models/somebody/tiny"]
    return engine


def test_the_page_is_off_unless_asked_for() -> None:
    """Without the setting there is no page, and the answer says which setting it is."""
    status, text = ask("GET", "/sere/")
    assert status == 404
    assert '"live_page": true' in text


def test_the_page_asks_nothing() -> None:
    """The document itself needs no key, for a browser sends none, and no worker is asked for it."""
    engine = with_page()
    assert ask("GET", "/sere/", engine, authorization=None) == (200, page()[0].decode())
    assert engine.asked == []


@pytest.mark.parametrize("key", [None, "Bearer another"])
def test_figures_need_the_key(key: str | None) -> None:
    """What the page shows is behind the server's key, as all that sere tells over HTTP."""
    engine = with_page()
    assert ask("GET", "live", engine, authorization=key)[0] == 401
    assert engine.asked == []


def test_figures_without_paths() -> None:
    """What the page shows says what clients call the model, and where nothing lies on the server."""
    status, text = ask("GET", "live?since=1.5", with_page())
    assert (status, json.loads(text)["now"]["title"]) == (200, "tiny")
    assert "secret" not in text
    assert "somebody" not in text


@pytest.mark.parametrize("processes", [1, 3])
def test_how_many_server_processes_there_are(processes: int) -> None:
    """The figures say of how many server processes one gave them, as vLLM counts them."""
    engine = with_page()
    engine.vllm_config.parallel_config._api_process_count = processes
    assert json.loads(ask("GET", "live", engine)[1])["now"]["server_processes"] == processes


@pytest.mark.parametrize("key", [None, "change"])
def test_whether_anybody_may_change(key: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page is told that changes are off where the server has no key for them."""
    if key is None:
        monkeypatch.delenv(ADMIN_KEY, raising=False)
    else:
        monkeypatch.setenv(ADMIN_KEY, key)
    reason = json.loads(ask("GET", "live", with_page())[1])["read_only"]
    assert (reason is None) == (key is not None)
    assert key is not None or "start the server with SERE_ADMIN_KEY" in reason


def test_an_engine_that_re_routes_nothing() -> None:
    """Where re-routing is not active the answer says so, and that it is not the client's fault."""
    status, text = ask("GET", "live", Failing(disabled("sere_stats")))
    assert status == 503
    assert "re-routing is not active in this engine" in text


def test_any_number_of_viewers_ask_once() -> None:
    """Twenty viewers and all the other readers of a second share one question to the workers."""

    async def views() -> tuple[list[str], list[str]]:
        client = with_page()
        engine = ServedEngine(client)
        bodies = await asyncio.gather(*(engine.live(0.0) for _ in range(20)), engine.live(0.0))
        await engine.counted()
        return bodies, client.asked

    bodies, asked = asyncio.run(views())
    assert len(set(bodies)) == 1
    assert asked == ["sere_stats"]


def test_a_reset_and_a_change_are_seen_by_all() -> None:
    """Whoever looks next sees that counters were set to zero, and when."""

    async def after_reset() -> Any:
        engine = ServedEngine(with_page())
        await engine.live(0.0)
        await engine.reset()
        return json.loads(await engine.live(0.0))

    changes = asyncio.run(after_reset())["now"]["changes"]
    assert [one["what"] for one in changes] == ["reset"]
