"""Replace an engine's routing for a while: by a replay of recorded ids, or by a timed one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from time import perf_counter
from typing import Any

from torch import Tensor

from sere.engines.in_process import state_of
from sere.reroute import Routing, operator
from sere.reroute.backends.registry import Implementation, implementation

Route = Callable[..., tuple[Tensor, Tensor]]
"""What re-routes one layer's step: a layer's ``route``, or the operation behind it."""

Recording = list[Routing]
"""What each call of the routing returned, in order."""


def record_routing(llm: Any, run: Callable[[], object]) -> Recording:
    """Run something and return what each call of the routing returned."""
    recording: Recording = []

    def recorded(route: Route) -> Route:
        def record(*step: Any) -> tuple[Tensor, Tensor]:
            result = route(*step)
            recording.append(_copy(result))
            return result

        return record

    with _routing(llm, recorded):
        run()
    return recording


@contextmanager
def replayed(llm: Any, recording: Recording) -> Iterator[None]:
    """Let the layers take their routing from a recording: the same ids as re-routing, without its work."""
    # Compiled code may overwrite what the operation returns.
    steps = iter([_copy(step) for step in recording])
    # The layers' counters count nothing in a replay, which is no reason for a warning.
    with state_of(llm).guard.silenced(), _routing(llm, lambda _route: lambda *_step: next(steps)):
        yield


@contextmanager
def timed_routing(llm: Any) -> Iterator[list[float]]:
    """Collect the time of each call of the routing, in ms."""
    spent: list[float] = []

    def timed(route: Route) -> Route:
        def clocked(*step: Any) -> tuple[Tensor, Tensor]:
            started = perf_counter()
            result = route(*step)
            spent.append((perf_counter() - started) * 1e3)
            return result

        return clocked

    with _routing(llm, timed):
        yield spent


@contextmanager
def _routing(llm: Any, make: Callable[[Route], Route]) -> Iterator[None]:
    """Replace the Python that re-routes at each step of the engine.

    That is each layer's ``route``; in compiled code, the operation that this code calls. Only one of the two
    runs, and neither while captured graphs are replayed.
    """
    with ExitStack() as stack:
        for layer in state_of(llm).layers.values():
            stack.enter_context(_replaced(layer, "route", make(layer.route)))
        stack.enter_context(_replaced(operator, "implementation", partial(_remade, make)))
        yield


def _remade(make: Callable[[Route], Route], backend: str) -> Implementation:
    found = implementation(backend)
    route = make(found.run)
    return found._replace(run=lambda *step: Routing(*route(*step)))


@contextmanager
def _replaced(holder: Any, name: str, value: object) -> Iterator[None]:
    """Set an attribute of an object or a module, and restore what it had of its own."""
    own = vars(holder)
    before, had = own.get(name), name in own
    setattr(holder, name, value)
    try:
        yield
    finally:
        if had:
            setattr(holder, name, before)
        else:
            delattr(holder, name)


def _copy(routing: tuple[Tensor, Tensor]) -> Routing:
    ids, weights = routing
    return Routing(ids.clone(), weights.clone())
