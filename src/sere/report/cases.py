"""What a report draws, in one form for all kinds of records: answers, divergences and times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Measure = Literal["right", "kl"]
Spread = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Key:
    """What two measurements must share to be drawn in one picture; each part is a text for people.

    Attributes:
        model: The model, with the start of its digest if that is known, and its layers.
        texts: What was decoded.
        machine: Processor; for times also cores and threads.
        way: Engine, how it ran, and dtype.
    """

    model: str
    texts: str
    machine: str
    way: str

    def differences(self, other: Key) -> list[str]:
        """Return which parts differ, in words, with both values."""
        return [
            f"{word} ({getattr(self, name)}; {getattr(other, name)})"
            for name, word in (
                ("model", "model"),
                ("texts", "texts"),
                ("machine", "machine"),
                ("way", "engine"),
            )
            if getattr(self, name) != getattr(other, name)
        ]


@dataclass(frozen=True, slots=True)
class Quality:
    """What one setting costs at one batch size.

    Attributes:
        source: The record.
        key: What it can be compared with.
        setting: The setting.
        batch_size: B.
        before: Distinct experts per layer and step without re-routing.
        after: The same, with the setting.
        layers: ``after`` by layer index; empty if not known.
        measure: Right answers, or divergence.
        value: Share of right answers in [0, 1], or KL in nats per token, with ``low`` and ``high``; the
            bounds are None for a single prompt.
        difference: Right answers against off on the same questions, with bounds; None for off.
        tasks: Share of right answers by task.
        count: Questions, or prompts.
        agreement: Share of tokens on which the most likely token is the same, or None.
        table: Metric and fingerprint of the table, or "".
        note: Why nothing was re-routed, or None.
    """

    source: str
    key: Key
    setting: str
    batch_size: int
    before: float
    after: float
    layers: Mapping[int, float]
    measure: Measure
    value: Mapping[str, float | None]
    difference: Mapping[str, float] | None = None
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    count: int = 0
    agreement: Mapping[str, float | None] | None = None
    table: str = ""
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Timing:
    """How fast one setting is under one load.

    Attributes:
        source: The record.
        key: What it can be compared with.
        setting: The setting.
        load: What was sent, e.g. ``"B=8"``.
        rows: Batch size or concurrent requests; None for a rate of requests.
        speedup: How many times as fast as off: ``p20``, ``p50``, ``p80``; None where off was not timed.
        ms: The time of the measure, in milliseconds, in the same form.
        measure: What is timed, e.g. ``"tpot"``.
        before: Distinct experts per layer and step; None if not counted.
        after: The same, with the setting.
        random: Whether the weights are random.
    """

    source: str
    key: Key
    setting: str
    load: str
    rows: int | None
    speedup: Spread | None
    ms: Spread
    measure: str
    before: float | None
    after: float | None
    random: bool


@dataclass(frozen=True, slots=True)
class Scored:
    """What one setting scores in one task of lm-eval, by one metric, at one batch size.

    Attributes:
        source: The record.
        key: What it can be compared with: the same questions of the task, asked in the same way.
        run: What the tasks of one run share: ``key`` without what belongs to the task.
        setting: The setting.
        batch_size: B.
        task: The task.
        metric: lm-eval's name of the metric.
        count: Questions.
        value: What lm-eval reports; ``low`` and ``high`` are None where there is no interval. None where
            lm-eval reports nothing.
        difference: Against off on the same questions, with bounds; None for off, and where nothing was
            re-routed.
        right_or_wrong: Whether each question is either.
        before: Distinct experts per layer and decode step; None if no step was counted.
        after: The same, with the setting.
        rerouted: Share of the slots whose expert changed, in [0, 1]; None if no step was counted.
        table: Metric and fingerprint of the table, or "".
        note: Why nothing was re-routed, or None.
        meaning: Unit of the difference and which sign is worse, where a reader could err; else None.
        lower_is_better: Whether lm-eval says so of the metric.
        options: Options of ``sere lm-eval`` that ask so, beside tasks, limit and seed; each after a space.
    """

    source: str
    key: Key
    run: Key
    setting: str
    batch_size: int
    task: str
    metric: str
    count: int
    value: Mapping[str, float | None] | None
    difference: Mapping[str, float] | None
    right_or_wrong: bool
    before: float | None
    after: float | None
    rerouted: float | None
    table: str = ""
    note: str | None = None
    meaning: str | None = None
    lower_is_better: bool = False
    options: str = ""


def rule_of(setting: str) -> str:
    """Return a setting without the number that moves it along its line: ``sere`` of ``sere:cap=8``."""
    kind, _, options = setting.partition(":")
    kept = [one for one in options.split(",") if one == "paper" or one.startswith("mode=")]
    return ", ".join([kind, *kept])


def newest(cases: Sequence[Any]) -> list[Any]:
    """Return the last of each case: a file to which a second run was appended has two of each.

    Args:
        cases: `Quality`, `Timing` or `Scored`, in the order of their records.
    """
    found: dict[Any, Any] = {}
    for one in cases:
        found[one.key, one.setting, _place(one)] = one
    return list(found.values())


def _place(one: Quality | Timing | Scored) -> tuple[Any, ...]:
    """Return what tells cases of one key and setting apart."""
    if isinstance(one, Quality):
        return one.batch_size, one.table
    if isinstance(one, Scored):
        return one.batch_size, one.table, one.task, one.metric
    return one.load, one.measure
