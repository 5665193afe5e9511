"""Re-routing: tensors in, tensors out (docs/method.md section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sere.config import ActiveExperts, Backend, Merge, RerouteConfig, Targets
from sere.errors import InputError
from sere.reroute.backends.registry import BACKENDS, BackendRecord, select
from sere.reroute.batch import Routing, StepDtypes, TokenBatch
from sere.reroute.checks import as_row_budgets, check_batch
from sere.reroute.prepare import PreparedLayer, prepare_layer
from sere.reroute.stats import COUNTERS
from sere.similarity.layer import LayerSimilarity, check_tensor

__all__ = [
    "BACKENDS",
    "COUNTERS",
    "BackendRecord",
    "PreparedLayer",
    "Routing",
    "StepDtypes",
    "TokenBatch",
    "prepare_layer",
    "reroute",
    "select",
]


def reroute(
    topk_ids: Tensor,
    topk_weights: Tensor,
    similarity: Tensor | LayerSimilarity,
    *,
    select_top_k: int = 1,
    threshold: float = 0.0,
    active_experts: ActiveExperts = "auto",
    cap: bool = False,
    row_budgets: Tensor | Sequence[int] | None = None,
    num_tokens: Tensor | int | None = None,
    keep: Sequence[int] = (),
    targets: Targets = "primary",
    scale: Tensor | None = None,
    min_gain: float = 0.0,
    sensitivity: Tensor | None = None,
    merge: Merge = "none",
    sentinel: int | None = None,
    counters: Tensor | None = None,
    backend: Backend = "auto",
) -> Routing:
    """Replace each secondary expert by the most similar expert that the batch needs anyway.

    The layer is prepared on every call, which takes far longer than the step. For more than one step per
    layer, or to compile a step, prepare it once:
    ``prepare_layer(layer, config, top_k=K).route(TokenBatch(ids, weights))``.

    Args:
        topk_ids: Expert ids, ``[T, K]``, int32 or int64, slots in any order. Not modified. Ids outside
            [0, E) pass through untouched.
        topk_weights: Gate weights, ``[T, K]``, floating point. Not modified. Slots of weight 0 or NaN
            pass through untouched.
        similarity: ``[E, E]``, float32, NaN where it is not known; or a layer of a table.
        select_top_k: S, slots per row that are primary: its heaviest.
        threshold: ρ, minimum similarity at which an expert may be replaced.
        active_experts: M, up to which the primary set is filled; see `RerouteConfig`.
        cap: Whether M bounds the primary set, too.
        row_budgets: ``[T]``, int32 or int64, or None: b_t for each row; -2 means ``select_top_k``. K or more
            protects the row; another negative number marks it as padding. A sequence may hold integers of
            any size.
        num_tokens: N, an integer or a tensor of shape ``[]`` or ``[1]``, int32 or int64; rows from N on are
            padding. N = 0 changes nothing.
        keep: Experts of this layer that are never replaced.
        targets: ``"primary"`` (the paper) or ``"active"``: critical experts, too, may take over slots.
        scale: ``[E, E]``, float32: multiplies the weight of a re-routed slot.
        min_gain: τ, share of its row's energy that a re-routed slot must give, or its weight becomes 0; needs
            ``scale``.
        sensitivity: ``[E]``, float32, in (0, 1]: how much losing an expert costs; instead of the layer's own.
        merge: What to do with duplicate expert ids within one token's top-k.
        sentinel: The id of freed slots with ``merge="sentinel"``; outside [0, E).
        counters: int64, one entry per name in ``COUNTERS``; incremented in place unless no expert is
            primary. None counts nothing.
        backend: ``"reference"``, ``"torch"``, ``"cpu"``, ``"cuda"``, ``"triton"``, or ``"auto"`` for the
            fastest on the device.

    Returns:
        New ids and weights; same shapes, dtypes and device.

    Raises:
        InputError: A shape, dtype or bound is wrong, or the call is being compiled; the text says what was
            expected.
        BackendUnavailable: ``backend`` was named and cannot run here; the text says why.

    Source: SERE (ICLR 2026, arXiv 2602.07616); docs/method.md section 4.
    """
    if torch.compiler.is_compiling():
        raise InputError(
            "sere.reroute prepares its layer on each call, which torch.compile cannot do; call "
            "prepare_layer(layer, config) first and compile the route method of its result"
        )
    check_tensor("topk_ids", topk_ids)
    budgets = as_row_budgets(row_budgets, topk_ids.device)
    batch = TokenBatch(topk_ids, topk_weights, budgets, num_tokens)
    check_batch(batch, counters)
    layer = similarity if isinstance(similarity, LayerSimilarity) else LayerSimilarity(similarity)
    if sensitivity is not None:
        layer = replace(layer, sensitivity=sensitivity)
    config = RerouteConfig.from_mapping(
        {
            "select_top_k": select_top_k,
            "threshold": threshold,
            "active_experts": active_experts,
            "cap": cap,
            "targets": targets,
            "min_gain": min_gain,
            "merge": merge,
            "sentinel": sentinel,
            "backend": backend,
        }
    )
    K, device = topk_ids.shape[1], topk_ids.device
    dtypes = [StepDtypes(topk_ids.dtype, topk_weights.dtype)]
    prepared = prepare_layer(layer, config, top_k=K, keep=keep, scale=scale, device=device, dtypes=dtypes)
    return prepared.route(batch, counters)
