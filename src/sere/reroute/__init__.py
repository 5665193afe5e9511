"""Re-routing: tensors in, tensors out (docs/method.md section 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sere.config import Backend, Merge, RerouteConfig, Targets
from sere.reroute.backends.registry import BACKENDS, BackendRecord, select
from sere.reroute.batch import Routing
from sere.reroute.prepare import Plan, make_plan
from sere.reroute.types import COUNTERS, Neighbors
from sere.similarity.layer import LayerSimilarity, check_tensor

__all__ = [
    "BACKENDS",
    "COUNTERS",
    "BackendRecord",
    "Neighbors",
    "Plan",
    "Routing",
    "make_plan",
    "reroute",
    "select",
]

# A caller with a fresh scale at every call would otherwise fill the memory with plans.
_MOST_PLANS = 64


def reroute(
    topk_ids: Tensor,
    topk_weights: Tensor,
    similarity: Tensor | LayerSimilarity,
    *,
    select_top_k: int,
    threshold: float = 0.0,
    row_budget: Tensor | Sequence[int] | None = None,
    num_tokens: Tensor | int | None = None,
    min_active: int = 0,
    keep: Sequence[int] = (),
    targets: Targets = "primary",
    scale: Tensor | None = None,
    merge: Merge = "none",
    sentinel: int | None = None,
    counters: Tensor | None = None,
    backend: Backend = "auto",
) -> Routing:
    """Replace each secondary expert by the most similar expert that the batch needs anyway.

    Args:
        topk_ids: Expert ids, ``[T, K]``, int32 or int64, slots in any order. Not modified. Ids outside
            [0, E) pass through untouched.
        topk_weights: Gate weights, ``[T, K]``, floating point. Not modified. Slots of weight 0 or NaN
            pass through untouched.
        similarity: ``[E, E]``, float32, NaN where it is not known, or a layer of a table. A layer is prepared
            once for each combination of settings and remembers the latest 64; a plain tensor is prepared
            again at every call.
        select_top_k: S, slots per row that are primary: its heaviest.
        threshold: ρ, least similarity at which an expert may be replaced.
        row_budget: ``[T]``, int32 or int64, or None: b_t for each row instead of ``select_top_k``. K or more
            protects the row; a negative number marks it as padding, wherever it stands. A sequence may hold
            integers of any size.
        num_tokens: N, an integer or a tensor of shape ``[]`` or ``[1]``, int32 or int64; rows from N on are
            padding. N = 0 changes nothing.
        min_active: Least size of the primary set.
        keep: Experts of this layer that are never replaced.
        targets: ``"primary"`` (the paper) or ``"active"``: critical experts, too, may take over slots.
        scale: ``[E, E]``, float32: multiplies the weight of a re-routed slot.
        merge: What to do with an expert that a row holds twice.
        sentinel: The id of freed slots with ``merge="sentinel"``; outside [0, E).
        counters: int64, one entry per name in ``COUNTERS``; incremented in place unless no expert is
            primary. None counts nothing.
        backend: ``"reference"``, ``"torch"``, ``"cpu"``, ``"cuda"``, or ``"auto"`` for the
            fastest on the device.

    Returns:
        New ids and weights; same shapes, dtypes and device.

    Raises:
        InputError: A shape, dtype or bound is wrong; the text gives what was expected and what came.
        BackendUnavailable: ``backend`` was named and cannot run here; the text says why.

    Source: SERE (ICLR 2026, arXiv 2602.07616); docs/method.md section 4.
    """
    check_tensor("topk_ids", topk_ids)
    layer = similarity if isinstance(similarity, LayerSimilarity) else LayerSimilarity(similarity)
    settings = (
        select_top_k, threshold, min_active, tuple(keep), targets, merge, sentinel, backend, topk_ids.device
    )  # fmt: skip
    # 1, 1.0 and True are one key to a dictionary, but not all of them are numbers of slots.
    kinds = tuple(map(type, (select_top_k, threshold, min_active, sentinel, *settings[3])))
    # PyTorch 2.9 and 2.11 cannot compile the id of None.
    key = (settings, kinds, None if scale is None else id(scale))
    cached = layer.prepared.get(key)
    if cached is None or (scale is not None and _is_stale(cached, scale)):
        while len(layer.prepared) >= _MOST_PLANS:
            layer.prepared.pop(next(iter(layer.prepared)), None)
        # With the scale, which must live as long as its identity is a key.
        cached = (_prepare(layer, settings, scale), scale, _writes(scale))
        layer.prepared[key] = cached
    plan: Plan = cached[0]
    return plan.route(topk_ids, topk_weights, row_budget=row_budget, num_tokens=num_tokens, counters=counters)


def _is_stale(cached: tuple[Any, ...], scale: Tensor) -> bool:
    """Whether a plan's scale has been written to since; compiled code takes it for a constant."""
    return not torch.compiler.is_compiling() and cached[2] != _writes(scale)


def _writes(scale: Tensor | None) -> float:
    """How often a scale was written to; inference tensors do not count it, and are never up to date."""
    return 0 if scale is None else math.nan if scale.is_inference() else scale._version


def _prepare(layer: LayerSimilarity, settings: tuple[object, ...], scale: Tensor | None) -> Plan:
    select_top_k, threshold, min_active, keep, targets, merge, sentinel, backend, device = settings
    config = RerouteConfig.from_mapping(
        {
            "select_top_k": select_top_k,
            "threshold": threshold,
            "min_active": min_active,
            "targets": targets,
            "merge": merge,
            "sentinel": sentinel,
            "backend": backend,
        }
    )
    assert isinstance(keep, tuple)
    assert isinstance(device, torch.device)
    return make_plan(layer, config, keep=keep, scale=scale, device=device)
