"""The KV cache of an engine of this process: room for all its requests, and little more."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sere.engines.cpu_memory import no_more_than_it_fills
from sere.engines.in_process import in_process_engine
from sere.errors import EngineFailure
from tests.support.vllm.engines import generate, prompts
from tests.support.vllm.models import save_model

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]

OPTIONS: dict[str, Any] = {
    "skip_tokenizer_init": True, "enforce_eager": True, "max_model_len": 256, "max_num_seqs": 3,
    "enable_prefix_caching": False,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment says nothing about memory."""
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)


def cache_bytes(llm: Any) -> int:
    """The size of all layers' caches."""
    config = llm.llm_engine.engine_core.engine_core.scheduler.kv_cache_config
    return sum(tensor.size for tensor in config.kv_cache_tensors)


# One kind of layer, latent ones, and sliding windows beside full ones.
@pytest.mark.parametrize("name", ["qwen3_moe", "deepseek_v2", "gpt_oss"])
def test_all_requests_fit_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """As many and as long ones as the engine takes: none waits for another one's blocks."""
    from vllm.v1.core.sched.scheduler import Scheduler

    own, waiting = Scheduler.schedule, []

    def schedule(self: Any, *args: Any, **options: Any) -> Any:
        found = own(self, *args, **options)
        waiting.append(len(self.waiting))
        return found

    monkeypatch.setattr(Scheduler, "schedule", schedule)
    with in_process_engine(save_model(tmp_path, name), **OPTIONS) as llm:
        assert cache_bytes(llm) < 2**26
        found = generate(llm, prompts(3, length=246), tokens=6)
    assert [len(tokens) for tokens in found] == [6, 6, 6]
    assert {*waiting} == {0}


def test_states_beside_full_layers(tmp_path: Path) -> None:
    """By vLLM's own count all requests fit at once, where layers share blocks of very different sizes."""
    from vllm.v1.core.kv_cache_utils import get_max_concurrency_for_kv_cache_config

    with in_process_engine(save_model(tmp_path, "qwen3_next"), **OPTIONS) as llm:
        found = llm.llm_engine.engine_core.engine_core.scheduler.kv_cache_config
        assert get_max_concurrency_for_kv_cache_config(llm.llm_engine.vllm_config, found) >= 3
        assert cache_bytes(llm) < 2**26


def config(*, caching: bool, rows: int) -> Any:
    """What is read of an engine's configuration."""
    return SimpleNamespace(
        cache_config=SimpleNamespace(enable_prefix_caching=caching),
        scheduler_config=SimpleNamespace(max_num_seqs=rows),
    )


@pytest.mark.parametrize(
    ("caching", "rows", "expected"),
    # 100 bytes are four blocks of 30; each of three layers has one more: 450 bytes.
    [(False, 4, [3_600, 3_600]), (False, 50, [10_000, 5_000]), (True, 4, [10_000, 5_000])],
    ids=["what they fill", "the share is less", "prefix caching"],
)
def test_share_of_each_rank(
    monkeypatch: pytest.MonkeyPatch, caching: bool, rows: int, expected: list[int]
) -> None:
    """Twice what the requests fill in the layers of all ranks, but no more than a rank's share.

    With prefix caching, the share.
    """
    from vllm.v1.executor.abstract import Executor

    def shares(_: Any) -> list[int]:
        return [10_000, 5_000]

    monkeypatch.setattr(Executor, "determine_available_memory", shares)
    layer = SimpleNamespace(max_memory_usage_bytes=lambda _: 100, page_size_bytes=30)
    executor = SimpleNamespace(
        vllm_config=config(caching=caching, rows=rows),
        get_kv_cache_specs=lambda: [{"0": layer}, {"1": layer, "2": layer}],
    )
    with no_more_than_it_fills():
        assert Executor.determine_available_memory(executor) == expected
    assert Executor.determine_available_memory is shares


@pytest.mark.parametrize(
    ("given", "asked"),
    [({}, 0.425), ({"gpu_memory_utilization": 0.3}, 0.3)],
    ids=["half of the memory is free", "given"],
)
def test_an_engine_asks_for_memory_that_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, float], asked: float
) -> None:
    """On a CPU an engine starts beside others: it asks for a share of what they leave."""
    options: dict[str, Any] = {}

    def started(*_: Any, **found: Any) -> None:
        options.update(found)
        raise RuntimeError("enough")

    monkeypatch.setattr("vllm.LLM", started)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=50, total=100))
    with pytest.raises(EngineFailure, match="enough"), in_process_engine(save_model(tmp_path), **given):
        pass
    assert options["gpu_memory_utilization"] == asked
