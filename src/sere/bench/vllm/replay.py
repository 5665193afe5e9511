"""What takes the place of an engine's routing for a while: a recording, a clock, or nothing at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from time import perf_counter
from typing import Any
from unittest.mock import patch

from torch import Tensor

from sere.engines.in_process import state_of, worker_of
from sere.reroute import operator
from sere.reroute.backends.registry import implementation

Routes = Callable[..., tuple[Tensor, Tensor]]
"""What re-routes one layer's step: a layer's ``route``, or the operation behind it."""

Tape = list[tuple[Tensor, Tensor]]
"""What each call of the routing returned, in order."""


def record_routing(llm: Any, run: Callable[[], object]) -> Tape:
    """Run something and keep what each call of the routing returned."""
    tape: Tape = []

    def recording(route: Routes) -> Routes:
        def record(*step: Any) -> tuple[Tensor, Tensor]:
            result = route(*step)
            tape.append(_copy(result))
            return result

        return record

    with _routing(llm, recording):
        run()
    return tape


@contextmanager
def replayed(llm: Any, tape: Tape) -> Iterator[None]:
    """Let the layers take their routing from a tape: the same ids as re-routing, without its work."""
    # Compiled code may write over what the operation has given it.
    steps = iter([_copy(step) for step in tape])
    # The layers' counters see nothing of a replay, which is no fault to warn of.
    with state_of(llm).guard.silenced(), _routing(llm, lambda _route: lambda *_step: next(steps)):
        yield


@contextmanager
def timed_routing(llm: Any) -> Iterator[list[float]]:
    """Collect the time of each call of the routing, in ms."""
    spent: list[float] = []

    def timing(route: Routes) -> Routes:
        def timed(*step: Any) -> tuple[Tensor, Tensor]:
            started = perf_counter()
            result = route(*step)
            spent.append((perf_counter() - started) * 1e3)
            return result

        return timed

    with _routing(llm, timing):
        yield spent


@contextmanager
def _routing(llm: Any, make: Callable[[Routes], Routes]) -> Iterator[None]:
    """Put another function in place of the Python that re-routes at each step of the engine.

    That is each layer's ``route``; where compiled code has taken it in, the operation that this code calls.
    Only one of the two runs, and neither where captured graphs are replayed.
    """
    with ExitStack() as stack:
        for layer in state_of(llm).layers.values():
            stack.enter_context(patch.object(layer, "route", make(layer.route)))
        operation = patch.object(operator, "implementation", lambda backend: make(implementation(backend)))
        stack.enter_context(operation)
        yield


def _copy(routing: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return routing[0].clone(), routing[1].clone()


@contextmanager
def untouched(llm: Any) -> Iterator[None]:
    """Take every wrapper off routers and model runner, and put them back."""
    holders = [layer.runner.router for layer in state_of(llm).layers.values()]
    names = ("_compute_routing", "execute_model", "_prepare_inputs", "prepare_inputs", "_dummy_run")
    taken = [
        (holder, name, vars(holder).pop(name))
        for holder in [*holders, worker_of(llm).model_runner]
        for name in names
        if name in vars(holder)
    ]
    try:
        yield
    finally:
        for holder, name, wrapper in taken:
            setattr(holder, name, wrapper)
