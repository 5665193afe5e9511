"""What the process of a timed engine answers when something fails."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NoReturn

import pytest

from sere.bench.vllm import engine_child
from sere.errors import EngineError, InputError


class Session:
    """Refuses to count, and stops within a block."""

    def describe(self) -> dict[str, Any]:
        """Nothing is known."""
        return {}

    def count(self, _: str) -> NoReturn:
        """Refuse."""
        raise InputError("too many requests")

    def block(self, _: str) -> NoReturn:
        """Stop."""
        raise EngineError("replay: other steps")


def test_an_engine_that_stops_within_a_step_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds requests that nobody ends; one that refuses a load is as it was."""
    monkeypatch.setattr(engine_child, "in_process_engine", lambda *_, **__: nullcontext())
    monkeypatch.setattr(engine_child, "EngineSession", lambda *_, **__: Session())
    started = {
        "settings": [],
        "model": "",
        "sere": None,
        "threads": 1,
        "options": {},
        "seed": 0,
        "replay": True,
    }
    answers: list[Any] = []
    questions = iter([{"do": "count", "of": "sere"}, {"do": "block", "of": "replay sere"}])
    engine_child._serve(started, questions, answers.append)
    assert answers == [{"value": {}}, {"refused": "too many requests"}, {"failed": "replay: other steps"}]
