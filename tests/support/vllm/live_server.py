"""A real ``vllm serve`` of the bundled model with the live page, and clients that keep it busy."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

from sere.bundled import model_path
from sere.integrations.vllm.client.admin_key import HEADER
from tests.support.patience import HANGS_S
from tests.support.vllm.server import Server, free_port, serve

KEY = "clients"
# A client of a server that stands still asks again.
GIVES_UP_S = 10.0


@contextmanager
def live_server(folder: Path) -> Iterator[tuple[Server, int]]:
    """Start a server with the page, ``KEY`` for clients, and a table of two tiers.

    Yields it and its port for metrics.
    """
    from transformers import AutoModelForCausalLM

    from sere.bench.target import random_table
    from sere.table.tiers import Tier

    table = random_table(AutoModelForCausalLM.from_pretrained(model_path()))
    tiers = {"safe": Tier("safe", active_experts=24), "fast": Tier("fast", active_experts=6)}
    table.with_tiers(tiers).save(folder / "table.safetensors")
    settings: dict[str, Any] = {"table": str(folder / "table.safetensors"), "tier": "safe", "live_page": True}
    settings["metrics_port"] = port = free_port()
    with serve(model_path(), settings, folder, "--enforce-eager", "--api-key", KEY) as running:
        yield running, port


@contextmanager
def loaded(server: Server) -> Iterator[None]:
    """Eight clients ask for completions until the block ends."""
    ended = threading.Event()
    clients = [threading.Thread(target=_ask, args=(server, one, ended)) for one in range(8)]
    for client in clients:
        client.start()
    try:
        yield
    finally:
        ended.set()
        for client in clients:
            client.join()


def _ask(server: Server, one: int, ended: threading.Event) -> None:
    body = {"model": "tiny", "prompt": f"add {one}4 {one + 1}7 = ", "max_tokens": 100, "ignore_eos": True}
    while not ended.wait(0.01):
        # The server may stand still, or have ended.
        try:
            call(server, "/v1/completions", body, GIVES_UP_S)
        except (OSError, HTTPException):
            ended.wait(1)


def call(server: Server, path: str, body: Any = None, timeout: float = HANGS_S) -> Any:
    """Ask the server with both keys; return what it answers."""
    headers = {"Authorization": f"Bearer {KEY}", HEADER: server.admin_key, "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{server.url}{path}", data, headers)
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return json.load(answer)


def unlock(page: Any, key: str = KEY) -> None:
    """Type a key where a browser's page asks for the server's."""
    page.fill("#server-key", key)
    page.press("#server-key", "Enter")
