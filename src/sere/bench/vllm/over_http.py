"""Time ``vllm serve`` over HTTP under settings of re-routing that take turns in each server."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from random import Random
from statistics import fmean, median, quantiles
from time import sleep
from typing import Any

from sere.bench.timing import spread, turns
from sere.bench.vllm.load_generator import Answer, Load, run_load
from sere.bench.vllm.serve_plan import ServePlan, bytes_read, refuse_controls
from sere.engines.server import Server
from sere.engines.settings import Start, counted_changes, live_changes
from sere.errors import InputError, ServerError, name_some
from sere.policies.spec import PolicySpec
from sere.provenance import provenance
from sere.summaries import pairs

SERVED = "model"
"""The name under which the servers must serve the model."""

# vLLM's workers poll for work for one second after their last step; only then is an idle server idle.
_SETTLE_S = 1.2


@dataclass(frozen=True, slots=True, kw_only=True)
class OverHttpPlan(ServePlan):
    """What to time over HTTP; within a round, prompts and arrivals are the same for all variants.

    Attributes:
        loads: How requests arrive.
        requests: Requests per block; in a closed loop at least as many as its concurrency.
    """

    loads: Sequence[Load]
    requests: int = 32

    def __post_init__(self) -> None:
        ServePlan.__post_init__(self)
        refuse_controls(self.settings, "a server")
        if not self.loads or min(self.prompt, self.steps, self.requests, self.rounds) < 1:
            raise InputError(
                "bench serve: expected a load, and prompt, steps, requests and rounds of at least 1, got "
                f"{len(self.loads)} loads, {self.prompt}, {self.steps}, {self.requests} and {self.rounds}"
            )

    def count(self, load: Load) -> int:
        """Return the requests of a block."""
        return max(self.requests, load.concurrency or 1)


@dataclass(frozen=True, slots=True)
class LoadBlock:
    """One set of requests, from the first arrival to the last token.

    Attributes:
        answers: The outcome of each.
        layers: The server's statistics of its steps, per layer; empty if nothing was counted.
        nothing_changed: Why nothing was re-routed, or None; see ``EngineStats``.
    """

    answers: Sequence[Answer]
    layers: Sequence[Mapping[str, Any]]
    nothing_changed: str | None

    @property
    def good(self) -> list[Answer]:
        """The answers without an error."""
        return [answer for answer in self.answers if answer.error is None]

    @property
    def tpot_ms(self) -> float:
        """Median over the requests."""
        return median(answer.tpot_ms for answer in self.good)

    def per_second(self, amount: float) -> float:
        """Return an amount over the time until the last token."""
        return amount / max(answer.pieces[-1][0] for answer in self.good)


@dataclass(slots=True)
class ServerVariant:
    """One way to serve, and what was measured under it.

    Attributes:
        label: The setting as it would be typed, or ``vanilla``.
        server: The server that answers.
        changes: The settings of the timed blocks; None for a server without re-routing.
        first_changes: The settings of the first block, which is not timed.
        blocks: The first block and the timed ones.
    """

    label: str
    server: Server
    changes: Mapping[str, Any] | None = None
    first_changes: Mapping[str, Any] | None = None
    blocks: list[LoadBlock] = field(default_factory=list)

    @property
    def timed(self) -> list[LoadBlock]:
        """All blocks but the first."""
        return self.blocks[1:]


def bench_over_http(
    start: Start,
    vanilla: Server | None,
    subject: Mapping[str, Any],
    plan: OverHttpPlan,
    *,
    on_failure: Callable[[str, ServerError], object] | None = None,
) -> Iterator[dict[str, Any]]:
    """Time servers at each load under each setting; yield one JSON-ready record per case.

    One server is started for each group of settings that can share one, and ended before the next. Each has
    its own ``off``, the baseline of the group. All variants of a load take turns, block by block. A block is
    one set of requests with random prompts; within a round, prompts and arrivals are the same for every
    variant.

    Args:
        start: Starts a server that re-routes, has the routes of sere and serves the model as `SERVED`.
        vanilla: A server of the same model without sere, which takes turns with each of the others: it
            shows what the plug-in costs. None to leave it out.
        subject: What a reader must know of the model; JSON-ready, with ``vocab_size``.
        plan: How.
        on_failure: Is told which server failed and why, and the others go on; if None, the first error ends
            all.

    Raises:
        ServerError: A server ended, or answered none of a block's requests.
    """
    for options, settings in plan.groups():
        try:
            with start(options) as server:
                yield from _of_server(server, vanilla, subject, plan, options, settings)
        except ServerError as error:
            if on_failure is None:
                raise
            on_failure(", ".join(["vllm serve", *pairs(options)]), error)


def _of_server(
    server: Server,
    vanilla: Server | None,
    subject: Mapping[str, Any],
    plan: OverHttpPlan,
    options: Mapping[str, Any],
    settings: Sequence[PolicySpec],
) -> Iterator[dict[str, Any]]:
    """Yield the records of one server's settings."""
    known = dict(subject) | _counted_subject(server)
    for load in plan.loads:
        variants = _variants(server, vanilla, settings)
        with plan.progress(load.label, len(variants) * (plan.rounds + 1)) as tick:
            for index in range(plan.rounds + 1):
                for variant in turns(variants, index):
                    variant.blocks.append(_block(variant, load, plan, index, known["vocab_size"]))
                    tick()
        for variant in variants:
            yield _record(known, plan, load, variant, variants[0], options)


def _variants(server: Server, vanilla: Server | None, settings: Sequence[PolicySpec]) -> list[ServerVariant]:
    variants = []
    for setting in settings:
        # Re-routing that is switched off counts nothing, so off is counted in the block that is not timed.
        variants.append(ServerVariant(setting.label, server, live_changes(setting), counted_changes(setting)))
    if vanilla is not None:
        variants.append(ServerVariant("vanilla", vanilla))
    return variants


def _block(variant: ServerVariant, load: Load, plan: OverHttpPlan, index: int, vocabulary: int) -> LoadBlock:
    server, changes = variant.server, variant.first_changes if index == 0 else variant.changes
    server.check()
    if changes is not None:
        _post(server, "settings", changes)
        _post(server, "reset", {})
    sleep(_SETTLE_S)
    seed = f"{plan.seed}, {load.label}, {index}"
    chance = Random(seed)
    prompts = [[chance.randrange(vocabulary) for _ in range(plan.prompt)] for _ in range(plan.count(load))]
    answers = run_load(server.url, SERVED, prompts, plan.steps + 1, load, seed=seed)
    server.check()
    counted = {"layers": [], "nothing_changed": None} if changes is None else _post(server, "reset", {})
    layers = [layer for layer in counted["layers"] if layer["steps"]]
    block = LoadBlock(answers, layers, counted["nothing_changed"])
    if not block.good:
        raise ServerError(
            f"bench serve: {variant.label}, {load.label}: none of {len(answers)} requests succeeded; the "
            f"first error: {answers[0].error}"
        )
    return block


def _post(server: Server, route: str, body: Mapping[str, Any]) -> Any:
    status, answer = server.post(f"/v1/sere/{route}", body)
    if status != 200:
        raise ServerError(
            f"bench serve: the server refused {route} ({name_some([*body.items()])}): {status} {answer}"
        )
    return answer


def _counted_subject(server: Server) -> dict[str, Any]:
    """Return what only the running engine knows."""
    found = _post(server, "reset", {})
    return {
        "moe_layers": len(found["layers"]),
        "bytes_per_expert": found["expert_bytes"],
        "expert_kernel": found["kernel"],
    }


def _record(
    subject: Mapping[str, Any],
    plan: OverHttpPlan,
    load: Load,
    variant: ServerVariant,
    baseline: ServerVariant,
    start: Mapping[str, Any],
) -> dict[str, Any]:
    blocks = variant.timed
    good = [answer for block in blocks for answer in block.good]
    errors = [
        answer.error for block in variant.blocks for answer in block.answers if answer.error is not None
    ]
    experts = _experts(blocks) or _experts(variant.blocks[:1])
    speedups = [base.tpot_ms / mine.tpot_ms for base, mine in zip(baseline.timed, blocks, strict=True)]
    tokens = [block.per_second(sum(answer.tokens for answer in block.good)) for block in blocks]
    ttft = [answer.ttft_ms for answer in good]
    reasons = [block.nothing_changed for block in blocks]
    return {
        "format": "sere-bench-serve-online-2",
        "unit": "ms",
        "case": f"{load.label}, {variant.label}",
        "setting": variant.label,
        "concurrency": load.concurrency,
        "request_rate": load.request_rate,
        "tpot_ms": asdict(spread([answer.tpot_ms for answer in good])),
        "itl_ms": asdict(spread([gap for answer in good for gap in answer.gaps_ms]))
        | _tail([gap for answer in good for gap in answer.gaps_ms]),
        "speedup": asdict(spread(speedups)),
        "ttft_ms": asdict(spread(ttft)) | _tail(ttft),
        "tokens_per_s": asdict(spread(tokens)),
        "requests_per_s": asdict(spread([block.per_second(len(block.good)) for block in blocks])),
        "requests": sum(len(block.answers) for block in blocks),
        "failed": len(errors),
        "errors": sorted(set(errors))[:5],
        "experts": experts,
        "expert_bytes_per_step": bytes_read(experts, subject),
        "nothing_changed": reasons[-1] if all(reasons) else None,
        "config": plan.config("vllm serve", start)
        | {
            "requests": plan.count(load),
            # On a CPU this decides how many threads a server's workers have; if unset, all cores but one.
            "omp_threads_bind": os.environ.get("VLLM_CPU_OMP_THREADS_BIND"),
        },
        "subject": dict(subject),
        "provenance": provenance(),
    }


def _experts(blocks: Sequence[LoadBlock]) -> dict[str, float] | None:
    """Return means over the layers' steps with a decoded row; None if nothing was counted."""
    layers = [layer for block in blocks for layer in block.layers]
    if not any(layer["steps"] for layer in layers):
        return None
    steps = [layer["steps"] for layer in layers]
    names = ("rows", "distinct_before", "distinct_after", "slots_rerouted", "slots_computed", "critical")
    return {name: fmean([layer[name] for layer in layers], steps) for name in names}


def _tail(values: Sequence[float]) -> dict[str, float]:
    """Return the 90th and 99th percentile."""
    cuts = quantiles(values, n=100, method="inclusive") if len(values) > 1 else [values[0]] * 99
    return {"p90": cuts[89], "p99": cuts[98]}
