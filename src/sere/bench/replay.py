"""Recorded routing and pairs, put in place of what computes them: the same experts at no cost of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sere.errors import InputError
from sere.integrations.transformers import Handle


@dataclass(frozen=True, slots=True)
class Recording:
    """What a block computed, in order.

    Attributes:
        routings: What each call of the routing returned: ids and weights.
        pairs: What each search for the pairs that carry weight returned.
    """

    routings: list[Any] = field(default_factory=list)
    pairs: list[Any] = field(default_factory=list)

    def describe(self) -> dict[str, int]:
        """Return for a record how many of both are taken from the recording; JSON-ready."""
        return {"routings": len(self.routings), "pairs": len(self.pairs)}


def kept(function: Callable[..., Any], found: list[Any]) -> Callable[..., Any]:
    """Return the same function, which also appends copies of what it returns to a list."""

    def keeping(*args: Any) -> Any:
        result = function(*args)
        found.append(_copy(result))
        return result

    return keeping


def given(found: Sequence[Any]) -> Callable[..., Any]:
    """Return a function that returns one after the other what was kept, whatever it is called with.

    Called once more, it raises `InputError`.
    """
    # What runs on it may overwrite it.
    results = iter([_copy(one) for one in found])

    def giving(*_: Any) -> Any:
        try:
            return next(results)
        except StopIteration:
            raise InputError(
                f"replay: expected the {len(found)} calls that were recorded, got one more; replay the steps "
                "that were recorded, with the same rows"
            ) from None

    return giving


@contextmanager
def replaced(holder: Any, name: str, value: object) -> Iterator[None]:
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


def record_handle(handle: Handle, run: Callable[[], object]) -> Recording:
    """Run something in Transformers and return what re-routing computed in it.

    Args:
        handle: Re-routing of the model.
        run: Runs the model.
    """
    found = Recording()
    with _handle_with(
        handle,
        lambda function: kept(function, found.routings),
        lambda function: kept(function, found.pairs),
    ):
        run()
    return found


@contextmanager
def replayed_handle(handle: Handle, recording: Recording) -> Iterator[None]:
    """Let a model take routing and pairs from a recording of the same steps."""
    routings, pairs = given(recording.routings), given(recording.pairs)
    with _handle_with(handle, lambda _: routings, lambda _: pairs):
        yield


@contextmanager
def _handle_with(
    handle: Handle,
    route: Callable[[Callable[..., Any]], Callable[..., Any]],
    find: Callable[[Callable[..., Any]], Callable[..., Any]],
) -> Iterator[None]:
    """Replace what routes each layer of a model, and what finds its pairs."""
    with ExitStack() as stack:
        for layer in handle.layers:
            stack.enter_context(replaced(layer, "route", route(layer.route)))
            for name in ("find", "skip"):
                stack.enter_context(replaced(layer.flat, name, find(getattr(layer.flat, name))))
        yield


def _copy(found: Sequence[Any]) -> Any:
    """Return the same values, tensors copied; of named tuples, the same kind of tuple."""
    values = [value.clone() if isinstance(value, Tensor) else value for value in found]
    return type(found)(*values) if hasattr(found, "_fields") else tuple(values)
