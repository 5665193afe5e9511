"""What the load test counts as wrong; the load itself is run by hand."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.vllm_load import Tally, _one


@pytest.mark.parametrize(("text", "wrong"), [("12", 0), ("13", 1)])
def test_protected_request_with_another_text_is_wrong(text: str, wrong: int) -> None:
    """A protected request whose text differs from that of off makes the whole run fail."""

    async def create(**_: Any) -> Any:
        return SimpleNamespace(
            usage=SimpleNamespace(completion_tokens=16), choices=[SimpleNamespace(text=text)]
        )

    client = SimpleNamespace(completions=SimpleNamespace(create=create))
    tally = Tally()

    async def run() -> None:
        await _one(client, asyncio.Semaphore(1), 0.2, "add 5 7 = ", {"add 5 7 = ": "12"}, tally)

    asyncio.run(run())
    assert tally.outcomes["protected"] == 1
    assert len(tally.wrong) == wrong
