"""The first screen's key numbers, and what to do next, derived from the measurements."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from sere.errors import SereError
from sere.policies.spec import parse_spec
from sere.report.cases import Quality, Timing
from sere.report.collect import has_evidence
from sere.report.curves import interval
from sere.report.models import ModelPart
from sere.table import Tier
from sere.table.tiers import DEFAULT_TIER

# Nats per token: what the tier "balanced" accepts (sere.tune.plan.TIERS; a test compares them).
ACCEPTED_KL = 0.002
# Below so wide an interval of right answers, in points, more questions are no first advice.
_WIDE = 1.0
_MOST = 4


@dataclass(slots=True)
class Advice:
    """What a reader should know of a model first.

    Attributes:
        numbers: Key numbers, each with what it is.
        steps: What to do next, each with a command or None.
    """

    numbers: list[tuple[str, str]] = field(default_factory=list)
    steps: list[tuple[str, str | None]] = field(default_factory=list)


def advise(part: ModelPart) -> Advice:
    """Return what to know and to do first.

    Args:
        part: A model's part of the report.
    """
    found = Advice()
    setting = _of_tiers(part, found) or _of_answers(part, found)
    times = [case for cases in part.times.values() for case in cases if case.measure == "tpot"]
    fastest = _fastest(times)
    if fastest is not None and fastest.speedup is not None:
        weights = ", random weights" if fastest.random else ""
        text = f"as fast as off, {fastest.setting}, {fastest.load}{weights}"
        found.numbers.append((f"{fastest.speedup['p50']:.2f}×", text))
    found.steps += list(_missing(part, setting, times))[: _MOST - len(found.steps)]
    return found


def _of_tiers(part: ModelPart, found: Advice) -> str | None:
    """Add what the default tier, or the first one, reads and loses; return its setting."""
    tiers = {tier.name: tier for tier in part.tiers if has_evidence(tier)}
    if not tiers:
        return None
    tier: Tier = tiers.get(DEFAULT_TIER) or next(iter(tiers.values()))
    rows, cell = max(tier.evidence["by_batch_size"].items(), key=lambda item: int(item[0]))
    found.numbers += [
        (
            f"{cell['experts_before']:.1f} → {cell['experts_after']:.1f}",
            f"experts that a layer reads in steps of {rows} rows, tier {tier.name}",
        ),
        (
            interval(cell["kl"]).partition(" (")[0],
            f"KL on held-out prompts, nats per token: {interval(cell['kl'])}",
        ),
    ]
    found.steps.append(
        (f"Serve with the tier “{tier.name}”, which the table holds", _serve({"tier": tier.name}))
    )
    return f"sere:tier={tier.name}"


def _of_answers(part: ModelPart, found: Advice) -> str | None:
    """Add what the setting with the fewest experts and no visible loss reads; return it."""
    for measure in ("right", "kl"):
        cases = [case for (kind, _), group in part.answers.items() if kind == measure for case in group]
        cases = [case for case in cases if case.setting.startswith("sere") and case.note is None]
        if not cases:
            continue
        # What says most: the most questions, then the largest steps.
        count, size = max((case.count, case.batch_size) for case in cases)
        cases = [case for case in cases if (case.count, case.batch_size) == (count, size)]
        harmless = [case for case in cases if _harmless(case)]
        if not harmless:
            least = min(cases, key=lambda case: _loss(case))
            found.numbers += _numbers(least)
            found.steps.append(
                (
                    f"No setting of sere that was measured is without a visible loss at {size} rows; "
                    "the nearest is "
                    f"{least.setting}. Measure settings that read more experts",
                    f"sere eval MODEL --batch-size {size} "
                    f"--setting sere:active_experts={round(least.after * 1.3)}",
                )
            )
            return least.setting
        best = min(harmless, key=lambda case: case.after)
        found.numbers += _numbers(best)
        why = (
            "its 95 % interval of the loss of right answers contains 0"
            if measure == "right"
            else f"its KL stays below {ACCEPTED_KL} nats per token"
        )
        found.steps.append(
            (
                f"Use {best.setting}: of those measured, it reads the fewest experts while {why}",
                _serve_setting(best.setting),
            )
        )
        if measure == "right" and (wide := _half(best)) > _WIDE:
            found.steps.append(
                (
                    f"Ask more questions before you rely on it: with {best.count}, "
                    f"losses below {wide:.1f} points "
                    "cannot be told from none; four times as many halve that",
                    None,
                )
            )
        return best.setting
    return None


def _numbers(case: Quality) -> list[tuple[str, str]]:
    experts = (
        f"{case.before:.1f} → {case.after:.1f}",
        f"experts that a layer reads in steps of {case.batch_size} rows, {case.setting}",
    )
    if case.difference is not None:
        text = f"points of right answers against off: {interval(case.difference, 100, '{:+.1f}')}"
        return [experts, (f"{100 * case.difference['value']:+.1f}", text)]
    what = "KL, nats per token" if case.measure == "kl" else "share of right answers"
    text = f"{what}: {interval(case.value)}"
    return [experts, (f"{case.value['value']:.2g}", text)]


def _harmless(case: Quality) -> bool:
    if case.measure == "right":
        return case.difference is not None and case.difference["high"] >= 0
    high = case.value["high"]
    return (case.value["value"] if high is None else high) <= ACCEPTED_KL  # type: ignore[operator]


def _loss(case: Quality) -> float:
    value = case.value["value"] or 0.0
    return value if case.measure == "kl" else -value


def _half(case: Quality) -> float:
    found = case.difference
    return 0.0 if found is None else 50 * (found["high"] - found["low"])


def _fastest(times: Sequence[Timing]) -> Timing | None:
    """Return the largest speedup of a sere setting at the most rows."""
    known = [one for one in times if one.speedup is not None and one.setting.startswith("sere")]
    return max(known, key=lambda one: (one.rows or 0, (one.speedup or {})["p50"]), default=None)


def _missing(
    part: ModelPart, setting: str | None, times: Sequence[Timing]
) -> Iterator[tuple[str, str | None]]:
    """Yield what was not measured, with the command that measures it."""
    if times and all(one.random for one in times) and not part.answers and not part.scores:
        yield (
            "Times of random weights say nothing of answers: measure what re-routing costs in your model",
            "sere eval MODEL --prompts prompts.txt",
        )
    elif not part.answers and not part.scores and not part.tiers:
        yield "Measure what re-routing costs", "sere eval MODEL --prompts prompts.txt"
    if not part.tiers:
        yield (
            "Find the fewest experts for a loss that you accept, layer by layer",
            "sere tune MODEL --prompts prompts.txt",
        )
    if not any(not one.random for one in times):
        chosen = f" --setting {setting}" if setting else ""
        yield "Measure how much faster it is on your machine", f"sere bench serve MODEL{chosen}"


def _serve(config: object) -> str:
    return f"vllm serve MODEL --additional-config '{json.dumps({'sere': config})}'"


def _serve_setting(setting: str) -> str | None:
    """Return the command that serves with a setting; None if it is none of today's, or has no short form."""
    try:
        spec = parse_spec(setting)
    except SereError:
        return None
    options = dict(spec.options)
    plain = all(isinstance(value, int | float | str) for value in options.values())
    return _serve(options) if spec.name == "sere" and plain else None
