"""Right answers: how many a divergence costs, and what a tier costs on questions that it was not tuned on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from sere.engines.side_by_side import SideBySide, rows_at_once
from sere.eval.decoding.greedy import decode, stop_rule
from sere.eval.questions import Asked, mark
from sere.eval.statistics.by_prompt import mean_per_token
from sere.eval.statistics.by_question import paired_difference, wilson
from sere.integrations.transformers import apply
from sere.policies.sere import Sere
from sere.table import SimilarityTable
from sere.tune.measure import Meter
from sere.tune.plan import Half
from sere.tune.plans import Plan, settings_of, text_of
from sere.tune.simulate import Simulated
from sere.tune.work import Work

# The simulated errors at which answers are counted: from where some are surely lost to where hardly any is.
_ERRORS = (0.35, 0.25, 0.18, 0.12, 0.06)
# The upper end of a two-sided interval of 90 % is that of a one-sided one of 95 %.
_TWO_SIDED = 0.9


@dataclass(frozen=True, slots=True)
class Examiner:
    """Asks questions, each setting once.

    Attributes:
        model: A causal language model of Transformers, unmodified.
        tokenizer: Its tokenizer.
        table: Its similarities.
        asked: The questions by half.
        prompts: Their token ids.
        max_new_tokens: Most tokens of an answer.
        work: Keeps what is finished.
        min_gain: τ of all settings.
    """

    model: Any
    tokenizer: Any
    table: SimilarityTable
    asked: Mapping[Half, Sequence[Asked]]
    prompts: Mapping[Half, Sequence[Sequence[int]]]
    max_new_tokens: int
    work: Work
    min_gain: float = 0.0

    def under(self, min_gain: float) -> Self:
        """Return what asks under another least gain."""
        return replace(self, min_gain=min_gain)

    def right(self, half: Half, rows: int, plan: Plan | None) -> list[bool]:
        """Return which questions are answered right, in steps of so many rows.

        Args:
            half: Which questions.
            rows: B.
            plan: What the layers read; None for the unmodified model.
        """
        name = f"answers {half} B={rows} M={None if plan is None else text_of(plan, self.min_gain)}"
        if name not in self.work.done:
            rule = stop_rule(self.model, self.tokenizer, self.max_new_tokens)
            at_once = rows_at_once(self.model, rows, len(self.prompts[half]))
            ask: Callable[[], Any] = lambda: decode(  # noqa: E731
                self.model, self.prompts[half], batch_size=at_once, rule=rule
            )
            if plan is None:
                decoded = ask()
            else:
                policy = Sere(self.table.layers, settings_of(plan, sorted(self.table.layers), self.min_gain))
                with apply(self.model, policy=SideBySide(policy, rows), pad_token_id=-1) as handle:
                    handle.quiet = True
                    decoded = ask()
            self.work.put(name, mark(self.tokenizer, self.asked[half], decoded.tokens))
        found: list[bool] = self.work.done[name]
        return found

    def describe(self, rows: int, plan: Plan) -> dict[str, Any]:
        """Return what a plan loses on the held-out questions, paired with off."""
        off, on = (self.right("held-out", rows, one) for one in (None, plan))
        return {
            "questions": len(on),
            "share_before": asdict(wilson(sum(off), len(off))),
            "share_after": asdict(wilson(sum(on), len(on))),
            "difference": asdict(paired_difference(on, off)),
        }


Prices = Sequence[tuple[float, float]]
"""Pairs of a divergence, in nats per token, and the most that it costs, as a share of all answers."""


def prices(
    examiner: Examiner, meter: Meter, simulated: Mapping[int, Simulated], rows: Sequence[int]
) -> Prices:
    """Return what some divergences cost in right answers, on all batch sizes together.

    Args:
        examiner: Asks the tuning questions.
        meter: Measures the divergence on them.
        simulated: What the table says, by rows.
        rows: The rows that are measured.

    Returns:
        For each of a few simulated errors the mean divergence, and the upper end of the one-sided 95 %
        interval of the share of answers that are lost.
    """
    found = []
    for error in _ERRORS:
        lost = [0] * len(examiner.asked["tuning"])
        divergence = 0.0
        for B in rows:
            M = min((M for M, cell in simulated[B].items() if cell.error <= error), default=max(simulated[B]))
            off, on = (examiner.right("tuning", B, one) for one in (None, M))
            lost = [sum_ + before - after for sum_, before, after in zip(lost, off, on, strict=True)]
            divergence += meter.loss("tuning", B, M).mean.value
        n = len(lost) * len(rows)
        share = mean_per_token(lost, [len(rows)] * len(lost), confidence=_TWO_SIDED)
        # Nothing lost in n answers: with 95 % probability, less than 3 in n would be.
        most = max(share.value if share.high is None else share.high, 3 / n)
        found.append((divergence / len(rows), most))
    return found


def accepted_divergence(points: float, prices: Prices) -> float:
    """Return the divergence that costs so many points of right answers, at most.

    Answers are too coarse to search with: a few hundred questions leave an interval of some points. So they
    only give prices of divergences. A divergence that costs at most ``points`` is accepted; of one that costs
    more, the part is accepted that costs ``points`` if the loss is in proportion. Measured losses grow faster
    than that, so each price gives a lower bound, and the best of them counts.

    Args:
        points: Accepted loss, in percentage points.
        prices: As `prices` returns them.
    """
    return max(divergence * min(1.0, points / 100 / most) for divergence, most in prices)
