"""Time decoding in Transformers: one record per batch size and setting."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from sere.bench.depths import Depths, describe_depths
from sere.bench.overhead import measure_overhead
from sere.bench.target import Subject, random_tokens
from sere.bench.timing import Stepper, Times, interleave
from sere.engines.transformers import apply_setting, check_settings
from sere.errors import InputError, name_some
from sere.policies.spec import PolicySpec, check_off_first
from sere.progress import NO_PROGRESS, Progress
from sere.provenance import provenance
from sere.summaries import summarize_handle

logger = logging.getLogger("sere")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchPlan:
    """What to time.

    Attributes:
        settings: The ways to route; the first is ``off``, the baseline: the model without any hook.
        batch_sizes: Rows of a decode step.
        prompt: Prefilled tokens per row.
        steps: Timed decode steps per block.
        rounds: Blocks per setting.
        seed: Seed of the tokens and of the random control.
    """

    settings: Sequence[PolicySpec]
    batch_sizes: Sequence[int]
    prompt: int = 32
    steps: int = 16
    rounds: int = 5
    seed: int = 0
    progress: Progress = field(default=NO_PROGRESS, repr=False)

    def __post_init__(self) -> None:
        check_off_first(self.settings)
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise InputError(
                f"bench: expected batch sizes of at least 1, got [{name_some(self.batch_sizes)}]"
            )
        if min(self.prompt, self.steps, self.rounds) < 1:
            raise InputError(
                "bench: expected prompt, steps and rounds of at least 1, "
                f"got {self.prompt}, {self.steps} and {self.rounds}"
            )


def bench(subject: Subject, plan: BenchPlan) -> Iterator[dict[str, Any]]:
    """Time decoding at each batch size under each setting and yield one JSON-ready record per case.

    All settings of a batch size take turns in one run and decode the same tokens. The record gives the
    time per output token (``tpot_ms``) with its spread, the ``speedup`` over ``off`` (its time over this
    setting's, round by round: above 1 is faster), the ``experts`` before and after, the ``overhead`` (time
    inside the hooks), and, if a setting changed nothing, why (``nothing_changed``), which is logged too.

    Args:
        subject: What to time.
        plan: How.

    Raises:
        TableMismatch: The table belongs to another model.
        ConfigError: A setting's value is out of range, or its table is missing or lacks the factors.
    """
    check_settings(plan.settings, subject.table)
    for B in plan.batch_sizes:
        for record, _ in _batch(subject, plan, B):
            yield record


def bench_depths(subjects: Sequence[Callable[[], Subject]], plan: BenchPlan) -> Iterator[dict[str, Any]]:
    """Time a model cut to two depths, one after the other; yield the records of both.

    Those of the second have ``complete_model``: the time per layer, and what it gives for the complete model.

    Args:
        subjects: Make the shallower and the deeper model; ``published_layers`` of what they describe is the
            complete model's number of layers.
        plan: How.
    """
    known: dict[tuple[int, str], Times] = {}
    fewer = None
    for make in subjects:
        subject = make()
        check_settings(plan.settings, subject.table)
        layers = subject.described["layers"]
        for B in plan.batch_sizes:
            baseline = None
            for record, times in _batch(subject, plan, B):
                case = (B, record["setting"])
                baseline = baseline or times
                if fewer is None:
                    known[case] = times
                else:
                    depths = Depths(fewer, layers, subject.described["published_layers"])
                    mine, base = (known[case], times), (known[B, plan.settings[0].label], baseline)
                    record["complete_model"] = describe_depths(depths, mine, base)
                yield record
        fewer = layers
        # The next model needs the memory.
        del subject


def _batch(subject: Subject, plan: BenchPlan, B: int) -> Iterator[tuple[dict[str, Any], Times]]:
    """Yield the records of one batch size, with the times that they summarize."""
    tokens = random_tokens(subject.model, B, plan.prompt + plan.steps + 1, seed=plan.seed)
    stepper = Stepper(subject.model, tokens[:, : plan.prompt], tokens[:, plan.prompt :])
    blocks = len(plan.settings) * (plan.rounds + 2)
    with plan.progress(f"B={B}", blocks) as tick:
        variants = [partial(_variant, subject, setting, plan.seed) for setting in plan.settings]
        times = interleave(stepper.block, variants, rounds=plan.rounds, on_block=tick)
        counted = []
        for setting in plan.settings:
            counted.append(_count(subject, setting, plan.seed, stepper.block))
            if (idle := counted[-1]["nothing_changed"]) is not None:
                logger.warning("sere: B=%d %s: %s", B, setting.label, idle)
            tick()
    for setting, mine, counts in zip(plan.settings, times, counted, strict=True):
        yield _record(subject, plan, B, setting, mine, times[0]) | counts, mine


def _variant(subject: Subject, setting: PolicySpec, seed: int) -> AbstractContextManager[object]:
    """Return the context of a timed block: for ``off`` the model as it is, without a hook."""
    if setting.name == "off":
        return nullcontext()
    handle = apply_setting(subject.model, setting, subject.table, seed=seed)
    # Said once, of the block that is counted.
    handle.quiet = True
    return handle


def _count(
    subject: Subject, setting: PolicySpec, seed: int, block: Callable[[], list[float]]
) -> dict[str, Any]:
    """Run one more block, not for its time but for its experts and the time inside the hooks."""
    with apply_setting(subject.model, setting, subject.table, seed=seed) as handle:
        handle.quiet = True
        overhead = measure_overhead(subject.model, block)
        happened = summarize_handle(handle)
    return happened | {"overhead": None if setting.name == "off" else asdict(overhead)}


def _record(
    subject: Subject, plan: BenchPlan, B: int, setting: PolicySpec, mine: Times, baseline: Times
) -> dict[str, Any]:
    return {
        "format": "sere-bench-3",
        "unit": "ms",
        "case": f"B={B} {setting.label}",
        "setting": setting.label,
        "batch_size": B,
        "tpot_ms": asdict(mine.tpot_ms()),
        "speedup": asdict(mine.speedup_over(baseline)),
        "config": {
            "prompt": plan.prompt,
            "steps": plan.steps,
            "rounds": plan.rounds,
            "seed": plan.seed,
            "interleaved": [other.label for other in plan.settings],
        },
        "subject": dict(subject.described),
        "provenance": provenance(),
    }
