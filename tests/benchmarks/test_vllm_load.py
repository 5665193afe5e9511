"""What the load test counts as wrong; the load itself is run by hand."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from load_requests import Load, one
from vllm_load import CYCLE, STRETCH, judge_memory

PROMPT = "add 5 7 = "


def sent(dice: float, text: str, *, tokens: int = 16, reroutes: bool = True) -> Load:
    """A server that answers with a text, after one request."""

    async def create(**_: Any) -> Any:
        return SimpleNamespace(
            usage=SimpleNamespace(completion_tokens=tokens), choices=[SimpleNamespace(text=text)]
        )

    client = SimpleNamespace(completions=SimpleNamespace(create=create))
    load = Load(None, client, reroutes, {PROMPT: "12"})  # type: ignore[arg-type]
    asyncio.run(one(load, asyncio.Semaphore(1), dice, PROMPT))
    return load


@pytest.mark.parametrize(("text", "wrong"), [("12", 0), ("13", 1)])
@pytest.mark.parametrize(
    ("dice", "reroutes", "compared"),
    [(0.2, True, True), (0.2, False, True), (0.9, False, True), (0.9, True, False)],
    ids=["protected", "protected in the control", "any in the control", "re-routed"],
)
def test_another_text_is_wrong(text: str, wrong: int, dice: float, reroutes: bool, compared: bool) -> None:
    """What is not re-routed must give the text of off, or the run fails; re-routed requests may differ."""
    load = sent(dice, text, reroutes=reroutes)
    assert load.outcomes["protected" if dice < 0.35 else "answered"] == 1
    assert load.outcomes["compared"] == compared
    assert load.outcomes["other text"] == len(load.wrong) == wrong * compared


def test_lost_tokens_are_wrong() -> None:
    """An answer of fewer tokens than asked for is no answer."""
    load = sent(0.9, "12", tokens=15)
    assert not load.outcomes["answered"]
    assert load.wrong == ["RuntimeError: expected 16 tokens, got 15 (None)"]


@pytest.mark.vllm
def test_accepted_although_malformed() -> None:
    """A malformed request that is answered is wrong."""
    pytest.importorskip("openai", reason="comes with vLLM: make test-vllm")
    load = sent(0.12, "12")
    assert not load.outcomes["refused"]
    assert "accepted although malformed" in load.wrong[0]


@pytest.mark.parametrize(("grown", "wrong"), [(49, 0), (51, 1)])
def test_memory_beside_the_control(grown: int, wrong: int) -> None:
    """Growth counts once each concurrency had its turn, and may exceed the control's by one per cent."""
    turns = CYCLE // STRETCH

    def side(base: int, growth: int) -> dict[str, Any]:
        return {"resident_mb": [base - 900, *[base] * (turns - 1), base + growth], "wrong": []}

    sides = {"control": side(3000, 20), "rerouting": side(3200, grown)}
    judge_memory(sides)
    assert [one["growth_mb"] for one in sides.values()] == [20, grown]
    assert (len(sides["control"]["wrong"]), len(sides["rerouting"]["wrong"])) == (0, wrong)
