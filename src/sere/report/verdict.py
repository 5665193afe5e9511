"""Which of the measured settings may be advised: one whose interval keeps its loss within a limit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Literal

from sere.report.cases import Measure, Quality

# What the tier "balanced" accepts (sere.tune.plan; a test compares them): nats per token, and points of right
# answers.
ACCEPTED_KL = 0.002
ACCEPTED_POINTS = 1.0


@dataclass(frozen=True, slots=True)
class Cost:
    """What one setting of sere reads and loses at one batch size.

    Attributes:
        setting: The setting.
        rows: B.
        before: Distinct experts per layer and step without re-routing.
        after: The same, with the setting.
        count: Questions, or prompts.
        measure: What ``change`` is: of right answers against off, as a share, or KL in nats per token.
        change: ``value`` with ``low`` and ``high``; the bounds of a KL of a single prompt are None.
        table: Metric and fingerprint of the table, or "".
    """

    setting: str
    rows: int
    before: float
    after: float
    count: int
    measure: Measure
    change: Mapping[str, float | None]
    table: str = ""

    @property
    def lost(self) -> float:
        """What was lost: points of right answers, or nats per token."""
        value = self.change["value"] or 0.0
        return value if self.measure == "kl" else _points(value)

    @property
    def most_lost(self) -> float:
        """The largest loss inside the 95 % interval; infinite where there is no interval."""
        bound = self.change["high" if self.measure == "kl" else "low"]
        if bound is None:
            return inf
        return bound if self.measure == "kl" else _points(bound)

    @property
    def accepted(self) -> float:
        """The limit of the loss, in the same unit."""
        return ACCEPTED_KL if self.measure == "kl" else ACCEPTED_POINTS


def _points(difference: float) -> float:
    # Shares are quotients: five answers of 500 are a point, and no more than that.
    return round(-100 * difference, 9)


@dataclass(frozen=True, slots=True)
class Asked:
    """Settings that were asked the same.

    Attributes:
        costs: What they cost.
        where: Of what the answers are, e.g. ``" in 3 tasks of lm-eval"``, or "".
        unit: What can be asked more of: ``"questions"`` or ``"prompts"``.
        again: The command that asks so again, without batch size and settings.
        others: What else to measure a setting on, e.g. ``"other questions"``.
        elsewhere: The command that measures on these.
    """

    costs: Sequence[Cost]
    where: str = ""
    unit: str = "questions"
    again: str = "sere eval MODEL --questions questions.jsonl"
    others: str = "other questions"
    elsewhere: str = "sere eval MODEL --questions others.jsonl"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The setting to name, and what may be said of it.

    Attributes:
        cost: The setting's.
        kind: ``"accepted"``: it may be advised. ``"open"``: its measured loss is accepted, but its interval
            also holds losses that are not. ``"lost"``: its measured loss is not accepted.
        tried: Among how many settings it was chosen. The best of many looks better than it is.
    """

    cost: Cost
    kind: Literal["accepted", "open", "lost"]
    tried: int


def judge(costs: Sequence[Cost]) -> Verdict:
    """Return which setting to name.

    A setting may be advised if no loss inside its 95 % interval is above the limit; of several, the one that
    reads the fewest experts. If there is none, the one with the least possible loss is named: of those whose
    measured loss is accepted, if there are any, since asking more may settle it.

    Args:
        costs: At least one; all of one key, measure and batch size.
    """
    accepted = [one for one in costs if one.most_lost <= one.accepted]
    if accepted:
        return Verdict(min(accepted, key=lambda one: one.after), "accepted", len(costs))
    undecided = [one for one in costs if one.lost <= one.accepted]
    nearest = min(undecided or costs, key=lambda one: (one.most_lost, one.lost))
    return Verdict(nearest, "open" if undecided else "lost", len(costs))


def what_says_most(found: Iterable[Asked]) -> Asked | None:
    """Return the settings to choose among: those asked the most, at the largest steps; None without any.

    Settings that were asked different questions, or in other steps, are not compared.

    Args:
        found: Groups of settings.
    """
    best = max((one for one in found if one.costs), key=_most, default=None)
    if best is None:
        return None
    return replace(best, costs=[one for one in best.costs if (one.count, one.rows) == _most(best)])


def _most(asked: Asked) -> tuple[int, int]:
    return max((one.count, one.rows) for one in asked.costs)


def asked_by_eval(group: Sequence[Quality]) -> Asked:
    """Return the settings of sere that re-routed, with what they cost.

    Args:
        group: Measured by ``sere eval`` or ``sere demo``; all of one measure and key.
    """
    costs = []
    for one in group:
        change = one.value if one.measure == "kl" else one.difference
        if one.setting.startswith("sere") and one.note is None and change is not None:
            size = (one.batch_size, one.before, one.after, one.count)
            costs.append(Cost(one.setting, *size, one.measure, change, one.table))
    if group and group[0].measure == "kl":
        return Asked(
            costs,
            unit="prompts",
            again="sere eval MODEL --prompts prompts.txt",
            others="other prompts",
            elsewhere="sere eval MODEL --prompts others.txt",
        )
    return Asked(costs)
