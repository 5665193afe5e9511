"""What re-routing did, as Prometheus metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sere.errors import UnsupportedEngine
from sere.integrations.vllm.engine_stats import join_answers, merge_answers
from sere.integrations.vllm.prometheus import Collector
from sere.integrations.vllm.step_counts import StepCounts
from sere.reroute import COUNTERS

pytest.importorskip("prometheus_client", reason="comes with vLLM: make test-vllm")

pytestmark = pytest.mark.vllm


SUMS = {
    "steps": 4, "rows": 8, "distinct_before": 40, "distinct_after": 20, "slots": 32, "slots_rerouted": 12,
    "slots_computed": 28, "critical": 6,
}  # fmt: skip


def scraped(answers: list[dict[str, Any]]) -> str:
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(Collector(lambda: answers))
    return generate_latest(registry).decode()


def test_metrics_are_sums() -> None:
    """Prometheus gets what the layers of all pipeline stages counted, as counters that only grow."""
    stages = [
        {"enabled": True, "count_only": False, "settings": {"tier": "balanced"},
         "steps": StepCounts(rerouted=4, prompts=1, few_rows=2, mixed=5, by_tier={"safe": 3}).to_mapping(),
         "request_tiers": ["safe", "fast"], "data_parallel_rank": 0,
         "fingerprint": {"common": "0123456789abcdef", "layers": {}},
         "top_k": 4, "num_experts": 16, "kernel": None, "expert_bytes": None, "rest_bytes": None,
         "table": {"fingerprint": "fedcba987654", "tiers": []},
         "flatten": {"setting": "auto", "why_not": None, "break_even": {f"kind {index}": [[8, 0.5]]}},
         "layers": [
             {"index": index, "share": 0, "name": f"layer {index}",
              "counters": [SUMS[name] for name in COUNTERS],
              "settings": {"active_experts": [[1, 4], [8, 9 + index]]}}
         ]}
        for index in (1, 0)
    ]  # fmt: skip
    assert join_answers(stages)["flatten"]["break_even"] == {"kind 1": [[8, 0.5]], "kind 0": [[8, 0.5]]}
    text = scraped(stages)
    for name, value in SUMS.items():
        assert f"# TYPE sere_layer_{name}_total counter" in text
        for layer in (0, 1):
            assert f'sere_layer_{name}_total{{layer="{layer}"}} {value}.0' in text
    for kind, steps in {"rerouted": 4, "prompts": 1, "few_rows": 2, "mixed": 5, "disabled": 0}.items():
        assert f'sere_steps_total{{kind="{kind}"}} {steps}.0' in text
    assert "sere_enabled 1.0" in text
    assert 'sere_tier{tier="balanced"} 1.0' in text
    assert 'sere_info{settings="0123456789ab",table="fedcba987654"} 1.0' in text
    assert 'sere_tier_steps_total{tier="safe"} 3.0' in text
    assert 'sere_tier_steps_total{tier="fast"} 0.0' in text
    assert 'sere_layer_active_experts{layer="1",rows="8"} 10.0' in text


@pytest.mark.parametrize("read", [merge_answers, scraped], ids=["statistics", "metrics"])
def test_no_answer(read: Callable[[list[dict[str, Any]]], object]) -> None:
    """Without a worker's answer there are neither statistics nor metrics."""
    with pytest.raises(UnsupportedEngine, match="no worker answered"):
        read([])
