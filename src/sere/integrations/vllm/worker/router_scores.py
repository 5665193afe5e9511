"""The scores of all experts that a rule may need: what vLLM's routers choose by.

A rule ranks a token's experts by them, as the Transformers integration lets it rank them by what a router
returns: logits, before softmax or sigmoid, selection biases, groups and scaling. All of these routers get
``router_logits`` of shape ``[T, E]``; wider ones have zero experts behind the routed ones.

Source: ``vllm/model_executor/layers/fused_moe/router`` of vLLM 0.32.
"""

from __future__ import annotations

from typing import Any

from sere.errors import UnsupportedEngine

# CPURouter is every scheme of a CPU in one class; the others are one scheme each.
CHOOSE_BY_LOGITS = frozenset(
    {"CPURouter", "FusedTopKRouter", "FusedTopKBiasRouter", "GroupedTopKRouter", "ZeroExpertRouter"}
)


def check_scores(policy: str, layer: str, router: Any) -> None:
    """Refuse a router whose logits may not be scores of the experts.

    Args:
        policy: Name of the rule that needs scores.
        layer: vLLM's name of the layer.
        router: vLLM's router object.

    Raises:
        UnsupportedEngine: It has no scores, or it is not known whether it has; the text says which it is.
    """
    reason = _why_no_scores(router)
    if reason is not None:
        raise UnsupportedEngine(
            f"{layer}: {policy} needs the router's scores of all experts, but {reason}; use a rule that "
            "needs no scores (sere, random, topk), or Transformers (sere eval --engine transformers)"
        )


def _why_no_scores(router: Any) -> str | None:
    name = type(router).__name__
    if name not in CHOOSE_BY_LOGITS:
        return f"{name} is not known to choose by its logits"
    if getattr(router, "_hash_indices_table", None) is not None:
        return "this layer takes its experts from a table of token ids"
    function = getattr(router, "custom_routing_function", None)
    if function is not None:
        return f"the model's own function {getattr(function, '__qualname__', function)} chooses the experts"
    return None
