"""The one sentence that says why re-routing changed nothing."""

from __future__ import annotations

import re
from typing import Any

import pytest

from sere.config import RerouteConfig
from sere.integrations.activity import Activity, why_nothing_changed

SEEN = {
    "calls": 6, "eligible": 5, "layer_steps": 5, "rerouted": 0, "critical": 0,
    "experts_before": 13.5, "experts_after": 13.5, "rows": 2.0,
}  # fmt: skip


def sentence(settings: dict[str, Any] | None = None, **changed: Any) -> str | None:
    defaults = {"select_top_k": 2, "active_experts": 0}
    config = None if settings is None else RerouteConfig.from_mapping(defaults | settings)
    return why_nothing_changed(Activity(**(SEEN | changed)), config, top_k=8, num_experts=96, layers=range(2))


@pytest.mark.parametrize("changed", [{"rerouted": 1}, {"experts_after": 13.0}], ids=["slots", "experts"])
def test_what_moved_is_no_news(changed: dict[str, Any]) -> None:
    """A slot that moved, or an expert that did not run (as with fewer slots), is what was asked for."""
    assert sentence({}, **changed) is None
    assert sentence(None, **changed) is None


@pytest.mark.parametrize(
    ("settings", "changed", "text"),
    [
        ({}, {"calls": 0, "eligible": 0, "layer_steps": 0}, "the model was not called while re"),
        ({}, {"eligible": 0, "layer_steps": 0}, "no decode step was seen in 6 calls of the model; prompts"),
        ({}, {"calls": 0, "eligible": 0, "layer_steps": 0, "compiled": True}, "no decode step was seen"),
        ({}, {"layer_steps": 0}, "5 decode steps ran, but no layer's hook was called; the model"),
        ({}, {"layer_steps": 0, "eligible": 1}, "1 decode step ran, but no layer's hook was called"),
        ({}, {"layer_steps": 0, "hook_ran": False}, "5 decode steps ran, but no layer's hook was called"),
        ({"phases": "all"}, {"layer_steps": 0}, "5 calls ran, but no layer's hook was called"),
        ({}, {"layer_steps": 0, "hook_ran": True}, "in 5 steps every row counted as padding"),
        (None, {}, "the policy changed no slot of batches that read 13.5 experts per layer"),
        ({"active_experts": 96}, {}, "active_experts=96 is not below the 96 experts of a layer"),
        ({"select_top_k": 8}, {}, "select_top_k=8 keeps all 8 slots of a token"),
        ({"active_experts": 32}, {}, r"active_experts=32 is not below what these batches read \(13.5"),
        (
            {"active_experts": 0.5}, {},
            r"active_experts=0.5 \(48 for 2 rows\) is not below what these batches read \(13.5 experts",
        ),
        (
            {"active_experts": "auto"}, {"rows": 5.5},
            r"active_experts=auto \(23 for 6 rows\) is not below what these batches read \(13.5 experts",
        ),
        (
            {"active_experts": [[1, 16], [8, 20]], "tier": "fast"}, {},
            r"active_experts=1-16/8-20 \(of the tier 'fast', 17 for 2 rows\) is not below what",
        ),
        (
            {"active_experts": {0: 20, 1: 40}}, {},
            r"active_experts \(by layer, 20 to 40 for 2 rows\) is not below what these batches read",
        ),
        ({"active_experts": {0: 20, 1: 10}}, {}, "all 13.5 experts per layer that these batches read are"),
        (
            {"active_experts": [[1, 16], [4, 20]]}, {"rows": 3.0, "mixed": True},
            r"active_experts=1-16/4-20 \(16 or more for 1 to 3 rows\) is not below what these batches",
        ),
        ({"active_experts": [[1, 8], [4, 20]]}, {"rows": 4.0, "mixed": True}, "all 13.5 experts per layer"),
        ({"active_experts": "auto"}, {"rows": 4.0, "own_budgets": True}, "all 13.5 experts per layer"),
        ({"layers": {0: {"select_top_k": 8}, 1: {"select_top_k": 9}}}, {}, "select_top_k=8 to 9 keeps all 8"),
        ({"layers": {0: {"select_top_k": 8}}}, {}, "all 13.5 experts per layer"),
        ({"layers": {0: {"threshold": 2}}}, {"critical": 9}, "no expert had .* threshold=0 to 2"),
        ({"threshold": 2}, {"critical": 9}, "no expert had a similarity of threshold=2 or more"),
        ({}, {"critical": 9}, "the table knows no similarity between the experts"),
        ({}, {}, "all 13.5 experts .* larger batches, a smaller select_top_k or a smaller active_experts"),
        ({}, {"own_budgets": True}, "all 13.5 experts .* larger batches, smaller row budgets or a smaller"),
    ],
    ids=[
        "not called", "prefill only", "prefill compiled",
        "no hook", "one step", "no hook seen", "all phases", "padding", "baseline",
        "M of E", "S = K", "M above", "share above", "auto above", "tier above", "layers above",
        "one layer above", "mixed rows above", "mixed rows", "budgets and auto", "S of layers",
        "S of one layer", "threshold of a layer", "threshold", "unknown", "all primary", "budgets",
    ],
)  # fmt: skip
def test_the_reason_is_named(settings: dict[str, Any] | None, changed: dict[str, Any], text: str) -> None:
    """Each way to change nothing has its own sentence, with the numbers that show it."""
    said = sentence(settings, **changed)
    assert said is not None
    assert re.match(f"nothing was re-routed: {text}", said)
    assert "\n" not in said
