"""Watch the steps of an engine of this process from inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor

from sere.engines.in_process import state_of, worker_of
from sere.integrations.vllm.tiers import PROTECTED
from sere.reroute import Routing
from sere.reroute.constants import PADDING_BUDGET


class WatchedStep(NamedTuple):
    """What the first layer's routing got and gave in one step."""

    budgets: Tensor
    ids: Tensor
    weights: Tensor
    new_ids: Tensor


@contextmanager
def watched(llm: Any) -> Iterator[list[WatchedStep]]:
    """Record what the first layer's routing gets and gives at each step."""
    state = state_of(llm)
    layer = state.layers[0]
    seen: list[WatchedStep] = []
    route = layer.route

    def recorded(ids: Tensor, weights: Tensor, *rest: Any) -> Routing:
        routing = route(ids, weights, *rest)
        assert state.budgets is not None
        budgets = state.budgets.at(len(ids))
        seen.append(WatchedStep(budgets.clone(), ids.clone(), weights.clone(), routing.ids.clone()))
        return routing

    layer.route = recorded  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        del layer.route


@contextmanager
def announced(llm: Any, act: Callable[[Any, list[str], Any, Callable[[], None]], None]) -> Iterator[None]:
    """Call ``act(scheduler_output, names, counts, announce)`` in the place of each step's announcement."""
    steps = worker_of(llm).sere_steps
    announce = steps._announce

    def recorded(scheduler_output: Any, names: list[str], counts: Any) -> None:
        act(scheduler_output, names, counts, lambda: announce(scheduler_output, names, counts))

    steps._announce = recorded
    try:
        yield
    finally:
        del steps._announce


def kinds(budgets: Tensor) -> set[str]:
    """Return which kinds of rows a step has: padding, protected, decoded."""
    names = {PADDING_BUDGET: "padding", PROTECTED: "protected"}
    return {names.get(int(value), "decoded") for value in budgets}
