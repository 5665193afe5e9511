"""Recorded routing and pairs, put in place of what computes them: the same experts at no cost of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from sere.errors import EngineError
from sere.policies.spec import PolicySpec
from sere.reroute.batch import TokenBatch

REPLAY = "replay "
"""Before the name of a setting: its re-routed ids and pairs, recorded before, without the work of computing
them. In older records, those without ``replayed``, its ids alone."""

Make = Callable[[Callable[..., Any]], Callable[..., Any]]
"""Returns what takes the place of a function."""

Replace = Callable[[Make, Make], AbstractContextManager[None]]
"""Replaces, while its context lasts, what routes each layer and what finds its pairs."""

_SAME_STEPS = "replay the steps that were recorded, with the same rows"


class Answer(NamedTuple):
    """What one call returned.

    Attributes:
        shape: ``[T, K]``, that of the ids that it was called with.
        result: What it returned; its tensors are copies.
    """

    shape: tuple[int, ...]
    result: Any


@dataclass(frozen=True, slots=True)
class Recording:
    """What a block computed, in order.

    Attributes:
        routings: The calls of the routing; each returned ids and weights.
        pairs: The searches for the pairs that carry weight.
    """

    routings: list[Answer] = field(default_factory=list)
    pairs: list[Answer] = field(default_factory=list)

    def describe(self) -> dict[str, int]:
        """Return for a record how many of both are taken from the recording; JSON-ready."""
        return {"routings": len(self.routings), "pairs": len(self.pairs)}


@dataclass(frozen=True, slots=True)
class Way:
    """A way to run a model that is timed: under a setting, or as a replay of what that computed.

    Attributes:
        label: What records call it.
        enter: Makes the context under which it runs.
        setting: The setting; None for an engine that has none.
        recording: What a replay takes its routing and pairs from; else None.
    """

    label: str
    enter: Callable[[], AbstractContextManager[object]]
    setting: PolicySpec | None = None
    recording: Recording | None = None

    def replayed(self, enter: Callable[[], AbstractContextManager[object]], recording: Recording) -> Way:
        """Return the replay of what this way computed.

        Args:
            enter: Makes the context under which the recording is replayed.
            recording: What a block of this way computed.
        """
        return Way(REPLAY + self.label, enter, self.setting, recording)


def kept(function: Callable[..., Any], found: list[Answer]) -> Callable[..., Any]:
    """Return the same function, which also appends copies of what it returns to a list.

    Args:
        function: Is called with ids, ``[T, K]``, or a `TokenBatch` as its first argument.
        found: Appended to.
    """

    def keeping(*step: Any) -> Any:
        result = function(*step)
        found.append(Answer(_shape_of(step), _copy(result)))
        return result

    return keeping


def record(replace: Replace, run: Callable[[], object]) -> Recording:
    """Run something and return what re-routing computed in it.

    Args:
        replace: Replaces what computes it.
        run: Runs the model.
    """
    found = Recording()
    with replace(lambda route: kept(route, found.routings), lambda find: kept(find, found.pairs)):
        run()
    return found


@contextmanager
def replay(replace: Replace, recording: Recording) -> Iterator[None]:
    """Let a model take routing and pairs from a recording: what re-routing gives, without its work.

    Args:
        replace: Replaces what computes them.
        recording: Of the same steps.

    Raises:
        EngineError: The block takes other steps than those that were recorded.
    """
    with given(recording) as (routings, pairs), replace(lambda _: routings, lambda _: pairs):
        yield


@contextmanager
def given(recording: Recording) -> Iterator[tuple[Callable[..., Any], Callable[..., Any]]]:
    """Give a function that returns the recorded routings one after the other, and one for the pairs.

    Raises:
        EngineError: A call has ids of another shape than the recorded one, or is one more than were recorded,
            or the block has ended with fewer.
    """
    routings = _Player("the routing", recording.routings)
    pairs = _Player("the search for pairs", recording.pairs)
    yield routings, pairs
    routings.check_end()
    pairs.check_end()


class _Player:
    """Returns one after the other what was recorded, to calls like the recorded ones."""

    def __init__(self, name: str, recorded: Sequence[Answer]) -> None:
        self._name, self._used = name, 0
        # What runs on a result may overwrite it.
        self._answers = [Answer(shape, _copy(result)) for shape, result in recorded]

    def __call__(self, *step: Any) -> Any:
        count, shape = len(self._answers), _shape_of(step)
        if self._used == count:
            raise EngineError(
                f"replay: expected the {count} calls of {self._name} that were recorded, got one more; "
                f"{_SAME_STEPS}"
            )
        answer = self._answers[self._used]
        self._used += 1
        if shape != answer.shape:
            raise EngineError(
                f"replay: call {self._used} of {count} of {self._name}: expected ids of the recorded shape "
                f"{answer.shape}, got {shape}; {_SAME_STEPS}"
            )
        return answer.result

    def check_end(self) -> None:
        """Refuse a block that took fewer steps than were recorded."""
        if self._used < len(self._answers):
            raise EngineError(
                f"replay: expected the {len(self._answers)} calls of {self._name} that were recorded, got "
                f"{self._used}; {_SAME_STEPS}"
            )


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


def _shape_of(step: Sequence[Any]) -> tuple[int, ...]:
    """Return the shape of the ids that a call is given: its first argument, or in a batch."""
    first = step[0]
    ids = first.topk_ids if isinstance(first, TokenBatch) else first
    return tuple(ids.shape)


def _copy(found: Sequence[Any]) -> Any:
    """Return the same values, tensors copied; of named tuples, the same kind of tuple."""
    values = [value.clone() if isinstance(value, Tensor) else value for value in found]
    return type(found)(*values) if hasattr(found, "_fields") else tuple(values)
