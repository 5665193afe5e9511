"""Whether layers get numbers of experts of their own: only where that wins on prompts that chose nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sere.eval.statistics.by_prompt import Estimate, ratio_of_means
from sere.tune.allocate import Allocation
from sere.tune.measure import Loss, Meter
from sere.tune.plans import Plans


@dataclass(frozen=True, slots=True)
class Comparison:
    """Layers with numbers of their own against the same number in all, at equal mean experts.

    Attributes:
        ratio: The losses' ratio, below 1 if own numbers lose less: the geometric mean over the batch sizes,
            paired by prompt, with its two-sided 95 % interval; None if nothing could be compared.
        by_rows: The same for each number of rows, with both losses.
    """

    ratio: Estimate | None
    by_rows: Mapping[int, tuple[Estimate, Loss, Loss]]

    @property
    def kept(self) -> bool:
        """Whether own numbers win beyond the interval, and lose beyond it at no number of rows."""
        if self.ratio is None or self.ratio.high is None or self.ratio.high >= 1:
            return False
        return all(one.low is None or one.low <= 1 for one, _, _ in self.by_rows.values())

    def describe(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""
        return {
            "kept": self.kept,
            "ratio": None if self.ratio is None else asdict(self.ratio),
            "by_batch_size": {
                str(B): {
                    "ratio": asdict(ratio),
                    "kl": round(own.mean.value, 6),
                    "kl_uniform": round(same.mean.value, 6),
                    "experts_after": round(own.after, 3),
                    "experts_after_uniform": round(same.after, 3),
                }
                for B, (ratio, own, same) in self.by_rows.items()
            },
        }


def compare(allocation: Allocation, rows: Sequence[int], meter: Meter, plans: Plans) -> Comparison:
    """Measure on the held-out prompts what own numbers gain at an equal mean number of experts.

    Args:
        allocation: M by rows, as it is if all layers read the same number.
        rows: The rows to compare at.
        meter: Measures.
        plans: What the layers read if each reads its own number.
    """
    by_rows, pairs = {}, []
    for B in rows:
        M = allocation.at(B)
        plan = plans.at(B, M)
        if not isinstance(plan, tuple) or set(plan) == {M}:
            continue
        same, own = meter.loss("held-out", B, M), meter.loss("held-out", B, plan)
        # Where one of them changes nothing, there is no ratio.
        if min(sum(own.kl), sum(same.kl)) > 0:
            pairs.append((own.kl, same.kl))
            by_rows[B] = (ratio_of_means(pairs[-1:]), own, same)
    return Comparison(ratio_of_means(pairs) if pairs else None, by_rows)
