"""Calling the methods of workers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sere.errors import UnsupportedEngine
from sere.integrations.vllm import configure, read_stats


@pytest.mark.parametrize("call", [read_stats, lambda llm: configure(llm, select_top_k=1)])
@pytest.mark.parametrize("settings", [None, {"select_top_k": 2}])
@pytest.mark.parametrize(
    "words", ["Method {!r} is not implemented.", "'CPUWorker' object has no attribute {!r}"]
)
def test_engine_without_rerouting(call: Any, settings: Any, words: str) -> None:
    """An engine that did not ask, or is disabled by the environment, is named so, whatever vLLM would say."""

    def collective_rpc(method: str, args: Any) -> Any:
        raise RuntimeError(f"Call failed: {words.format(method)}")

    config = SimpleNamespace(additional_config={} if settings is None else {"sere": settings})
    llm = SimpleNamespace(llm_engine=SimpleNamespace(vllm_config=config), collective_rpc=collective_rpc)
    with pytest.raises(UnsupportedEngine, match="re-routing is not active in this engine: start it with"):
        call(llm)


def test_other_errors_of_workers_pass() -> None:
    """An error of another kind in a worker stays what it is."""

    def collective_rpc(*_: Any, **__: Any) -> Any:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        read_stats(SimpleNamespace(collective_rpc=collective_rpc))
