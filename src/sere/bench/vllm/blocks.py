"""Run a load in an engine of this process and time it step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import Any, Self

import torch

from sere.bench.vllm.engine_loads import EngineLoad, Measure
from sere.errors import InputError


@dataclass(slots=True)
class EngineBlock:
    """One run of a load, from the first arrival to the last token.

    Attributes:
        ttft_ms: Per request, the time from its arrival to its first token.
        step_ms: Times of the steps in which requests decode.
        total_ms: Time of all.
    """

    ttft_ms: list[float] = field(default_factory=list)
    step_ms: list[float] = field(default_factory=list)
    total_ms: float = 0.0

    def values(self, measure: Measure) -> list[float]:
        """Return the block's times of one kind, in ms."""
        if measure == "tpot":
            return self.step_ms
        return [median(self.ttft_ms)] if measure == "ttft" else [self.total_ms]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Return the block that ``dataclasses.asdict`` described."""
        return cls(**value)


def make_prompts(load: EngineLoad, vocabulary: int, seed: int) -> list[list[int]]:
    """Return random token ids for each request of a load: the same in every engine."""
    generator = torch.Generator().manual_seed(seed + len(load.requests))
    return [
        torch.randint(0, vocabulary, (request.prompt,), generator=generator, device="cpu").tolist()
        for request in load.requests
    ]


def run_block(llm: Any, load: EngineLoad, prompts: Sequence[Sequence[int]]) -> EngineBlock:
    """Send a load's requests and time the engine's steps until all have ended.

    Args:
        llm: The engine.
        load: Which requests arrive when.
        prompts: Token ids, one list per request.

    Raises:
        InputError: Requests that are to decode together did not all run at once.
    """
    run = _Run(llm, load, prompts)
    block = run.to_the_end()
    together = not run.ended_early and len(block.step_ms) == load.requests[0].tokens - 1
    if load.measure == "tpot" and not together:
        raise InputError(
            f"bench serve: {len(prompts)} requests did not all run at once; give the engine a larger KV "
            "cache (on a CPU with VLLM_CPU_KVCACHE_SPACE, in GiB), or use a smaller --batch-size"
        )
    return block


class _Run:
    def __init__(self, llm: Any, load: EngineLoad, prompts: Sequence[Sequence[int]]) -> None:
        self.engine, self.load, self.prompts = llm.llm_engine, load, prompts
        self.sent = self.step = 0
        self.arrived: dict[str, float] = {}
        self.waiting: set[str] = set()
        # Whether a request had all its tokens before another one had its first.
        self.ended_early = False
        self.block = EngineBlock()

    def to_the_end(self) -> EngineBlock:
        started = last = perf_counter()
        while self.sent < len(self.prompts) or self.engine.has_unfinished_requests():
            self._send_due()
            # Requests that decode together are timed once none waits; a mixture, once one decodes.
            decoding = bool(self.block.ttft_ms) and not (self.waiting and self.load.measure == "tpot")
            self._take_step()
            now = perf_counter()
            if decoding:
                self.block.step_ms.append((now - last) * 1e3)
            last = now
        self.block.total_ms = (last - started) * 1e3
        return self.block

    def _send_due(self) -> None:
        """Send the requests that are due; if the engine has nothing to do, the next one is due."""
        from vllm import SamplingParams

        if not self.engine.has_unfinished_requests():
            self.step = max(self.step, self.load.requests[self.sent].arrives)
        while self.sent < len(self.prompts) and self.load.requests[self.sent].arrives <= self.step:
            name, tokens = f"bench-{self.sent}", self.load.requests[self.sent].tokens
            params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
            self.arrived[name] = perf_counter()
            self.waiting.add(name)
            self.engine.add_request(name, {"prompt_token_ids": list(self.prompts[self.sent])}, params)
            self.sent += 1

    def _take_step(self) -> None:
        outputs = self.engine.step()
        now = perf_counter()
        for output in outputs:
            if output.request_id in self.waiting and output.outputs[0].token_ids:
                self.waiting.discard(output.request_id)
                self.block.ttft_ms.append((now - self.arrived[output.request_id]) * 1e3)
        self.ended_early |= bool(self.waiting) and any(output.finished for output in outputs)
        self.step += 1
