"""An engine's joined answers with counters that tests choose, for the live page."""

from __future__ import annotations

from typing import Any

from sere.integrations.vllm.step_counts import StepCounts
from sere.reroute import COUNTERS


def counted(steps: int, before: int = 8, after: int = 4) -> list[int]:
    """A layer's counters after steps of 4 rows, with 2 slots each, of which half were re-routed."""
    one = {"steps": 1, "rows": 4, "distinct_before": before, "distinct_after": after, "slots": 8}
    one |= {"slots_rerouted": 4, "slots_computed": 8, "critical": 1}
    return [steps * one[name] for name in COUNTERS]


def joined(
    steps: int, *, before: int = 8, after: int = 4, layers: int = 2, unseen: int = 0, **settings: Any
) -> dict[str, Any]:
    """What `join_answers` returns for an engine that re-routed some steps.

    Args:
        steps: Counted by the layers.
        before: Distinct experts that the router chose, per step of a layer.
        after: Distinct experts that ran.
        layers: How many.
        unseen: How many more never saw a step.
        **settings: That hold, besides S and the table's path.
    """
    sums = [counted(steps, before, after)] * layers + [counted(0)] * unseen
    held = {"active_experts": [[1, 8], [8, 24]]}
    return {
        "enabled": True,
        "count_only": False,
        "settings": {"select_top_k": 1, "table": "/home/somebody/secret"} | settings,
        "request_tiers": ["safe", "fast"],
        "steps": StepCounts(rerouted=steps).to_mapping(),
        "layers": [
            {"index": index, "name": f"layers.{index}", "counters": one, "settings": held}
            for index, one in enumerate(sums)
        ],
        "flatten": {"setting": "auto", "why_not": None},
        "top_k": 2,
        "num_experts": 16,
        "kernel": "TritonExperts",
        "expert_bytes": 100,
        "rest_bytes": 400,
        "table": {"fingerprint": "abc", "tiers": ["safe", "fast"]},
    }  # fmt: skip
