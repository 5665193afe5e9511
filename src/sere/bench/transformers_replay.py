"""Replace what routes a model of Transformers for a while: by a replay of recorded ids and pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial

from sere.bench.replay import Make, Recording, record, replaced, replay
from sere.integrations.transformers import Handle


def record_handle(handle: Handle, run: Callable[[], object]) -> Recording:
    """Run something in Transformers and return what re-routing computed in it; see `record`."""
    return record(partial(_handle_with, handle), run)


def replayed_handle(handle: Handle, recording: Recording) -> AbstractContextManager[None]:
    """Let a model take routing and pairs from a recording of the same steps; see `replay`."""
    return replay(partial(_handle_with, handle), recording)


@contextmanager
def _handle_with(handle: Handle, route: Make, find: Make) -> Iterator[None]:
    """Replace what routes each layer of a model, and what finds its pairs."""
    with ExitStack() as stack:
        for layer in handle.layers:
            stack.enter_context(replaced(layer, "route", route(layer.route)))
            for name in ("find", "skip"):
                stack.enter_context(replaced(layer.flat, name, find(getattr(layer.flat, name))))
        yield
