"""The first screen's key numbers, and what to do next, derived from the measurements."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import isfinite

from sere.errors import SereError
from sere.policies.spec import parse_spec
from sere.report.cases import Scored, Timing
from sere.report.collect import has_evidence
from sere.report.curves import interval
from sere.report.models import ModelPart
from sere.report.pooled import command, pool, re_routed
from sere.report.verdict import (
    ACCEPTED_KL,
    ACCEPTED_POINTS,
    Asked,
    Cost,
    Verdict,
    asked_by_eval,
    judge,
    what_says_most,
)
from sere.table import Tier
from sere.table.tiers import DEFAULT_TIER

_MOST = 4


@dataclass(slots=True)
class Advice:
    """What a reader should know of a model first.

    Attributes:
        numbers: Key numbers, each with what it is. All are of one setting; a number of another one says so.
        steps: What to do next, each with a command or None.
    """

    numbers: list[tuple[str, str]] = field(default_factory=list)
    steps: list[tuple[str, str | None]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Shown:
    """The setting of the key numbers, the rows of the steps that they are of, and whether it is advised."""

    setting: str
    rows: int
    advised: bool = True


def advise(part: ModelPart) -> Advice:
    """Return what to know and to do first.

    Args:
        part: A model's part of the report.
    """
    found = Advice()
    shown = _of_tiers(part, found) or _of_answers(part, found) or _of_other_scores(part, found)
    times = [case for cases in part.times.values() for case in cases if case.measure == "tpot"]
    found.numbers += _speed(part, shown, times)
    found.steps += list(_missing(part, shown, times))[: _MOST - len(found.steps)]
    return found


def _of_tiers(part: ModelPart, found: Advice) -> _Shown | None:
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
    return _Shown(f"sere:tier={tier.name}", int(rows))


def _of_answers(part: ModelPart, found: Advice) -> _Shown | None:
    """Add what the setting reads and loses that `judge` names, and what to do with it; return it."""
    by_eval = {
        wanted: [asked_by_eval(group) for (measure, _), group in part.answers.items() if measure == wanted]
        for wanted in ("right", "kl")
    }
    for groups in (by_eval["right"], pool(part.scores.values()), by_eval["kl"]):
        asked = what_says_most(groups)
        if asked is not None:
            verdict = judge(asked.costs)
            found.numbers += _numbers(verdict.cost, asked)
            found.steps += list(_what_to_do(verdict, asked))
            return _Shown(verdict.cost.setting, verdict.cost.rows, verdict.kind == "accepted")
    return None


def _numbers(cost: Cost, asked: Asked) -> list[tuple[str, str]]:
    experts = _experts(cost.before, cost.after, cost.rows, cost.setting)
    if cost.measure == "kl":
        return [experts, (f"{cost.lost:.2g}", f"KL, nats per token: {interval(cost.change)}")]
    text = f"points of right answers{asked.where} against off: {interval(cost.change, 100, '{:+.1f}')}"
    return [experts, (f"{-cost.lost:+.1f}", text)]


def _experts(before: float, after: float, rows: int, setting: str) -> tuple[str, str]:
    return (
        f"{before:.1f} → {after:.1f}",
        f"experts that a layer reads in steps of {rows} rows, {setting}",
    )


def _what_to_do(verdict: Verdict, asked: Asked) -> Iterator[tuple[str, str | None]]:
    """Yield the advice, which names the limit of the loss and among how many settings was chosen."""
    cost, tried = verdict.cost, verdict.tried
    several = len({one.table for one in asked.costs if one.table}) > 1
    name = f"{cost.setting} with the table {cost.table}" if several else cost.setting
    loss, limit = _limit(cost, asked)
    size = f"--batch-size {cost.rows}"
    typed = "" if _typed(cost.setting) is None else f" --setting {cost.setting}"
    of_all = f"{tried} settings of sere measured at {cost.rows} rows"
    if verdict.kind == "accepted":
        whose = "its" if tried == 1 else f"of {of_all}, it reads the fewest experts of those whose"
        yield (f"Use {name}: {whose} 95 % interval keeps the {loss} within {limit}", _serve_setting(cost))
        if tried > 1:
            again = f"{asked.elsewhere} {size}{typed}" if typed else None
            yield (f"Measure it again on {asked.others}: the best of {tried} looks better than it is", again)
        return
    more = f"--setting sere:active_experts={round(cost.after * 1.3)}"
    which, it = f"None of {of_all} can", f"the nearest, {name},"
    if tried == 1:
        which, it = f"{name} cannot", "it"
    if verdict.kind == "open":
        yield (
            f"{which} be advised yet: with {cost.count} {asked.unit}, {it} "
            f"{_loses(cost, asked, possible=True)}. "
            f"Ask more {asked.unit}, or measure settings that read more experts",
            f"{asked.again} {size}{typed} {more}",
        )
    else:
        yield (
            f"{which} be advised: {it} {_loses(cost, asked, possible=False)}. "
            "Measure settings that read more experts",
            f"{asked.again} {size} {more}",
        )


def _limit(cost: Cost, asked: Asked) -> tuple[str, str]:
    """Return of what there is a limit, and the limit, in words."""
    if cost.measure == "kl":
        return "KL from the unmodified model", f"{ACCEPTED_KL} nats per token"
    return f"loss of right answers{asked.where}", f"{ACCEPTED_POINTS:g} point"


def _loses(cost: Cost, asked: Asked, *, possible: bool) -> str:
    """Return a loss beyond the limit, the largest possible or the measured one, as part of a sentence."""
    loss = cost.most_lost if possible else cost.lost
    number = f"{loss:.3g}" if isfinite(loss) else "any"
    if cost.measure == "kl":
        what = f"{'may have' if possible else 'has'} a KL from the unmodified model of {number}"
    else:
        what = f"{'may lose' if possible else 'loses'} {number} points of right answers{asked.where}"
    return f"{what}, more than {_limit(cost, asked)[1]}" if isfinite(loss) else f"{what} size"


def _of_other_scores(part: ModelPart, found: Advice) -> _Shown | None:
    """Add the nearest setting of a task of lm-eval whose questions are not right or wrong; return it."""
    scores: list[Scored] = [one for group in part.scores.values() for one in group if re_routed(one)]
    if not scores:
        return None
    first = max(scores, key=lambda one: one.batch_size)
    mine = [one for one in scores if (one.key, one.metric, one.batch_size) == _what(first)]
    best = min(mine, key=lambda one: abs(_change(one)))
    unit = best.meaning or "mean difference of a question's value"
    found.numbers += [
        _experts(best.before or 0.0, best.after or 0.0, best.batch_size, best.setting),
        (
            f"{_change(best):+.4f}",
            f"{best.metric} of {best.task} against off ({unit}): "
            f"{interval(best.difference or {}, 1, '{:+.4f}')}",
        ),
    ]
    typed = "" if _typed(best.setting) is None else f" --setting {best.setting}"
    found.steps.append(
        (
            "No task here counts right answers, so no limit says which loss to accept: choose one, or "
            "measure tasks that count them",
            f"{command(best, ())} --batch-size {best.batch_size}{typed}",
        )
    )
    return _Shown(best.setting, best.batch_size, advised=False)


def _what(one: Scored) -> tuple[object, str, int]:
    return one.key, one.metric, one.batch_size


def _change(one: Scored) -> float:
    return (one.difference or {"value": 0.0})["value"]


def _speed(part: ModelPart, shown: _Shown | None, times: Sequence[Timing]) -> Iterator[tuple[str, str]]:
    """Yield the speedup of the setting that is shown, or, if that was not timed, of another, and say so."""
    known = [one for one in times if one.speedup is not None and one.setting.startswith("sere")]
    rows = None if shown is None else shown.rows
    own = [one for one in known if shown is not None and one.setting == shown.setting]
    if own:
        best = max(own, key=lambda one: (not one.random, one.rows == rows, one.rows or 0, _times(one)))
    elif known:
        best = max(known, key=lambda one: (one.rows or 0, _times(one)))
    else:
        return
    text = f"as fast as off, {best.setting}, {best.load}{', random weights' if best.random else ''}"
    if shown is not None and not own:
        text = f"another setting: {text}; {_loss_beside(part, best)}"
    elif shown is not None and best.rows != rows:
        text += f" (its loss: {rows} rows)"
    yield f"{_times(best):.2f}×", text


def _times(one: Timing) -> float:
    return 0.0 if one.speedup is None else one.speedup["p50"]


def _loss_beside(part: ModelPart, timed: Timing) -> str:
    """Return what a setting that was timed loses at the same rows, or that nobody measured it."""
    groups = [asked_by_eval(group) for group in part.answers.values()]
    for cost in (cost for asked in [*groups, *pool(part.scores.values())] for cost in asked.costs):
        if (cost.setting, cost.rows) == (timed.setting, timed.rows):
            if cost.measure == "kl":
                return f"its KL: {interval(cost.change)}"
            return f"its right answers: {interval(cost.change, 100, '{:+.1f}')} points"
    return "its loss was not measured at these rows"


def _missing(
    part: ModelPart, shown: _Shown | None, times: Sequence[Timing]
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
    advised = None if shown is None or not shown.advised else shown.setting
    if not any(not one.random and advised in (None, one.setting) for one in times):
        chosen = "" if shown is None or _typed(shown.setting) is None else f" --setting {shown.setting}"
        yield "Measure how much faster it is on your machine", f"sere bench serve MODEL{chosen}"


def _serve(config: object) -> str:
    return f"vllm serve MODEL --additional-config '{json.dumps({'sere': config})}'"


def _typed(setting: str) -> dict[str, object] | None:
    """Return a setting's options as they are typed today; None if it is one of an earlier release."""
    try:
        spec = parse_spec(setting)
    except SereError:
        return None
    return dict(spec.options) if spec.name == "sere" else None


def _serve_setting(cost: Cost) -> str | None:
    """Return the command that serves with a setting; None if it is none of today's, or has no short form."""
    options = _typed(cost.setting)
    plain = options is not None and all(isinstance(value, int | float | str) for value in options.values())
    return _serve(options) if plain else None
