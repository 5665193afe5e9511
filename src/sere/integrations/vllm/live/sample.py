"""What an engine had counted at one moment, and what it counted between two of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from sere.integrations.vllm.step_counts import SKIPPED
from sere.reroute.stats import COUNTERS

KINDS = ("rerouted", *SKIPPED)
"""The kinds of steps."""

_DIGITS = 4


@dataclass(frozen=True, slots=True)
class Sample:
    """What an engine had counted at one moment, and which settings held.

    Attributes:
        at: Seconds since 1970.
        steps: Steps by kind, one number for each of ``KINDS``.
        layers: For each layer, by index, one sum for each of ``COUNTERS``.
        settings: What may be changed while the engine runs, JSON-ready, with ``enabled`` and ``count_only``.
    """

    at: float
    steps: tuple[int, ...]
    layers: Mapping[int, tuple[int, ...]]
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, joined: Mapping[str, Any], at: float) -> Self:
        """Return the sample of an engine's answer.

        Args:
            joined: What `join_answers` returned.
            at: When it was given, in seconds since 1970.
        """
        settings = {name: value for name, value in joined["settings"].items() if name != "table"}
        return cls(
            at,
            tuple(joined["steps"][kind] for kind in KINDS),
            {layer["index"]: tuple(layer["counters"]) for layer in joined["layers"]},
            settings | {name: joined[name] for name in ("enabled", "count_only")},
        )

    def since(self, earlier: Sample) -> Sample | None:
        """Return what was counted since an earlier moment; None if counters were set to zero in between."""
        if self.layers.keys() != earlier.layers.keys():
            return None
        steps = _minus(self.steps, earlier.steps)
        layers = {index: _minus(sums, earlier.layers[index]) for index, sums in self.layers.items()}
        if any(number < 0 for numbers in (steps, *layers.values()) for number in numbers):
            return None
        return Sample(self.at, steps, layers, self.settings)

    @property
    def is_empty(self) -> bool:
        """Whether no layer counted a step."""
        return not any(sums[0] for sums in self.layers.values())

    def by_kind(self) -> dict[str, int]:
        """Return the steps by kind."""
        return dict(zip(KINDS, self.steps, strict=True))

    def means(self) -> dict[str, float | None]:
        """Return means over all layers and their steps; None where no layer counted a step.

        Returns:
            ``rows``, ``before``, ``after`` and ``critical`` for a layer's step (rows and experts), and
            ``rerouted`` and ``computed``, shares of the slots from 0 to 1.
        """
        return means([sum(sums) for sums in zip(*self.layers.values(), strict=True)])

    def experts_not_read(self) -> int:
        """Return how many experts were chosen and not run, summed over layers and steps."""
        before, after = COUNTERS.index("distinct_before"), COUNTERS.index("distinct_after")
        return sum(sums[before] - sums[after] for sums in self.layers.values())


def means(sums: Sequence[int]) -> dict[str, float | None]:
    """Turn counters into means, as `Sample.means` does.

    Args:
        sums: One for each of ``COUNTERS``, or none at all.
    """
    found = dict(zip(COUNTERS, sums, strict=False))
    per_step = {
        "rows": "rows",
        "before": "distinct_before",
        "after": "distinct_after",
        "critical": "critical",
    }
    per_slot = {"rerouted": "slots_rerouted", "computed": "slots_computed"}
    return {name: _ratio(found, counter, "steps") for name, counter in per_step.items()} | {
        name: _ratio(found, counter, "slots") for name, counter in per_slot.items()
    }


def _ratio(sums: Mapping[str, int], counter: str, over: str) -> float | None:
    return round(sums[counter] / sums[over], _DIGITS) if sums.get(over) else None


def _minus(later: Sequence[int], earlier: Sequence[int]) -> tuple[int, ...]:
    return tuple(a - b for a, b in zip(later, earlier, strict=True))
