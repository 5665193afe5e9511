"""A layer and its settings, prepared: what every step of an engine calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sere.config import MOST_INT, RerouteConfig, as_integer
from sere.errors import ConfigError, InputError
from sere.reroute import operator
from sere.reroute.backends import Run, implementation, on_device, select
from sere.reroute.types import COUNTERS, MERGE_MODES, Neighbours, Routing, Rules, prepare_neighbours
from sere.similarity.layer import LayerSimilarity, check_scale, check_tensor

ID_DTYPES = (torch.int32, torch.int64)
WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Everything about one layer that does not change from step to step.

    Attributes:
        neighbours: The layer's similarities, sorted and cut at ρ, on one device.
        rules: The settings as plain numbers.
        backend: The name of the implementation.
        run: The implementation.
    """

    neighbours: Neighbours
    rules: Rules
    backend: str
    run: Run

    def route(
        self,
        topk_ids: Tensor,
        topk_weights: Tensor,
        *,
        row_budget: Tensor | Sequence[int] | None = None,
        num_tokens: Tensor | int | None = None,
        counters: Tensor | None = None,
    ) -> Routing:
        """Re-route one step; see ``sere.reroute`` for the arguments."""
        check_tensor("topk_ids", topk_ids)
        check_tensor("topk_weights", topk_weights)
        budget = as_budget(row_budget, topk_ids.device)
        _check(topk_ids, topk_weights, budget, num_tokens, counters, self.neighbours)
        compiling = torch.compiler.is_compiling()
        if compiling and self.backend != "torch":
            ids, weights = operator.call(
                topk_ids,
                topk_weights,
                self.neighbours,
                self.rules,
                budget,
                num_tokens,
                counters,
                self.backend,
            )
        else:
            ids, weights = self.run(
                topk_ids, topk_weights, self.neighbours, self.rules, budget, num_tokens, counters
            )
        return Routing(ids, weights)


def make_plan(
    layer: LayerSimilarity,
    config: RerouteConfig,
    *,
    keep: Sequence[int] = (),
    scale: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> Plan:
    """Prepare a layer: sort the neighbours, cut them at ρ, choose the backend.

    Args:
        layer: The layer's similarities.
        config: The settings; ``config.keep`` is not read here, it is for all layers.
        keep: Experts of this layer that are never replaced.
        scale: ``[E, E]``, float32, finite: factors for the weights of re-routed slots, or None. Copied.
        device: Where the steps will run.

    Raises:
        InputError: ``keep`` or ``scale`` does not fit the layer.
        ConfigError: ``config.sentinel`` is the id of one of the layer's experts.
        BackendUnavailable: The named backend cannot run on the device.
    """
    if scale is not None:
        # Compiled backends read it through a raw pointer: a wrong shape would read foreign memory.
        check_scale(scale, layer.E)
    if config.sentinel is not None and 0 <= config.sentinel < layer.E:
        raise ConfigError(
            f"sentinel: expected the id of no expert, such as -1 or {layer.E}, got {config.sentinel}, one of "
            f"the layer's {layer.E} experts, which would run for every freed slot"
        )
    device = torch.device(device)
    backend = select(config.backend, device.type, layer.E)
    neighbours = prepare_neighbours(layer, threshold=config.threshold, keep=keep, scale=scale, device=device)
    rules = Rules(
        select_top_k=config.select_top_k,
        min_active=config.min_active,
        active_targets=config.targets == "active",
        merge=MERGE_MODES.index(config.merge),
        sentinel=0 if config.sentinel is None else config.sentinel,
    )
    backend = on_device(backend, config.backend, neighbours.order.device)
    return Plan(neighbours, rules, backend, implementation(backend))


def as_budget(row_budget: Tensor | Sequence[int] | None, device: torch.device | None = None) -> Tensor | None:
    """Return budgets as a tensor; one that is a tensor already, or None, as it is.

    Args:
        row_budget: ``[T]``; a sequence may hold integers of any size.
        device: Where the tensor is to be; the host if None.

    Raises:
        InputError: It is no sequence of integers.
    """
    if row_budget is None or isinstance(row_budget, Tensor):
        return row_budget
    try:
        # Negative numbers all mean padding, and no row has MOST_INT slots.
        budgets = [max(-1, min(MOST_INT, as_integer(budget))) for budget in row_budget]
    except TypeError as error:
        raise InputError(f"row_budget: expected integers, one a row; got what is none: {error}") from None
    # By name: the default device may be another than the host, or none at all.
    return torch.tensor(budgets, dtype=torch.int32, device=device or "cpu")


def _check(
    ids: Tensor,
    weights: Tensor,
    budget: Tensor | None,
    num_tokens: Tensor | int | None,
    counters: Tensor | None,
    neighbours: Neighbours,
) -> None:
    if ids.ndim != 2 or ids.shape != weights.shape:
        raise InputError(
            "expected topk_ids and topk_weights of one shape [T, K], "
            f"got {list(ids.shape)} and {list(weights.shape)}"
        )
    if ids.dtype not in ID_DTYPES:
        raise InputError(f"topk_ids: expected int32 or int64, got {ids.dtype}; convert the ids first")
    if weights.dtype not in WEIGHT_DTYPES:
        raise InputError(f"topk_weights: expected a floating-point dtype, got {weights.dtype}")
    if weights.device != ids.device:
        raise InputError(f"expected ids and weights on one device, got {ids.device} and {weights.device}")
    # A tensor's device always has its index, so this compares like with like.
    if neighbours.order.device != ids.device:
        raise InputError(
            f"expected ids on {neighbours.order.device}, where the plan was made, got {ids.device}; "
            "make a plan for each device"
        )
    if budget is not None:
        _check_budget(budget, ids)
    if num_tokens is not None:
        _check_num_tokens(num_tokens, ids)
    if counters is not None:
        _check_counters(counters, ids)


def _check_counters(counters: Tensor, ids: Tensor) -> None:
    check_tensor("counters", counters)
    if counters.dtype != torch.int64 or counters.shape != (len(COUNTERS),):
        raise InputError(
            f"counters: expected int64 of shape [{len(COUNTERS)}], "
            f"got {counters.dtype} of {list(counters.shape)}"
        )
    if counters.device != ids.device:
        raise InputError(f"counters: expected them on {ids.device} like the ids, got {counters.device}")
    if not counters.is_contiguous():
        raise InputError(
            f"counters: expected them side by side, got strides {list(counters.stride())}; they are added to "
            "in place, so make them with torch.zeros and copy them out of it"
        )


def _check_budget(budget: Tensor, ids: Tensor) -> None:
    if budget.shape != ids.shape[:1] or budget.dtype not in ID_DTYPES or budget.device != ids.device:
        raise InputError(
            f"row_budget: expected {ids.shape[0]} integers (int32 or int64) on {ids.device}, one a row, "
            f"got {budget.dtype} of shape {list(budget.shape)} on {budget.device}"
        )


def _check_num_tokens(num_tokens: Tensor | int, ids: Tensor) -> None:
    if isinstance(num_tokens, Tensor):
        if num_tokens.ndim > 1 or num_tokens.numel() != 1 or num_tokens.dtype not in ID_DTYPES:
            raise InputError(
                "num_tokens: expected one integer (int32 or int64, of shape [] or [1]), "
                f"got {num_tokens.dtype} of shape {list(num_tokens.shape)}"
            )
    elif isinstance(num_tokens, bool) or not isinstance(num_tokens, int | np.integer):
        raise InputError(f"num_tokens: expected an integer or a tensor with one, got {num_tokens!r}")
    elif not 0 <= num_tokens <= ids.shape[0]:
        raise InputError(f"num_tokens: expected 0 to {ids.shape[0]} (the rows), got {num_tokens}")
