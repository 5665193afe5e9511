"""What became of the slots of re-routed steps: how many were computed as pairs, and why others were not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Self


@dataclass(slots=True)
class PairCounts:
    """What one layer counted on the host.

    Attributes:
        steps: Runs of the layer that computed pairs only.
        slots: T·K of these runs, added up.
        pairs: The pairs that they computed, added up.
        whole: Runs in which fewer pairs than slots carried weight, but computing all slots was faster.
    """

    steps: int = 0
    slots: int = 0
    pairs: int = 0
    whole: int = 0

    def add(self, slots: int, pairs: int) -> None:
        """Count a run that computed pairs only."""
        self.steps += 1
        self.slots += slots
        self.pairs += pairs

    def reset(self) -> None:
        """Set all to 0."""
        self.steps = self.slots = self.pairs = self.whole = 0

    def to_list(self) -> list[int]:
        """Return the counts as plain numbers, which can be sent between processes."""
        return [getattr(self, field.name) for field in fields(self)]

    @classmethod
    def total(cls, counts: Iterable[Iterable[int]]) -> Self:
        """Return the sums of what `to_list` of several layers returned."""
        return cls(*map(sum, zip(*counts, strict=True)))


@dataclass(frozen=True, slots=True)
class Flattening:
    """Whether re-routed steps compute only the pairs of a row and an expert that carry weight.

    Attributes:
        setting: The setting ``flatten``: ``"auto"``, ``"on"`` or ``"off"``.
        why_not: One sentence that says why all slots are computed; None where pairs may be.
        steps: Runs of a layer that computed pairs only, over all layers.
        slots: T·K of these runs, added up.
        pairs: The pairs that they computed, added up.
        whole: Runs in which fewer pairs than slots carried weight, but computing all slots was faster.
        break_even: By kind of layer, numbers of rows, each with the share of the slots, 0 to 1, up to which
            pairs were measured to be faster; empty where nothing was measured.
    """

    setting: str = "auto"
    why_not: str | None = None
    steps: int = 0
    slots: int = 0
    pairs: int = 0
    whole: int = 0
    break_even: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        setting: str,
        why_not: str | None,
        counts: Iterable[Iterable[int]],
        break_even: Mapping[str, Sequence[Sequence[float]]] | None = None,
    ) -> Self:
        """Return what several layers counted.

        Args:
            setting: The setting ``flatten``.
            why_not: Why pairs are not used, or None.
            counts: `PairCounts.to_list` of each layer.
            break_even: What was measured, or None.
        """
        total = PairCounts.total([*counts, PairCounts().to_list()])
        return cls(setting, why_not, **asdict(total), break_even=break_even or {})

    def describe(self) -> str:
        """Return a few words for a log line."""
        if self.why_not is not None:
            return f"all slots computed ({self.why_not})"
        if not self.slots:
            return "no step was flattened"
        return f"{100 * self.pairs / self.slots:.0f} % of the slots computed in flattened steps"
