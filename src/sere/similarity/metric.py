"""What a similarity metric is: its definition, what computes it, its parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from sere.errors import ConfigError, did_you_mean
from sere.similarity.accumulator import Accumulator
from sere.similarity.layer import LayerSimilarity


class Parameter(NamedTuple):
    """One parameter of a metric.

    Attributes:
        default: Its value if none is given.
        problem: Returns what was expected instead of a value, or None if the value is fine.
        adds: Further parameters by the value of this one.
    """

    default: Any
    problem: Callable[[Any], str | None]
    adds: Mapping[Any, Mapping[str, Parameter]] = {}


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A similarity metric; each has its own file in `sere.similarity` and a row in `METRICS`.

    Attributes:
        name: Its name in settings, in tables and on the command line.
        summary: What it measures, in one line.
        definition: The specification, in plain loops over pairs and in float64: a function of all outputs
            ``[E, T, H]`` (and the router's ids and weights ``[T, K]`` if the accumulator needs them), or of
            the experts' weights ``[E, n]``, and of the parameters. Returns the similarity ``[E, E]``, or
            similarity and scale.
        accumulator: Computes it from the experts' outputs, piece by piece; None for a metric of weights.
        of_weights: Computes it from one flat tensor of weights per expert; None for a metric of outputs.
        parameters: Its parameters by name.
        symmetric: Whether p is as similar to e as e is to p.
        unknown: Why nothing may be known of an expert, and what helps; empty if all are always known.

    Raises:
        ValueError: It has both an accumulator and ``of_weights``, or neither.
    """

    name: str
    summary: str
    definition: Callable[..., Tensor | tuple[Tensor, Tensor]]
    accumulator: type[Accumulator] | None = None
    of_weights: Callable[[Sequence[Tensor]], LayerSimilarity] | None = None
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    symmetric: bool = True
    unknown: str = ""

    def __post_init__(self) -> None:
        if (self.accumulator is None) == (self.of_weights is None):
            raise ValueError(f"metric {self.name!r}: expected either an accumulator or of_weights")

    @property
    def needs_routing(self) -> bool:
        """Whether it needs the router's ids and weights."""
        return self.accumulator is not None and self.accumulator.needs_routing

    def resolve(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return all parameters: those given, checked, and the defaults of the others.

        Raises:
            ConfigError: A name is unknown (the text names the nearest), or a value is wrong.
        """
        values: dict[str, Any] = {}
        waiting = dict(self.parameters)
        known = set(waiting)
        while waiting:
            name = next(iter(waiting))
            parameter = waiting.pop(name)
            values[name] = value = given.get(name, parameter.default)
            if (expected := parameter.problem(value)) is not None:
                raise ConfigError(f"{self.name}: {name}: expected {expected}, got {value!r}")
            if parameter.adds:
                waiting |= parameter.adds.get(value, {})
                known |= set(waiting)
        for name in given:
            if name not in known:
                hint = did_you_mean(name, known) if known else "; it has none"
                raise ConfigError(f"{self.name}: unknown parameter {name!r}{hint}")
        return values


def integer(least: int) -> Callable[[Any], str | None]:
    """Return the check of a parameter that is an integer of at least ``least``."""

    def problem(value: Any) -> str | None:
        right = isinstance(value, int) and not isinstance(value, bool) and value >= least
        return None if right else f"an integer of at least {least}"

    return problem


def number(*, above_zero: bool = False) -> Callable[[Any], str | None]:
    """Return the check of a parameter that is a finite number of at least 0, or above 0."""

    def problem(value: Any) -> str | None:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and 0 <= value < float("inf") and not (above_zero and value == 0):
            return None
        return f"a finite number {'above 0' if above_zero else 'of at least 0'}"

    return problem


def one_of(*choices: str) -> Callable[[Any], str | None]:
    """Return the check of a parameter that is one of these words."""

    def problem(value: Any) -> str | None:
        return None if value in choices else f"one of {', '.join(choices)}"

    return problem
