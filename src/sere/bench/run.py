"""Time decoding in Transformers: one record per batch size and setting."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from sere.bench.depths import Depths, describe_depths
from sere.bench.overhead import measure_overhead
from sere.bench.replay import Recording, Way
from sere.bench.stepper import Stepper
from sere.bench.target import Subject, random_tokens
from sere.bench.timing import Times, interleave
from sere.bench.transformers_replay import record_handle, replayed_handle
from sere.engines.transformers import apply_setting, check_settings
from sere.errors import InputError, name_some
from sere.integrations.transformers import Handle
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
        replay: Whether to time, for each ``sere`` setting, its recorded ids and pairs, without their cost.
    """

    settings: Sequence[PolicySpec]
    batch_sizes: Sequence[int]
    prompt: int = 32
    steps: int = 16
    rounds: int = 5
    seed: int = 0
    replay: bool = True
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
    inside the hooks), the ``flattening``, and, if a setting changed nothing, why (``nothing_changed``), which
    is logged too. A replay's record counts in ``replayed`` what was taken from the recording.

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
                elif case in known:
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
    ways = _ways(subject, plan, stepper.block, f"B={B}, recording")
    with plan.progress(f"B={B}", len(ways) * (plan.rounds + 2)) as tick:
        times = interleave(stepper.block, [way.enter for way in ways], rounds=plan.rounds, on_block=tick)
        counted = []
        for way in ways:
            counted.append(_count(subject, plan, way, stepper.block))
            if (idle := counted[-1]["nothing_changed"]) is not None:
                logger.warning("sere: B=%d %s: %s", B, way.label, idle)
            tick()
    labels = [way.label for way in ways]
    for label, mine, counts in zip(labels, times, counted, strict=True):
        yield _record(subject, plan, B, label, labels, mine, times[0]) | counts, mine


def _ways(subject: Subject, plan: BenchPlan, block: Callable[[], list[float]], recording: str) -> list[Way]:
    """Return each setting, and its replay if there is something to replay: with one row nothing is routed.

    Args:
        subject: What is timed.
        plan: How.
        block: Runs decode steps.
        recording: What the progress of recording is called, if something is recorded.
    """
    ways = []
    recorded = [setting for setting in plan.settings if plan.replay and setting.name == "sere"]
    with (plan.progress if recorded else NO_PROGRESS)(recording, len(recorded)) as tick:
        for setting in plan.settings:
            way = Way(setting.label, partial(_variant, subject, setting, plan.seed), setting)
            ways.append(way)
            if setting in recorded:
                with _apply(subject, setting, plan.seed) as handle:
                    found = record_handle(handle, block)
                if found.routings:
                    ways.append(way.replayed(partial(_replay, subject, setting, plan.seed, found), found))
                tick()
    return ways


def _variant(subject: Subject, setting: PolicySpec, seed: int) -> AbstractContextManager[object]:
    """Return the context of a timed block: for ``off`` the model as it is, without a hook."""
    return nullcontext() if setting.name == "off" else _apply(subject, setting, seed)


def _apply(subject: Subject, setting: PolicySpec, seed: int) -> Handle:
    handle = apply_setting(subject.model, setting, subject.table, seed=seed, counts_all=False)
    # Said once, of the block that is counted.
    handle.quiet = True
    return handle


@contextmanager
def _replay(subject: Subject, setting: PolicySpec, seed: int, recording: Recording) -> Iterator[Handle]:
    """Let the model run what a setting computed, in a block of the same tokens."""
    with _apply(subject, setting, seed) as handle, replayed_handle(handle, recording):
        yield handle


def _count(subject: Subject, plan: BenchPlan, way: Way, block: Callable[[], list[float]]) -> dict[str, Any]:
    """Run more blocks, not for their time but for what happens in them.

    Of a setting, one for the time inside the hooks, and one for the experts.
    """
    setting, seed, recording = way.setting, plan.seed, way.recording
    assert setting is not None, "ways without a setting are engines'"
    if recording is not None:
        with _replay(subject, setting, seed, recording) as handle:
            block()
            found = asdict(handle.flattening())
        nothing = {"experts": None, "overhead": None, "nothing_changed": None}
        return nothing | {"flattening": found, "replayed": recording.describe()}
    with _apply(subject, setting, seed) as handle:
        overhead = measure_overhead(subject.model, block)
        handle.counts_all = True
        handle.reset_stats()
        block()
        happened = summarize_handle(handle) | {"flattening": asdict(handle.flattening())}
    inside = None if setting.name == "off" else asdict(overhead)
    return happened | {"overhead": inside, "replayed": None}


def _record(
    subject: Subject, plan: BenchPlan, B: int, label: str, labels: list[str], mine: Times, baseline: Times
) -> dict[str, Any]:
    return {
        "format": "sere-bench-4",
        "unit": "ms",
        "case": f"B={B} {label}",
        "setting": label,
        "batch_size": B,
        "tpot_ms": asdict(mine.tpot_ms()),
        "speedup": asdict(mine.speedup_over(baseline)),
        "config": {
            "prompt": plan.prompt,
            "steps": plan.steps,
            "rounds": plan.rounds,
            "seed": plan.seed,
            "interleaved": labels,
        },
        "subject": dict(subject.described),
        "provenance": provenance(),
    }
