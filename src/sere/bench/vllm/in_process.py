"""Time engines of vLLM under settings of re-routing that take turns in each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import torch

from sere.bench.overhead import Overhead
from sere.bench.timing import Times, spread, turns
from sere.bench.vllm.replay import Recording, record_routing, replayed, timed_routing, vanilla
from sere.bench.vllm.serve_plan import ServePlan, bytes_read, refuse_controls
from sere.engines.in_process import state_of
from sere.engines.settings import Start, counted_changes, is_own, is_served, live_changes, routed
from sere.errors import InputError, name_some
from sere.integrations.vllm import configure, read_stats
from sere.policies.spec import PolicySpec
from sere.provenance import provenance
from sere.summaries import summarize_layers


@dataclass(frozen=True, slots=True, kw_only=True)
class InProcessPlan(ServePlan):
    """What to time in an engine of this process.

    Attributes:
        batch_sizes: Requests at once.
        replay: Whether to time, for each ``sere`` setting, a replay of its recorded ids, without their cost.
        vanilla: Whether to time the engine without any wrapper of sere too; not if it is compiled, because
            the operation is part of the compiled code.
    """

    batch_sizes: Sequence[int]
    replay: bool = True
    vanilla: bool = True

    def __post_init__(self) -> None:
        ServePlan.__post_init__(self)
        if self.compiled:
            refuse_controls(self.settings, "a compiled engine")
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise InputError(
                f"bench serve: expected batch sizes of at least 1, got [{name_some(self.batch_sizes)}]"
            )
        if min(self.prompt, self.rounds) < 1 or self.steps < 2:
            raise InputError(
                "bench serve: expected a prompt and rounds of at least 1 and at least 2 steps, "
                f"got {self.prompt}, {self.rounds} and {self.steps}"
            )


@dataclass(slots=True)
class EngineBlock:
    """One batch of requests, from their arrival to their last token.

    Attributes:
        ttft_ms: Time until every request has its first token.
        step_ms: Times of the decode steps after it.
        total_ms: Time of all.
    """

    ttft_ms: float
    step_ms: list[float]
    total_ms: float


@dataclass(slots=True)
class EngineVariant:
    """One way to run the engine, and what was measured under it."""

    label: str
    setting: PolicySpec
    enter: Callable[[], AbstractContextManager[None]]
    blocks: list[EngineBlock] = field(default_factory=list)

    def times(self) -> Times:
        """Return the times of its decode steps, block by block."""
        return Times([block.step_ms for block in self.blocks])


def bench_in_process(
    start: Start, subject: Mapping[str, Any], plan: InProcessPlan
) -> Iterator[dict[str, Any]]:
    """Time engines at each batch size under each setting; yield one JSON-ready record per case.

    One engine is started for each group of settings that can share one, and ended before the next. Each has
    its own ``off``, the baseline of the group, which takes turns with the others. A block is one batch of
    requests with random prompts that arrive together, the same in all engines; its decode steps are timed one
    by one. Two more variants show the cost of re-routing: ``vanilla``, the engine without any wrapper of
    sere, and for each ``sere`` setting its ``replay``: the same ids, recorded before, without the work of
    computing them.

    Args:
        start: Starts an engine of this process, as ``plan`` says eager or compiled.
        subject: What a reader must know of the model; JSON-ready.
        plan: How.

    Raises:
        InputError: An engine did not run all requests of a batch at once.
    """
    for options, settings in plan.groups():
        with start(options) as llm:
            run = _Engine(llm, dict(subject) | _counted_subject(llm), plan, options, settings)
            for B in plan.batch_sizes:
                yield from run.batch(B)
        # The next engine needs the memory that these names hold.
        del llm, run


def _counted_subject(llm: Any) -> dict[str, Any]:
    """Return what only the running engine knows."""
    state = state_of(llm)
    return {
        "moe_layers": len(state.layers),
        "bytes_per_expert": next((layer.expert_bytes for layer in state.layers.values()), None),
        "expert_kernel": state.kernel,
    }


@dataclass(frozen=True, slots=True)
class _Engine:
    """A running engine, and what is timed in it."""

    llm: Any
    subject: Mapping[str, Any]
    plan: InProcessPlan
    start: Mapping[str, Any]
    settings: Sequence[PolicySpec]

    def batch(self, B: int) -> Iterator[dict[str, Any]]:
        """Time all variants of one batch size, which take turns, and yield their records."""
        plan = self.plan
        prompts = _prompts(self.llm, B, plan)
        variants = self.variants(prompts)
        with plan.progress(f"B={B}", len(variants) * (plan.rounds + 1)) as tick:
            for index in range(plan.rounds + 1):
                for variant in turns(variants, index):
                    with variant.enter():
                        block = run_block(self.llm, prompts, plan.steps)
                    if index > 0:
                        variant.blocks.append(block)
                    tick()
        for variant in variants:
            yield self.record(B, variant, variants[0], self.count(variant, prompts))

    def variants(self, prompts: list[list[int]]) -> list[EngineVariant]:
        """Return the settings, ``off`` first, with their replays, and the vanilla engine."""
        llm, plan, variants = self.llm, self.plan, []
        for setting in self.settings:
            enter = partial(_running, llm, setting, plan.seed)
            variants.append(EngineVariant(setting.label, setting, enter))
            if is_own(setting) and plan.replay:
                with enter():
                    recording = record_routing(llm, lambda: run_block(llm, prompts, plan.steps))
                # Captured graphs run none of our Python, so there is nothing to replay.
                if len(recording) > self.calls:
                    replay = partial(_replayed, llm, setting, plan.seed, recording)
                    variants.append(EngineVariant(f"replay {setting.label}", setting, replay))
        if plan.vanilla and not plan.compiled:
            variants.append(EngineVariant("vanilla", self.settings[0], partial(vanilla, llm)))
        return variants

    @property
    def calls(self) -> int:
        """How often the routing is called in a block's decode steps; the prompts' steps come before."""
        return len(state_of(self.llm).layers) * self.plan.steps

    def count(self, variant: EngineVariant, prompts: list[list[int]]) -> dict[str, Any]:
        """Run one more block for a setting's experts and the time inside its routing."""
        llm, plan = self.llm, self.plan
        if variant.label not in {setting.label for setting in self.settings}:
            return {"experts": None, "overhead": None, "nothing_changed": None}
        with _running(llm, variant.setting, plan.seed, counted=True), timed_routing(llm) as spent:
            read_stats(llm, reset=True)
            run_block(llm, prompts, plan.steps)
            stats = read_stats(llm, reset=True)
        experts = summarize_layers(stats.layers)
        layers = experts.pop("layers")
        overhead = None
        if len(spent) > self.calls and variant.setting.name != "off":
            decoding = median(spent[-self.calls :])
            overhead = asdict(Overhead(decoding * 1e3, decoding * len(layers)))
        return {
            "experts": experts if layers else None,
            "overhead": overhead,
            "nothing_changed": stats.nothing_changed,
        }

    def record(
        self, B: int, variant: EngineVariant, baseline: EngineVariant, counted: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the record of one case."""
        plan, blocks = self.plan, variant.blocks
        tokens = [1e3 * B * (plan.steps + 1) / block.total_ms for block in blocks]
        return {
            "format": "sere-bench-serve-2",
            "unit": "ms",
            "case": f"B={B} {variant.label}",
            "setting": variant.label,
            "batch_size": B,
            "tpot_ms": asdict(variant.times().tpot_ms()),
            "speedup": asdict(variant.times().speedup_over(baseline.times())),
            "ttft_ms": asdict(spread([block.ttft_ms for block in blocks])),
            "tokens_per_s": asdict(spread(tokens)),
            "expert_bytes_per_step": bytes_read(counted["experts"], self.subject),
            **counted,
            "config": plan.config("vllm", self.start),
            "subject": dict(self.subject),
            "provenance": provenance(),
        }


@contextmanager
def _running(llm: Any, setting: PolicySpec, seed: int, *, counted: bool = False) -> Iterator[None]:
    """Let an engine run a setting as it would be served, or so that its experts are counted; off too."""
    if is_served(setting):
        configure(llm, **(counted_changes(setting) if counted else live_changes(setting)))
        yield
        return
    with routed(llm, setting, seed=seed):
        yield


@contextmanager
def _replayed(llm: Any, setting: PolicySpec, seed: int, recording: Recording) -> Iterator[None]:
    """Let an engine run a setting's recorded ids."""
    with _running(llm, setting, seed), replayed(llm, recording):
        yield


def run_block(llm: Any, prompts: Sequence[Sequence[int]], steps: int) -> EngineBlock:
    """Send requests that arrive together and time the engine's steps until all have ended.

    Args:
        llm: The engine.
        prompts: Token ids, all of one length.
        steps: Decode steps after the first token.

    Raises:
        InputError: The engine did not run all of them at once.
    """
    from vllm import SamplingParams

    engine = llm.llm_engine
    params = SamplingParams(temperature=0, max_tokens=steps + 1, ignore_eos=True, detokenize=False)
    started = perf_counter()
    for index, prompt in enumerate(prompts):
        engine.add_request(f"bench-{index}", {"prompt_token_ids": list(prompt)}, params)
    waiting = {f"bench-{index}" for index in range(len(prompts))}
    while waiting:
        waiting -= {output.request_id for output in engine.step() if output.outputs[0].token_ids}
    first = last = perf_counter()
    step_ms = []
    while engine.has_unfinished_requests():
        engine.step()
        now = perf_counter()
        step_ms.append((now - last) * 1e3)
        last = now
    if len(step_ms) != steps:
        raise InputError(
            f"bench serve: {len(prompts)} requests took {len(step_ms)} decode steps instead of {steps}, so "
            "they did not all run at once; give the engine a larger KV cache, or use a smaller --batch-size"
        )
    return EngineBlock((first - started) * 1e3, step_ms, (last - started) * 1e3)


def _prompts(llm: Any, B: int, plan: InProcessPlan) -> list[list[int]]:
    generator = torch.Generator().manual_seed(plan.seed + B)
    vocabulary = llm.llm_engine.model_config.get_vocab_size()
    ids: list[list[int]] = torch.randint(
        0, vocabulary, (B, plan.prompt), generator=generator, device="cpu"
    ).tolist()
    return ids
