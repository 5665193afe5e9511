"""Replace an engine's routing for a while: by a replay of recorded ids and pairs, or by a timed one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from time import perf_counter
from typing import Any

from torch import Tensor

from sere.bench.replay import Make, Recording, record, replaced, replay
from sere.engines.in_process import state_of
from sere.reroute import Routing, operator
from sere.reroute.backends.registry import Implementation, implementation

Route = Callable[..., tuple[Tensor, Tensor]]
"""What re-routes one layer's step: a layer's ``route``, or the operation behind it."""


def record_routing(llm: Any, run: Callable[[], object]) -> Recording:
    """Run something and return what re-routing computed in it; see `record`."""
    return record(partial(_engine_with, llm), run)


@contextmanager
def replayed(llm: Any, recording: Recording) -> Iterator[None]:
    """Let the layers take routing and pairs from a recording of the same steps; see `replay`."""
    # The layers' counters count nothing in a replay, which is no reason for a warning.
    with state_of(llm).guard.silenced(), replay(partial(_engine_with, llm), recording):
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
def _engine_with(llm: Any, route: Make, find: Make) -> Iterator[None]:
    """Replace what routes each layer of an engine, and what finds its pairs."""
    with _routing(llm, route), _finding(llm, find):
        yield


@contextmanager
def _routing(llm: Any, make: Callable[[Route], Route]) -> Iterator[None]:
    """Replace the Python that re-routes at each step of the engine.

    That is each layer's ``route``; in compiled code on a GPU, the operation that this code calls. Only one of
    the two runs, and neither while captured graphs are replayed.
    """
    with ExitStack() as stack:
        for layer in state_of(llm).layers.values():
            stack.enter_context(replaced(layer, "route", make(layer.route)))
        stack.enter_context(replaced(operator, "implementation", partial(_remade, make)))
        yield


@contextmanager
def _finding(llm: Any, make: Make) -> Iterator[None]:
    """Replace what finds the pairs of each step; compiled code calls the same."""
    with ExitStack() as stack:
        for layer in state_of(llm).layers.values():
            if layer.flat is not None:
                stack.enter_context(replaced(layer.flat, "find", make(layer.flat.find)))
        yield


def _remade(make: Callable[[Route], Route], backend: str) -> Implementation:
    found = implementation(backend)
    route = make(found.run)
    return found._replace(run=lambda *step: Routing(*route(*step)))
