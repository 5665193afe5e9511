"""Time an engine of vLLM under several settings of re-routing that take turns in one run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from statistics import fmean, median
from time import perf_counter
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from sere.bench.timing import Spread, Times, spread, turns
from sere.errors import InputError
from sere.eval.run import NO_PROGRESS, Progress
from sere.eval.settings import Setting
from sere.eval.vllm import LIVE, counted_changes
from sere.integrations.vllm import configure, read_stats
from sere.integrations.vllm.local import session_of
from sere.provenance import provenance
from sere.reroute import operator
from sere.reroute.backends import implementation


@dataclass(frozen=True, slots=True, kw_only=True)
class ServePlan:
    """What to time.

    Attributes:
        settings: The ways to route; the first is ``off``.
        batch_sizes: Requests at once.
        prompt: Tokens of a request's prompt.
        steps: Timed decode steps of a block.
        rounds: Blocks of each variant.
        oracle: Whether to time, for each setting, the same ids put in place at no cost.
        untouched: Whether to time the engine without any wrapper of ours as well; not where it is compiled,
            for the operation is part of the compiled code.
        seed: Of the prompts.
    """

    settings: Sequence[Setting]
    batch_sizes: Sequence[int]
    prompt: int = 32
    steps: int = 32
    rounds: int = 3
    oracle: bool = True
    untouched: bool = True
    seed: int = 0
    progress: Progress = field(default=NO_PROGRESS, repr=False)

    def __post_init__(self) -> None:
        check_settings(self.settings)
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise InputError(f"bench serve: expected batch sizes of at least 1, got {list(self.batch_sizes)}")
        if min(self.prompt, self.rounds) < 1 or self.steps < 2:
            raise InputError(
                "bench serve: expected a prompt and rounds of at least 1 and at least 2 steps, "
                f"got {self.prompt}, {self.rounds} and {self.steps}"
            )


def check_settings(settings: Sequence[Setting]) -> None:
    """Make sure that settings can take turns in one engine.

    Raises:
        InputError: The first is not ``off``, or one cannot be changed to while the engine runs.
    """
    if not settings or settings[0].kind != "off":
        raise InputError("bench serve: the first setting must be 'off', which all others are compared with")
    for setting in settings[1:]:
        if setting.kind != "sere" or not set(setting.options) <= LIVE:
            raise InputError(
                f"bench serve: {setting.label}: expected sere settings with S and rho, e.g. "
                "sere:S=2,rho=0.3, because the engine changes between them while it runs"
            )


@dataclass(slots=True)
class Block:
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
class Variant:
    """One way to run the engine, and what was measured under it."""

    label: str
    setting: Setting
    enter: Callable[[], Any]
    blocks: list[Block] = field(default_factory=list)

    def times(self) -> Times:
        """Return the times of its decode steps, block by block."""
        return Times([block.step_ms for block in self.blocks])


def bench_serve(llm: Any, subject: dict[str, Any], plan: ServePlan) -> Iterator[dict[str, Any]]:
    """Time an engine at each batch size under each setting; yield one JSON-ready record a case.

    All variants of a batch size take turns. A block is one batch of requests with random prompts that arrive
    together; its decode steps are timed one by one. Beside the settings stand ``untouched`` (the engine
    without a wrapper of ours: what being there costs) and, for each setting, its oracle (the ids of the
    same steps, recorded before and put in place: what re-routing itself costs).

    Args:
        llm: An engine from `local_engine`, with re-routing.
        subject: What a reader must know of the model; JSON-ready.
        plan: How.
    """
    for B in plan.batch_sizes:
        yield from _batch(llm, subject, plan, B)


def _batch(llm: Any, subject: dict[str, Any], plan: ServePlan, B: int) -> Iterator[dict[str, Any]]:
    prompts = _prompts(llm, B, plan)
    variants = _variants(llm, plan, prompts)
    with plan.progress(f"B={B}", len(variants) * (plan.rounds + 1)) as tick:
        for place in range(plan.rounds + 1):
            for variant in turns(variants, place):
                with variant.enter():
                    block = run_block(llm, prompts, plan.steps)
                if place > 0:
                    variant.blocks.append(block)
                tick()
    off = next(variant for variant in variants if variant.label == "off")
    for variant in variants:
        counted = _count(llm, variant, prompts, plan)
        yield _record(subject, plan, B, variant, off, counted, compiled=not session_of(llm).eager)


def run_block(llm: Any, prompts: Sequence[Sequence[int]], steps: int) -> Block:
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
    for place, prompt in enumerate(prompts):
        engine.add_request(f"bench-{place}", {"prompt_token_ids": list(prompt)}, params)
    waiting = {f"bench-{place}" for place in range(len(prompts))}
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
            "they did not all run at once; give the engine more room for keys and values, or ask for fewer"
        )
    return Block((first - started) * 1e3, step_ms, (last - started) * 1e3)


def _prompts(llm: Any, B: int, plan: ServePlan) -> list[list[int]]:
    generator = torch.Generator().manual_seed(plan.seed + B)
    vocabulary = llm.llm_engine.model_config.get_vocab_size()
    ids: list[list[int]] = torch.randint(0, vocabulary, (B, plan.prompt), generator=generator).tolist()
    return ids


def _variants(llm: Any, plan: ServePlan, prompts: list[list[int]]) -> list[Variant]:
    variants = []
    for setting in plan.settings:

        def enter(setting: Setting = setting) -> Any:
            apply_live(llm, setting)
            return nullcontext()

        variants.append(Variant(setting.label, setting, enter))
        if setting.kind == "sere" and plan.oracle:
            apply_live(llm, setting)
            tape = record_routing(llm, lambda: run_block(llm, prompts, plan.steps))
            if len(tape) <= _decoding(llm, plan):
                continue  # steps passed that ran none of our Python: captured graphs

            def replay(setting: Setting = setting, tape: Tape = tape) -> Any:
                apply_live(llm, setting)
                return replayed(llm, tape)

            variants.append(Variant(f"oracle {setting.label}", setting, replay))
    if plan.untouched and session_of(llm).eager:
        variants.append(Variant("untouched", plan.settings[0], lambda: untouched(llm)))
    return variants


def live_changes(setting: Setting) -> dict[str, Any]:
    """Return what to change in a running engine for a setting."""
    return {"enabled": False} if setting.kind == "off" else counted_changes(setting)


def apply_live(llm: Any, setting: Setting) -> None:
    """Switch a running engine to a setting."""
    configure(llm, **live_changes(setting))


Routes = Callable[..., tuple[Tensor, Tensor]]
"""What re-routes one layer's step: a layer's ``route``, or the operation behind it."""

Tape = list[tuple[Tensor, Tensor]]
"""What each call of the routing returned, in order."""


def record_routing(llm: Any, run: Callable[[], object]) -> Tape:
    """Run something and keep what each call of the routing returned."""
    tape: Tape = []

    def recording(route: Routes) -> Routes:
        def record(*step: Any) -> tuple[Tensor, Tensor]:
            result = route(*step)
            tape.append(_copy(result))
            return result

        return record

    with _routing(llm, recording):
        run()
    return tape


@contextmanager
def replayed(llm: Any, tape: Tape) -> Iterator[None]:
    """Let the layers take their routing from a tape: the same ids as re-routing, without its work."""
    # Compiled code may write over what the operation has given it.
    steps = iter([_copy(step) for step in tape])
    with _routing(llm, lambda _route: lambda *_step: next(steps)):
        yield


@contextmanager
def timed_routing(llm: Any) -> Iterator[list[float]]:
    """Collect the time of each call of the routing, in ms."""
    spent: list[float] = []

    def timing(route: Routes) -> Routes:
        def timed(*step: Any) -> tuple[Tensor, Tensor]:
            started = perf_counter()
            result = route(*step)
            spent.append((perf_counter() - started) * 1e3)
            return result

        return timed

    with _routing(llm, timing):
        yield spent


@contextmanager
def _routing(llm: Any, make: Callable[[Routes], Routes]) -> Iterator[None]:
    """Put another function in place of the Python that re-routes at each step of the engine.

    That is each layer's ``route``; where compiled code has taken it in, the operation that this code calls.
    Only one of the two runs, and neither where captured graphs are replayed.
    """
    with ExitStack() as stack:
        for layer in session_of(llm).layers.values():
            stack.enter_context(patch.object(layer, "route", make(layer.route)))
        operation = patch.object(operator, "implementation", lambda backend: make(implementation(backend)))
        stack.enter_context(operation)
        yield


def _copy(routing: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return routing[0].clone(), routing[1].clone()


@contextmanager
def untouched(llm: Any) -> Iterator[None]:
    """Take every wrapper off routers and model runner, and put them back."""
    session = session_of(llm)
    assert session.steps is not None
    holders = [layer.runner.router for layer in session.layers.values()]
    names = ("_compute_routing", "execute_model", "_prepare_inputs", "prepare_inputs", "_dummy_run")
    taken = [
        (holder, name, vars(holder).pop(name))
        for holder in [*holders, session.steps.runner]
        for name in names
        if name in vars(holder)
    ]
    try:
        yield
    finally:
        for holder, name, wrapper in taken:
            setattr(holder, name, wrapper)


def _count(llm: Any, variant: Variant, prompts: list[list[int]], plan: ServePlan) -> dict[str, Any]:
    """Run one block more for a setting's experts and the time inside its routing."""
    if variant.label not in {setting.label for setting in plan.settings}:
        return {"experts": None, "own_cost": None}
    configure(llm, **counted_changes(variant.setting))
    read_stats(llm, reset=True)
    with timed_routing(llm) as spent:
        run_block(llm, prompts, plan.steps)
    layers = [layer for layer in read_stats(llm, reset=True).layers if layer.steps]
    experts = {
        "before": fmean(layer.distinct_before for layer in layers),
        "after": fmean(layer.distinct_after for layer in layers),
        "moved": fmean(layer.slots_moved for layer in layers),
        "critical": fmean(layer.critical for layer in layers),
    }
    cost = None
    calls = _decoding(llm, plan)
    if len(spent) > calls and variant.setting.kind != "off":
        decoding = spent[-calls:]
        cost = {"us_per_layer": median(decoding) * 1e3, "ms_per_step": median(decoding) * len(layers)}
    return {"experts": experts, "own_cost": cost}


def _decoding(llm: Any, plan: ServePlan) -> int:
    """Return how often the routing is called in a block's decode steps; the prompts' steps come before."""
    return len(session_of(llm).layers) * plan.steps


def _record(
    subject: dict[str, Any],
    plan: ServePlan,
    B: int,
    variant: Variant,
    off: Variant,
    counted: dict[str, Any],
    *,
    compiled: bool,
) -> dict[str, Any]:
    experts = counted["experts"]
    per_expert = subject["bytes_per_expert"]
    read = (
        None
        if experts is None or per_expert is None
        else round(experts["after"] * per_expert * subject["moe_layers"])
    )
    return {
        "format": "sere-bench-serve-1",
        "unit": "ms",
        "case": f"B={B} {variant.label}",
        "setting": variant.label,
        "batch_size": B,
        "tpot_ms": asdict(variant.times().tpot_ms()),
        "ratio_off_to_this": asdict(_speedup(variant, off)),
        "ttft_ms": asdict(spread([block.ttft_ms for block in variant.blocks])),
        "tokens_per_s": asdict(
            spread([1e3 * B * (plan.steps + 1) / block.total_ms for block in variant.blocks])
        ),
        "expert_bytes_per_step": read,
        **counted,
        "config": {
            "engine": "vllm",
            "mode": "compiled" if compiled else "eager",
            "prompt": plan.prompt,
            "steps": plan.steps,
            "rounds": plan.rounds,
            "seed": plan.seed,
        },
        "subject": subject,
        "provenance": provenance(),
    }


def _speedup(variant: Variant, off: Variant) -> Spread:
    """Return off's median step by this variant's of the same round: above 1 is faster than off."""
    pairs = zip(off.blocks, variant.blocks, strict=True)
    return spread([median(base.step_ms) / median(mine.step_ms) for base, mine in pairs])
