"""The route of the experts' counts: the server's key, one question a second, and how to switch it on."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from sere.integrations.vllm.client.engine import ServedEngine
from tests.support.vllm.routes import AGREED, Answering, Engine, ask

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]

LAYER = {"index": 0, "name": "model.layers.0.experts", "share": 0, "experts": [[1, 2], [3, 0]]}
ANSWER: dict[str, Any] = {"fingerprint": AGREED, "data_parallel_rank": 0, "layers": [LAYER]}


def test_the_route_needs_the_servers_key() -> None:
    """Who may read the statistics may read the counts, and nobody else."""
    assert ask("GET", "experts", Answering(**ANSWER), authorization=None)[0] == 401
    status, text = ask("GET", "experts", Answering(**ANSWER), x_sere_admin_key=None)
    expected = {"index": 0, "name": LAYER["name"], "chosen": [1, 2], "ran": [3, 0]}
    assert (status, json.loads(text)) == (200, {"layers": [expected]})


def test_an_engine_that_does_not_count_them() -> None:
    """It says what to start the engine with, and that it is not the client's fault."""
    status, text = ask("GET", "experts", Answering(error="not counted: start it with count_experts"))
    assert (status, json.loads(text)["error"]) == (503, "not counted: start it with count_experts")


def test_clients_share_an_answer_until_a_reset() -> None:
    """Many clients of a second ask the workers once; after a reset nobody gets the counts from before."""

    class Counting(Engine):
        async def collective_rpc(self, method: str, args: tuple[Any, ...]) -> list[Any]:
            found = await super().collective_rpc(method, args)
            return [ANSWER] if method == "sere_expert_counts" else found

    async def asked() -> list[str]:
        client = Counting()
        engine = ServedEngine(client)
        await asyncio.gather(*(engine.expert_counts() for _ in range(20)))
        await engine.reset()
        await engine.expert_counts()
        return client.asked

    assert asyncio.run(asked()) == ["sere_expert_counts", "sere_stats", "sere_expert_counts"]
