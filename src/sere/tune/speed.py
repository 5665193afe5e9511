"""How much less a decode step reads, and how much faster it should be on this machine."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Self

import torch

from sere.errors import ConfigError
from sere.step_time import Ceilings, StepWeights, measure, step_seconds
from sere.structure import find_experts
from sere.table import SimilarityTable
from sere.table.expected_loss import Expected
from sere.tune.simulate import Simulated
from sere.tune.work import Work

_CEILINGS = "ceilings"


@dataclass(frozen=True, slots=True)
class Speed:
    """Compares steps by predicted time or, without ceilings of a machine, by the bytes that they read.

    Attributes:
        weights: The model's.
        ceilings: The machine's; None if only bytes count.
        top_k: K, mean over the layers.
    """

    weights: StepWeights
    ceilings: Ceilings | None
    top_k: float

    @classmethod
    def of(cls, model: Any, table: SimilarityTable, ceilings: Ceilings | None) -> Self:
        """Return that of a model of Transformers and its table."""
        return cls(StepWeights.of(model), ceilings, fmean(table.identity.slots.values()))

    def seconds(self, rows: int, experts: float, pairs: float) -> float | None:
        """Return the predicted time of a step; None without ceilings.

        Args:
            rows: B.
            experts: Distinct experts of a layer, mean.
            pairs: Slots of a layer that carry weight, mean. On a GPU every slot is computed.
        """
        if self.ceilings is None:
            return None
        if self.ceilings.device != "cpu":
            pairs = rows * self.top_k
        return step_seconds(self.weights, self.ceilings, rows=rows, experts=experts, pairs=pairs)

    def times(self, rows: int, found: Expected) -> float:
        """Return how many times faster a step should be; without ceilings, how many times less it reads."""
        before = self.seconds(rows, found.before, rows * self.top_k)
        after = self.seconds(rows, found.after, found.pairs)
        if before is None or after is None:
            return self.weights.fewer_bytes(found.before, found.after)
        return before / after

    def describe(self, rows: int, before: float, after: float, pairs: float) -> dict[str, Any]:
        """Return bytes and predicted times of a step off and re-routed, as JSON-ready values.

        Args:
            rows: B.
            before: Distinct experts of a layer off, mean.
            after: The same, re-routed.
            pairs: Slots of a layer that keep weight when re-routed, mean.
        """
        found: dict[str, Any] = {"bytes_ratio": round(self.weights.fewer_bytes(before, after), 4)}
        off, on = self.seconds(rows, before, rows * self.top_k), self.seconds(rows, after, pairs)
        if off is not None and on is not None:
            found["predicted"] = {"off_s": off, "rerouted_s": on, "ratio": round(off / on, 4)}
        return found

    def about(self) -> dict[str, Any] | None:
        """Return the ceilings as JSON-ready values; None without."""
        return None if self.ceilings is None else asdict(self.ceilings)


def find_ceilings(model: Any, work: Work) -> Ceilings:
    """Return the ceilings that an interrupted run kept, or measure those of the model's device and weights.

    Raises:
        ConfigError: Nothing can be measured on this device.
    """
    if _CEILINGS in work.done:
        return Ceilings(**work.done[_CEILINGS])
    weight = next(find_experts(model)[0].module.parameters())
    dtype = weight.dtype if weight.dtype.is_floating_point else torch.bfloat16
    if weight.device.type not in ("cpu", "cuda"):
        raise ConfigError(
            f"tune: expected a model on a CPU or a CUDA device to predict times, got {weight.device}; to "
            'compare bytes instead of times, use --by bytes (in Python, by="bytes")'
        )
    return measure(weight.device, dtype)


def keep_ceilings(ceilings: Ceilings, work: Work) -> None:
    """Keep ceilings with the measurements, so that a run that continues gives the same result."""
    if _CEILINGS not in work.done:
        work.put(_CEILINGS, asdict(ceilings))


def fewest_for(speedup: float, rows: int, simulated: Simulated, speed: Speed) -> int:
    """Return the largest M at which a step is so many times faster, or the smallest M there is.

    Args:
        speedup: Wanted, above 1.
        rows: B.
        simulated: What the table says of these rows.
        speed: Compares steps.
    """
    enough = [M for M, found in simulated.items() if speed.times(rows, found) >= speedup]
    return max(enough, default=min(simulated))
